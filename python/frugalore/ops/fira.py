"""Fira's step (arXiv 2410.01623): Adam in a low-rank subspace, and the residual outside of it scaled as Adam
scales the gradient inside, column by column.

With R the gradient seen from the subspace, N Adam's direction of R, and back() the way out of the subspace:

    S = k (G - a back(R))         k_j = ||N_j|| / (||R_j|| + 1e-8), one for each column (side "left") or row
    l = max(||S|| / (||S_last|| + 1e-8), limit) / limit          1 where there is no S_last yet
    S_last = S / l

    mode "code", the published code:   a = scale, N = M / (sqrt(V) + eps)
        w <- keep w + lr alpha c (scale back(N) + S_last)        c = sqrt(1 - beta2^t) / (1 - beta1^t)
    mode "paper", its algorithm 1:     a = 1,     N = c M / (sqrt(V) + eps)
        w <- keep w + lr alpha scale (back(N) + S_last)

S itself is never made. With f = k / l,

    scale back(N) + f (G - a back(R)) = scale back(N - f R) + f G      (a = scale; and likewise for the paper)
    ||S||^2 = sum_j k_j^2 (||G_j||^2 - (2 a - a^2) ||R_j||^2)

so a step is two products, the projection and one way back, and the limiter needs norms of columns only. The
second line holds for a basis with orthonormal rows; one in packed INT4 is as close to that as its rounding
lets it be. Everything is decided on the device: no value comes to the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frugalore.ops._checks import check_same_device
from frugalore.ops._options import is_second
from frugalore.ops._registry import define, mark_written, no_outputs
from frugalore.ops.int8 import Int8Groups
from frugalore.ops.projection import (
    PANEL_BYTES,
    Basis,
    Step,
    _dense_basis,
    _update_rows,
    back_rows,
    checked_way_back,
    row_panels,
)
from frugalore.ops.residual import residual_add_
from frugalore.ops.split_low_rank import check_split, operand_dtype, product

#: Keeps the quotients of norms finite.
NORM_EPS = 1e-8


def squared_norms(x: Tensor, axis: str) -> Tensor:
    """The squared norm of each column or row, float64.

    A GPU sums in float32, as a tree. A CPU sums one element after the other, so in float64, which torch makes
    a copy for: it is made in row panels.
    """
    dim = 0 if axis == "columns" else 1
    if x.device.type != "cpu" or x.numel() == 0:
        return torch.linalg.vector_norm(x, dim=dim, dtype=torch.float32).double().square()
    panels = [
        torch.linalg.vector_norm(x[start:stop], dim=dim, dtype=torch.float64).square()
        for start, stop in row_panels(x.shape, 8, PANEL_BYTES["cpu"])
    ]
    if axis == "rows":
        return torch.cat(panels)
    return torch.stack(panels).sum(0)


def _limited_factors(
    direction: Tensor,
    r: Tensor,
    grad: Tensor,
    axis: str,
    inside: float,
    correction: Tensor | float,
    last_norm: Tensor,
    limit: float,
    applied: Tensor,
) -> Tensor:
    """f, float32, and ``last_norm`` renewed. ``inside`` is a; ``correction`` is by how much ``direction`` is
    larger than N. Both are homogeneous in N but for the 1e-8 of the limiter, which this is for."""
    r_squared = squared_norms(r, axis)
    k = squared_norms(direction, axis).sqrt() / (r_squared.sqrt() + NORM_EPS)
    outside = squared_norms(grad, axis) - (2.0 * inside - inside * inside) * r_squared
    norm = (k * k * outside.clamp(min=0.0)).sum().sqrt() / correction
    last = last_norm.double()
    growth = norm / (last + NORM_EPS)
    limiter = torch.where(last >= 0.0, growth.clamp(min=limit) / limit, 1.0)
    limited = norm / limiter
    last_norm.copy_(torch.where(applied & limited.isfinite(), limited, last))
    return (k / limiter).float()


def _fira_back_update(
    weight: list[Tensor],
    direction: Tensor,
    r: Tensor,
    basis: Tensor,
    basis_scale: Tensor | None,
    basis_zero: Tensor | None,
    grad: Tensor,
    last_norm: Tensor,
    beta_powers: Tensor | None,
    side: str,
    scale: float,
    limit: float,
    lr: Tensor,
    progress: Tensor,
    alpha: float,
    weight_decay: float,
    decay: str,
    seed: int,
    tensor_id: int,
    rounding: str,
    group_size: int,
    basis_group_size: int,
    panel_bytes: int,
) -> None:
    """With ``beta_powers`` as the published code, without as the paper."""
    m, n = grad.shape
    axis = "rows" if side == "right" else "columns"
    correction, inside, outside_scale = 1.0, 1.0, scale
    if beta_powers is not None:
        correction = (1.0 - beta_powers[1]).sqrt() / (1.0 - beta_powers[0])
        inside, outside_scale = scale, 1.0
    applied = progress[2] != 0
    norms = (axis, inside, correction, last_norm, limit, applied)
    factor = _limited_factors(direction, r, grad, *norms)
    along = factor[:, None] if axis == "rows" else factor
    dtype = operand_dtype(grad)
    low = (direction.float() - along * r).to(dtype)
    length = n if side == "right" else m
    dense = _dense_basis(basis, basis_scale, basis_zero, length, basis_group_size, dtype)
    step = Step(lr, progress, alpha, weight_decay, decay, seed, tensor_id, rounding)
    scales = {"inside_scale": scale, "outside_scale": outside_scale}
    panel = None
    for start, stop in row_panels(grad.shape, 4, panel_bytes):
        panel = grad.new_empty((stop, n), dtype=torch.float32) if panel is None else panel
        update = back_rows(low, dense, side, start, stop, panel[: stop - start], product)
        own = factor[start:stop] if axis == "rows" else factor
        residual_add_(update, grad[start:stop], None, own, outside="scaled", axis=axis, **scales)
        _update_rows(weight, start, stop, update, step, group_size)


_fira_back_update_op = define(
    "fira_back_update_(Tensor(a!)[] weight, Tensor direction, Tensor r, Tensor basis, Tensor? basis_scale, "
    "Tensor? basis_zero, Tensor grad, Tensor(b!) last_norm, Tensor? beta_powers, str side, float scale, "
    "float limit, Tensor lr, Tensor progress, float alpha, float weight_decay, str decay, int seed, "
    "int tensor_id, str rounding, int group_size, int basis_group_size, int panel_bytes) -> ()",
    _fira_back_update,
    no_outputs,
)


def _check_state(last_norm: Tensor, beta_powers: Tensor | None, mode: str, device: torch.device) -> None:
    if last_norm.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"last_norm: dtype float32 or float64 expected, got {last_norm.dtype}")
    if last_norm.dim() != 0:
        raise ValueError(f"last_norm: a tensor without dimensions expected, got {tuple(last_norm.shape)}")
    check_same_device("last_norm", last_norm, device)
    if mode == "paper":
        return
    if beta_powers is None:
        raise ValueError("beta_powers: the record of the parameter expected for mode 'code', got None")
    if beta_powers.dtype != torch.float64:
        raise TypeError(f"beta_powers: dtype float64 expected, got {beta_powers.dtype}")
    if tuple(beta_powers.shape) != (2,):
        raise ValueError(f"beta_powers: shape (2,) expected, got {tuple(beta_powers.shape)}")
    check_same_device("beta_powers", beta_powers, device)


@torch.no_grad()
def fira_back_update_(
    weight: Tensor | Int8Groups,
    direction: Tensor,
    r: Tensor,
    basis: Basis,
    grad: Tensor,
    step: Step,
    last_norm: Tensor,
    *,
    beta_powers: Tensor | None = None,
    mode: str = "code",
    scale: float = 1.0,
    limit: float = 1.01,
    side: str | None = None,
    group_size: int = 256,
    basis_group_size: int = 256,
    panel_bytes: int | None = None,
) -> None:
    """Fira's step; formulas at the head of this module.

    Args:
        weight, basis, side, group_size, basis_group_size, panel_bytes: as in
            :func:`frugalore.ops.project_back_update_`.
        direction: Adam's direction of R, bias-corrected: ``c M / (sqrt(V) + eps)`` is what Fira means, which
            is ``eps_mode="raw"`` of :func:`frugalore.ops.adamw_direction_`.
        r: of :func:`frugalore.ops.split_project` with the same ``grad`` and ``basis``.
        grad: the shape of ``weight``, float32, bfloat16 or float16, contiguous.
        step: nothing is written, ``last_norm`` neither, where its progress says that the update was skipped.
            The published code decays "after".
        last_norm: the norm of the limited residual of the step before, float32 or float64 without
            dimensions; NaN or negative: there was none, and the residual is not limited. Written, unless the
            norm is not finite.
        beta_powers: float64 ``[beta1^t, beta2^t]`` of the rule that made ``direction``; for mode "code".
        mode: "code" or "paper".
        scale: Fira's alpha. The published code leaves the residual out of it.
        limit: by what factor the norm of the residual may grow in a step; >= 1.

    Raises:
        TypeError: another dtype. ValueError: shapes, devices or options that do not fit together, named with
            both values. Nothing is then written.
    """
    from_paper = is_second("mode", mode, "code", "paper")
    if not 1.0 <= limit < float("inf"):
        raise ValueError(f"limit: a finite number >= 1 expected, got {limit}")
    if not -float("inf") < scale < float("inf"):
        raise ValueError(f"scale: a finite number expected, got {scale}")
    way = checked_way_back(weight, direction, basis, step, side, panel_bytes)
    check_split(way.weight, direction, r, grad)
    _check_state(last_norm, beta_powers, mode, grad.device)
    powers = None if from_paper else beta_powers
    sizes = (group_size, basis_group_size, way.panel_bytes)
    state = (last_norm, powers)
    _fira_back_update_op(
        way.weight, direction, r, *way.basis, grad, *state, way.side, scale, limit, *way.step, *sizes
    )
    mark_written((*way.weight, last_norm))
