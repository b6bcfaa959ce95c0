"""One pass with a rule inside a selection and another outside (specification). Formulas:
``csrc/core/split.h``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from frugalore.ops.selection import Selection
from frugalore.reference import adamw
from frugalore.reference import momentum as one_buffer
from frugalore.reference.selection import randk_slots

#: (w, g, state, scalars of the write) -> fresh w, fresh state, which elements were applied; float32.
InsideRule = Callable[[Tensor, Tensor, list[Tensor], list[Tensor]], tuple[Tensor, list[Tensor], Tensor]]


def slots_of(selection: Selection, rows: int, columns: int) -> Tensor:
    """int64 ``[rows, columns]``: where the state of each element inside is, -1 for the others."""
    if selection.kind == "randk":
        names = {name: getattr(selection, name) for name in ("density", "seed", "tensor_id", "period")}
        return randk_slots(rows, columns, **names)
    slots = torch.full((rows, columns), -1, dtype=torch.int64)
    if selection.kind == "all":
        slots[:] = torch.arange(rows * columns).view(rows, columns)
    elif selection.kind == "columns":
        k = selection.chosen.numel()
        slots[:, selection.chosen.long()] = torch.arange(rows * k).view(rows, k)
    elif selection.kind == "rows":
        k = selection.chosen.numel()
        slots[selection.chosen.long()] = torch.arange(k * columns).view(k, columns)
    return slots


def matrix_shape(param: Tensor) -> tuple[int, int]:
    """The first dimension and the product of the others; a vector is one row."""
    if param.dim() < 2:
        return 1, param.numel()
    return param.shape[0], math.prod(param.shape[1:])


def outside_elements(
    w: Tensor, g: Tensor, outside: str, keep32: Tensor, coefficient: Tensor
) -> tuple[Tensor, Tensor]:
    """New w (float32) and which elements were applied."""
    if outside == "none":
        new_w = keep32 * w
        applied = new_w.isfinite()
    else:
        move = coefficient * (g.sign() if outside == "sign" else g)
        new_w = keep32 * w - (torch.where(g == 0, 0.0, move) if outside == "sign" else move)
        applied = g.isfinite() & new_w.isfinite()
    return torch.where(applied, new_w, w), applied


def _inside_rule(rule: str, record: Tensor, powers: Tensor | None, fresh: bool, options: dict) -> InsideRule:
    """Advances the record and returns the rule of this step."""
    betas = options["betas"]
    if rule == "adamw":
        if fresh:
            powers.fill_(1.0)
        adamw.advance(record, powers, betas, True)
        s = adamw.adam_scalars(powers, betas, options["eps"], options["eps_mode"])

        def inside(w, g, state, write):
            new_w, m, v, applied = adamw.step_elements(s, w, g, *state, *write)
            return new_w, [m, v], applied

        return inside
    record[0] += 1
    record[2] = 1
    first = fresh or int(record[0]) == 1
    if rule == "lion":
        direction = one_buffer.lion(betas)
    else:
        direction = one_buffer.sgdm(options["momentum"], options["dampening"], options["nesterov"])

    def inside(w, g, state, write):
        new_w, m, applied = one_buffer.step_elements(direction, w, g, state[0], first, *write)
        return new_w, [m], applied

    return inside


@torch.no_grad()
def split_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    selections: Sequence[Selection],
    moments: Sequence[Sequence[Tensor]],
    progress: Sequence[Tensor],
    beta_powers: Sequence[Tensor] | None = None,
    *,
    rule: str = "adamw",
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
    outside: str = "sign",
    inside_scale: float = 1.0,
    outside_scale: float = 1.0,
    weight_decay: float = 0.0,
    eps_mode: str = "corrected",
    decay: str = "before",
    fresh: Sequence[bool] | None = None,
    seed: int = 0,
    tensor_ids: Sequence[int] | None = None,
    rounding: str = "stochastic",
) -> None:
    options = {"betas": betas, "eps": eps, "eps_mode": eps_mode}
    options |= {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    write = adamw.write_scalars(lr, weight_decay, decay, inside_scale)
    outside_write = adamw.write_scalars(lr, weight_decay, decay, outside_scale)
    rests = outside == "none" and (weight_decay == 0 or float(outside_write[0]) == 1.0)
    for i, (param, grad, selection, record) in enumerate(
        zip(params, grads, selections, progress, strict=True)
    ):
        is_fresh = fresh is not None and fresh[i]
        inside_rule = _inside_rule(rule, record, beta_powers and beta_powers[i], is_fresh, options)
        slots = slots_of(selection, *matrix_shape(param)).view(param.shape)
        inside, w, g = slots >= 0, param.float(), grad.float()
        state = [torch.zeros_like(w) for _ in moments]
        if not is_fresh:
            for full, stored in zip(state, moments, strict=True):
                full[inside] = stored[i].flatten()[slots[inside]]
        new_w, applied = outside_elements(w, g, outside, *outside_write)
        if rests:
            new_w, applied = w, torch.ones_like(inside)
        inside_w, new_state, inside_applied = inside_rule(w, g, state, write)
        for full, stored in zip(new_state, moments, strict=True):
            stored[i].view(-1)[slots[inside]] = full[inside]
        record[1] += int((~torch.where(inside, inside_applied, applied)).sum())
        tensor_id = i if tensor_ids is None else tensor_ids[i]
        new_w = torch.where(inside, inside_w, new_w)
        adamw.write_weight(param, new_w, seed, tensor_id, int(record[0]), rounding)
