"""Projection into a low-rank subspace, the Adam step inside it, and the way back into the weight.

For a gradient G ``[m, n]`` a basis is ``[rank, short side]``, one vector a row, whichever side it acts on:

    side "right" (m >= n):  basis B [rank, n],  R = G Bᵀ  [m, rank],  back  R B
    side "left"  (m <  n):  basis B [rank, m],  R = B G   [rank, n],  back  Bᵀ R

(GaLore, arXiv 2403.03507, algorithm 1 and section 4.1.) A basis is a float matrix or packed INT4
(:class:`frugalore.ops.Int4Groups`, Q-GaLore). The GEMMs run in the gradient's dtype, float16 in float32.
The way back is made in row panels, so its workspace is bounded whatever the layer's size, and each panel is
written into the weight by one fused pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from frugalore.ops._checks import FLOATS, check_matrix, check_same_device
from frugalore.ops._options import beta_pair, seed_bits
from frugalore.ops._registry import define, mark_written
from frugalore.ops.adamw8bit import adamw8bit_direction_
from frugalore.ops.gemm import matmul
from frugalore.ops.int4 import Int4Groups, int4_dequantize
from frugalore.ops.int8 import Int8Groups, int8_stochastic_update_
from frugalore.ops.weight import weight_update_

#: Bytes of the row panel of the back-projection: about a core's L2 on a CPU, enough to fill a GPU.
PANEL_BYTES = {"cpu": 1 << 21, "cuda": 1 << 26}

Basis = Tensor | Int4Groups


class Step(NamedTuple):
    """How one update moves a weight: ``w <- keep w + lr alpha update``, ``keep = 1 - lr weight_decay``.

    ``lr`` is a float64 tensor of one element and ``progress`` the int64 record of the parameter, both on the
    weight's device; ``decay`` "after" multiplies the update by ``keep`` too. The stochastic rounding of
    element i draws from Philox(seed; i, tensor_id, progress[0]).
    """

    lr: Tensor
    progress: Tensor
    alpha: float = -1.0
    weight_decay: float = 0.0
    decay: str = "before"
    seed: int = 0
    tensor_id: int = 0
    rounding: str = "stochastic"


def short_side(shape: torch.Size | tuple[int, ...]) -> str:
    """The side that a basis of the short side acts on; square matrices go right, as in GaLore."""
    return "right" if shape[0] >= shape[1] else "left"


def low_rank_shape(shape: torch.Size | tuple[int, ...], rank: int, side: str) -> tuple[int, int]:
    """The shape of R."""
    return (shape[0], rank) if side == "right" else (rank, shape[1])


def _gemm_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float16 else dtype


def _check_side(side: str) -> None:
    if side not in ("right", "left"):
        raise ValueError(f"side: 'right' or 'left' expected, got {side!r}")


def _check_basis(basis: Tensor, scale: Tensor | None, rank: int | None, length: int, against: str) -> None:
    columns = -(-length // 2) if scale is not None else length
    if basis.dim() != 2 or basis.shape[1] != columns or (rank is not None and basis.shape[0] != rank):
        expected = (rank if rank is not None else "rank", columns)
        raise ValueError(
            f"basis: shape {expected} expected for {against}"
            f"{' in packed INT4' if scale is not None else ''}, got {tuple(basis.shape)}"
        )
    if scale is None and basis.dtype not in FLOATS:
        raise TypeError(f"basis: a float matrix expected where no scale is given, got {basis.dtype}")


def _dense_basis(
    basis: Tensor, scale: Tensor | None, zero: Tensor | None, length: int, group_size: int, dtype: torch.dtype
) -> Tensor:
    if scale is None:
        return basis.to(dtype)
    return int4_dequantize(basis, scale, zero, length, group_size, dtype)


def _low_rank_empty(grad, basis, basis_scale, basis_zero, side, group_size):
    check_matrix("grad", grad)
    _check_side(side)
    shape = low_rank_shape(grad.shape, basis.shape[0], side)
    return grad.new_empty(shape, dtype=_gemm_dtype(grad.dtype))


def _project(
    grad: Tensor,
    basis: Tensor,
    basis_scale: Tensor | None,
    basis_zero: Tensor | None,
    side: str,
    group_size: int,
) -> Tensor:
    r = _low_rank_empty(grad, basis, basis_scale, basis_zero, side, group_size)
    length = grad.shape[1] if side == "right" else grad.shape[0]
    _check_basis(basis, basis_scale, None, length, f"grad {tuple(grad.shape)} and side {side!r}")
    dense = _dense_basis(basis, basis_scale, basis_zero, length, group_size, r.dtype)
    g = grad.to(r.dtype)
    return matmul(g, dense.t(), out=r) if side == "right" else matmul(dense, g, out=r)


_project_op = define(
    "project(Tensor grad, Tensor basis, Tensor? basis_scale, Tensor? basis_zero, str side, int group_size) "
    "-> Tensor",
    _project,
    _low_rank_empty,
)


def _parts(basis: Basis) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if not isinstance(basis, tuple):
        return basis, None, None
    if len(basis) != 3:
        raise ValueError(f"basis: a matrix, or (packed, scale, zero), expected, got {len(basis)} parts")
    return tuple(basis)


@torch.no_grad()
def project(grad: Tensor, basis: Basis, *, side: str | None = None, group_size: int = 256) -> Tensor:
    """R, the gradient seen from the subspace.

    Args:
        grad: ``[m, n]`` float32, bfloat16 or float16.
        basis: ``[rank, short side]`` float, or the same in packed INT4.
        side: "right" or "left"; default: the short side of ``grad``.
        group_size: of a packed basis.

    Returns:
        ``[m, rank]`` (right) or ``[rank, n]`` (left), in grad's dtype (float32 for float16). A non-finite
        element of ``grad`` makes R non-finite.

    Raises:
        TypeError: another dtype. ValueError: shapes or devices that do not fit together.
    """
    check_matrix("grad", grad)
    parts = _parts(basis)
    check_same_device("basis", parts[0], grad.device)
    return _project_op(grad, *parts, side or short_side(grad.shape), group_size)


def _projected_adam_step(
    grad: Tensor,
    basis: Tensor,
    basis_scale: Tensor | None,
    basis_zero: Tensor | None,
    exp_avg: Tensor,
    exp_avg_absmax: Tensor,
    exp_avg_sq: Tensor,
    exp_avg_sq_absmax: Tensor,
    progress: Tensor,
    beta_powers: Tensor,
    side: str,
    group_size: int,
    beta1: float,
    beta2: float,
    eps: float,
    eps_mode: str,
) -> Tensor:
    r = _project(grad, basis, basis_scale, basis_zero, side, group_size)
    state = (exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax, progress, beta_powers)
    return adamw8bit_direction_(r, *state, betas=(beta1, beta2), eps=eps, eps_mode=eps_mode)


def _projected_adam_step_empty(grad, basis, basis_scale, basis_zero, *rest):
    side, group_size = rest[6:8]
    return _low_rank_empty(grad, basis, basis_scale, basis_zero, side, group_size)


_projected_adam_step_op = define(
    "projected_adam_step_(Tensor grad, Tensor basis, Tensor? basis_scale, Tensor? basis_zero, "
    "Tensor(a!) exp_avg, Tensor(b!) exp_avg_absmax, Tensor(c!) exp_avg_sq, Tensor(d!) exp_avg_sq_absmax, "
    "Tensor(e!) progress, Tensor(f!) beta_powers, str side, int group_size, float beta1, float beta2, "
    "float eps, str eps_mode) -> Tensor",
    _projected_adam_step,
    _projected_adam_step_empty,
)


@torch.no_grad()
def projected_adam_step_(
    grad: Tensor,
    basis: Basis,
    exp_avg: Tensor,
    exp_avg_absmax: Tensor,
    exp_avg_sq: Tensor,
    exp_avg_sq_absmax: Tensor,
    progress: Tensor,
    beta_powers: Tensor,
    *,
    side: str | None = None,
    group_size: int = 256,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_mode: str = "corrected",
) -> Tensor:
    """Project the gradient and take the 8-bit Adam step in the subspace (Q-GaLore, algorithm 1).

    Args:
        grad, basis, side, group_size: as in :func:`project`.
        exp_avg, exp_avg_sq: uint8 codes, one for each element of R.
        exp_avg_absmax, exp_avg_sq_absmax: float32, one for each 256 elements of R.
        progress, beta_powers: the parameter's record, see :func:`frugalore.ops.adamw8bit_direction_`.

    Returns:
        The direction in the subspace, shape of R; hand it to :func:`project_back_update_`. If R is not
        finite, nothing but ``progress`` changes and the direction is zero.
    """
    state = (exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax, progress, beta_powers)
    side = side or short_side(grad.shape)
    adam = (*beta_pair(betas), eps, eps_mode)
    direction = _projected_adam_step_op(grad, *_parts(basis), *state, side, group_size, *adam)
    mark_written(state)
    return direction


def back_rows(
    r: Tensor,
    dense: Tensor,
    side: str,
    start: int,
    stop: int,
    out: Tensor,
    product: Callable[..., Tensor] = matmul,
) -> Tensor:
    """Rows start to stop of the way back of ``r``."""
    if side == "right":
        return product(r[start:stop], dense, out=out)
    return product(dense[:, start:stop].t(), r, out=out)


def row_panels(shape: torch.Size, bytes_per_element: int, panel_bytes: int) -> Iterator[tuple[int, int]]:
    """``(start, stop)`` of panels of rows of at most ``panel_bytes``, but of one row at least."""
    m, n = shape
    rows = max(1, min(m, panel_bytes // max(1, n * bytes_per_element)))
    for start in range(0, m, rows):
        yield start, min(m, start + rows)


def _update_rows(
    weight: list[Tensor], start: int, stop: int, update: Tensor, step: Step, group_size: int
) -> None:
    """One fused write of rows start..stop: a float weight, or codes, scale and zero."""
    options = step._asdict()
    first_index = start * weight[0].shape[1]
    rows = [t[start:stop] for t in weight]
    if len(rows) == 1:
        weight_update_(rows[0], update, first_index=first_index, **options)
    else:
        int8_stochastic_update_(*rows, update, first_index=first_index, group_size=group_size, **options)


def _project_back_update(
    weight: list[Tensor],
    direction: Tensor,
    basis: Tensor,
    basis_scale: Tensor | None,
    basis_zero: Tensor | None,
    side: str,
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
    m, n = weight[0].shape
    dense = _dense_basis(
        basis, basis_scale, basis_zero, n if side == "right" else m, basis_group_size, direction.dtype
    )
    step = Step(lr, progress, alpha, weight_decay, decay, seed, tensor_id, rounding)
    panel = None
    for start, stop in row_panels((m, n), direction.element_size(), panel_bytes):
        panel = direction.new_empty((stop, n)) if panel is None else panel
        out = back_rows(direction, dense, side, start, stop, panel[: stop - start])
        _update_rows(weight, start, stop, out, step, group_size)


_project_back_update_op = define(
    "project_back_update_(Tensor(a!)[] weight, Tensor direction, Tensor basis, Tensor? basis_scale, "
    "Tensor? basis_zero, str side, Tensor lr, Tensor progress, float alpha, float weight_decay, str decay, "
    "int seed, int tensor_id, str rounding, int group_size, int basis_group_size, int panel_bytes) -> ()",
    _project_back_update,
    lambda *args: None,
)


class WayBack(NamedTuple):
    """The checked arguments of an op that goes back into a weight."""

    weight: list[Tensor]
    basis: tuple[Tensor, Tensor | None, Tensor | None]
    side: str
    step: Step
    panel_bytes: int


def checked_way_back(
    weight: Tensor | Int8Groups,
    direction: Tensor,
    basis: Basis,
    step: Step,
    side: str | None,
    panel_bytes: int | None,
) -> WayBack:
    """TypeError or ValueError unless these fit together. Arguments as in :func:`project_back_update_`."""
    parts = list(weight) if isinstance(weight, tuple) else [weight]
    if len(parts) not in (1, 3):
        raise ValueError(f"weight: a matrix, or (codes, scale, zero), expected, got {len(parts)} parts")
    check_matrix("weight", parts[0], FLOATS if len(parts) == 1 else None)
    check_matrix("direction", direction)
    m, n = parts[0].shape
    side = side or short_side((m, n))
    _check_side(side)
    matrix, scale, zero = _parts(basis)
    rank = direction.shape[1] if side == "right" else direction.shape[0]
    if tuple(direction.shape) != low_rank_shape((m, n), rank, side):
        raise ValueError(
            f"direction: shape {low_rank_shape((m, n), rank, side)} expected for weight {(m, n)} and side "
            f"{side!r}, got {tuple(direction.shape)}"
        )
    _check_basis(matrix, scale, rank, n if side == "right" else m, f"weight {(m, n)} and side {side!r}")
    for name, x in (("direction", direction), ("basis", matrix)):
        check_same_device(name, x, parts[0].device)
    if panel_bytes is None:
        panel_bytes = PANEL_BYTES[direction.device.type]
    return WayBack(parts, (matrix, scale, zero), side, step._replace(seed=seed_bits(step.seed)), panel_bytes)


@torch.no_grad()
def project_back_update_(
    weight: Tensor | Int8Groups,
    direction: Tensor,
    basis: Basis,
    step: Step,
    *,
    side: str | None = None,
    group_size: int = 256,
    basis_group_size: int = 256,
    panel_bytes: int | None = None,
) -> None:
    """Carry a direction out of the subspace and into the weight, in row panels.

    ``w <- keep w + lr alpha back(direction)``: each panel is one GEMM into a workspace of ``panel_bytes`` and
    one fused pass that reads the weight, adds, decays, rounds stochastically and writes.

    Args:
        weight: ``[m, n]`` float32, bfloat16 or float16, or INT8 as ``(codes, scale, zero)``; written.
        direction: ``[m, rank]`` (right) or ``[rank, n]`` (left), float32, bfloat16 or float16.
        basis: as in :func:`project`.
        step: :class:`Step`. Nothing is written where its progress says that the update was skipped.
        group_size: of an INT8 weight. basis_group_size: of a packed basis.
        panel_bytes: default :data:`PANEL_BYTES` of the device. The result does not depend on it, but for the
            rounding of the GEMM.

    Raises:
        TypeError: another dtype. ValueError: shapes or devices that do not fit together, named with both
            values. The weight is then untouched.
    """
    way = checked_way_back(weight, direction, basis, step, side, panel_bytes)
    _project_back_update_op(
        way.weight, direction, *way.basis, way.side, *way.step, group_size, basis_group_size, way.panel_bytes
    )
    mark_written(way.weight)
