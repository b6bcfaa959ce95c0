"""Into and out of a coordinate subspace (specification). Formulas: :mod:`frugalore.ops.coordinates`.

``selection`` has the fields of :class:`frugalore.ops.Selection`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frugalore.reference.selection import randk_slots


def slots(selection, rows: int, columns: int) -> Tensor:
    """int64 ``[rows, columns]``: the slot of each element that is inside, -1 for the others."""
    if selection.kind == "none":
        return torch.full((rows, columns), -1)
    if selection.kind == "all":
        return torch.arange(rows * columns).view(rows, columns)
    if selection.kind == "randk":
        names = {name: getattr(selection, name) for name in ("density", "seed", "tensor_id", "period")}
        return randk_slots(rows, columns, **names)
    found = torch.full((rows, columns), -1)
    chosen = selection.chosen.cpu().long()
    if selection.kind == "columns":
        found[:, chosen] = torch.arange(rows * chosen.numel()).view(rows, chosen.numel())
    else:
        found[chosen] = torch.arange(chosen.numel() * columns).view(chosen.numel(), columns)
    return found


def _as_matrix(x: Tensor) -> Tensor:
    return x.reshape(1, -1) if x.dim() < 2 else x.flatten(1)


def coordinates_project(grad: Tensor, selection) -> Tensor:
    grad = _as_matrix(grad)
    where = slots(selection, *grad.shape).to(grad.device)
    inside = where >= 0
    r = grad.new_empty(int(inside.sum()))
    r[where[inside]] = grad[inside]
    return r.view(selection.state_shape(*grad.shape))


def coordinates_back_(
    out: Tensor,
    direction: Tensor,
    grad: Tensor | None,
    selection,
    *,
    first_row: int = 0,
    rows: int | None = None,
    outside: str = "sign",
    inside_scale: float = 1.0,
    outside_scale: float = 1.0,
) -> Tensor:
    last_row = first_row + out.shape[0]
    where = slots(selection, last_row if rows is None else rows, out.shape[1])[first_row:last_row]
    where = where.to(out.device)
    inside_scale, outside_scale = (
        torch.tensor(scale, dtype=torch.float64).float().to(out.device)
        for scale in (inside_scale, outside_scale)
    )
    out.zero_()
    if outside == "sgd":
        out.copy_(outside_scale * grad.float())
    if outside == "sign":
        sign = (grad > 0).float() - (grad < 0).float()
        out.copy_(torch.where(grad.isfinite(), outside_scale * sign, torch.nan))
    inside = where >= 0
    out[inside] = inside_scale * direction.float().flatten()[where[inside]]
    return out
