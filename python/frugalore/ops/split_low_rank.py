"""A gradient split into the parts inside and outside of a low-rank subspace, and FRUGAL's step with both.

FRUGAL (arXiv 2411.07837) moves a weight by a rule with state inside of the subspace and by one without state
outside of it. With R the gradient seen from the subspace and D the direction that a rule made of R:

    w <- keep w + lr alpha (inside_scale back(D) + outside_scale f(G - back(R)))        f = sign or identity

A sign looks at the smallest of residuals, so R and its way back are made with more precision than those of
:mod:`frugalore.ops.projection`: R is float32 whatever the dtype of the gradient, and so are the sums of all
products. The operands are float32 too, but for a bfloat16 gradient on a GPU: there they are bfloat16, where
the same rounded basis serves both ways, and R goes back as the sum of two bfloat16 numbers,
``back(R) = back(high) + back(low)``, in one product of twice the rank. (float32 products on a GPU are
torch's, whose default is full precision; TF32, if it is allowed, spoils the signs.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from frugalore.ops._checks import check_matrix, check_same_device
from frugalore.ops._options import is_second
from frugalore.ops._registry import define, mark_written, no_outputs
from frugalore.ops.gemm import matmul
from frugalore.ops.int8 import Int8Groups
from frugalore.ops.projection import (
    Basis,
    Step,
    _check_basis,
    _check_side,
    _dense_basis,
    _parts,
    _update_rows,
    back_rows,
    checked_way_back,
    low_rank_shape,
    row_panels,
    short_side,
)
from frugalore.ops.residual import residual_add_
from frugalore.ops.scaled import float32_panels


def operand_dtype(grad: Tensor) -> torch.dtype:
    """The dtype of the operands of all products of one gradient."""
    on_gpu = grad.device.type == "cuda" and grad.dtype == torch.bfloat16
    return torch.bfloat16 if on_gpu else torch.float32


def product(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
    """``a b`` of float32 or bfloat16 operands, summed in float32 into the float32 ``out``."""
    if a.dtype == torch.float32:
        return matmul(a, b, out=out)
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return matmul(a.float(), b.float(), out=out)


def high_and_low(r: Tensor) -> tuple[Tensor, Tensor]:
    """Two bfloat16 tensors whose sum is the float32 ``r`` to 16 bits."""
    high = r.bfloat16()
    return high, (r - high.float()).bfloat16()


def way_back_of(r: Tensor, dense: Tensor, side: str) -> tuple[Tensor, Tensor]:
    """The operands whose product is the way back of the float32 ``r``, to 16 bits at least."""
    if dense.dtype == torch.float32:
        return r, dense
    return torch.cat(high_and_low(r), dim=1 if side == "right" else 0), torch.cat((dense, dense))


def _split_project_empty(grad, basis, basis_scale, basis_zero, side, group_size):
    check_matrix("grad", grad)
    _check_side(side)
    return grad.new_empty(low_rank_shape(grad.shape, basis.shape[0], side), dtype=torch.float32)


def _split_project(
    grad: Tensor,
    basis: Tensor,
    basis_scale: Tensor | None,
    basis_zero: Tensor | None,
    side: str,
    group_size: int,
) -> Tensor:
    r = _split_project_empty(grad, basis, basis_scale, basis_zero, side, group_size)
    length = grad.shape[1] if side == "right" else grad.shape[0]
    _check_basis(basis, basis_scale, None, length, f"grad {tuple(grad.shape)} and side {side!r}")
    dtype = operand_dtype(grad)
    dense = _dense_basis(basis, basis_scale, basis_zero, length, group_size, dtype)
    if grad.dtype == dtype:
        return product(grad, dense.t(), out=r) if side == "right" else product(dense, grad, out=r)
    if side == "right":
        for begin, end, panel in float32_panels(grad):
            matmul(panel, dense.t(), out=r[begin:end])
        return r
    r.zero_()
    for begin, end, panel in float32_panels(grad):
        r.add_(matmul(dense[:, begin:end], panel))
    return r


_split_project_op = define(
    "split_project(Tensor grad, Tensor basis, Tensor? basis_scale, Tensor? basis_zero, str side, "
    "int group_size) -> Tensor",
    _split_project,
    _split_project_empty,
)


@torch.no_grad()
def split_project(grad: Tensor, basis: Basis, *, side: str | None = None, group_size: int = 256) -> Tensor:
    """R in float32, precise enough that ``grad - back(R)`` is what lies outside of the subspace.

    Args:
        grad, basis, side, group_size: as in :func:`frugalore.ops.project`. A bfloat16 or float16 ``grad`` is
            converted in row panels on a CPU, so no float32 copy of it is made.

    Returns:
        ``[m, rank]`` (right) or ``[rank, n]`` (left), float32. A non-finite element of ``grad`` makes R
        non-finite.

    Raises:
        TypeError: another dtype. ValueError: shapes or devices that do not fit together.
    """
    check_matrix("grad", grad)
    parts = _parts(basis)
    check_same_device("basis", parts[0], grad.device)
    return _split_project_op(grad, *parts, side or short_side(grad.shape), group_size)


def check_split(weight: list[Tensor], direction: Tensor, r: Tensor, grad: Tensor) -> None:
    """TypeError or ValueError unless R and the gradient fit to a weight and a direction that were checked."""
    check_matrix("r", r, (torch.float32,))
    if r.shape != direction.shape:
        raise ValueError(f"r: the shape of direction {tuple(direction.shape)} expected, got {tuple(r.shape)}")
    check_matrix("grad", grad)
    if grad.shape != weight[0].shape:
        expected = tuple(weight[0].shape)
        raise ValueError(f"grad: the shape of weight {expected} expected, got {tuple(grad.shape)}")
    if not grad.is_contiguous():
        raise ValueError(f"grad: a contiguous tensor expected, got strides {grad.stride()}")
    for name, x in (("r", r), ("grad", grad)):
        check_same_device(name, x, weight[0].device)


def _split_back_update(
    weight: list[Tensor],
    direction: Tensor,
    r: Tensor,
    basis: Tensor,
    basis_scale: Tensor | None,
    basis_zero: Tensor | None,
    grad: Tensor,
    side: str,
    outside: str,
    inside_scale: float,
    outside_scale: float,
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
    m, n = grad.shape
    dtype = operand_dtype(grad)
    length = n if side == "right" else m
    dense = _dense_basis(basis, basis_scale, basis_zero, length, basis_group_size, dtype)
    direction = direction.to(dtype)
    r, dense_of_r = way_back_of(r, dense, side)
    step = Step(lr, progress, alpha, weight_decay, decay, seed, tensor_id, rounding)
    panels = None
    for start, stop in row_panels(grad.shape, 8, panel_bytes):
        panels = grad.new_empty((2, stop, n), dtype=torch.float32) if panels is None else panels
        update, projected = panels[0, : stop - start], panels[1, : stop - start]
        back_rows(direction, dense, side, start, stop, update, product)
        back_rows(r, dense_of_r, side, start, stop, projected, product)
        scales = {"inside_scale": inside_scale, "outside_scale": outside_scale}
        residual_add_(update, grad[start:stop], projected, outside=outside, **scales)
        _update_rows(weight, start, stop, update, step, group_size)


_split_back_update_op = define(
    "split_back_update_(Tensor(a!)[] weight, Tensor direction, Tensor r, Tensor basis, Tensor? basis_scale, "
    "Tensor? basis_zero, Tensor grad, str side, str outside, float inside_scale, float outside_scale, "
    "Tensor lr, Tensor progress, float alpha, float weight_decay, str decay, int seed, int tensor_id, "
    "str rounding, int group_size, int basis_group_size, int panel_bytes) -> ()",
    _split_back_update,
    no_outputs,
)


@torch.no_grad()
def split_back_update_(
    weight: Tensor | Int8Groups,
    direction: Tensor,
    r: Tensor,
    basis: Basis,
    grad: Tensor,
    step: Step,
    *,
    outside: str = "sign",
    inside_scale: float = 1.0,
    outside_scale: float = 1.0,
    side: str | None = None,
    group_size: int = 256,
    basis_group_size: int = 256,
    panel_bytes: int | None = None,
) -> None:
    """FRUGAL's step in the subspace of a basis: a direction inside, a rule without state outside; formula at
    the head of this module.

    In row panels: two products into a workspace of ``panel_bytes``, one pass that joins both parts and one
    that writes the weight.

    Args:
        weight, direction, basis, side, group_size, basis_group_size: as in
            :func:`frugalore.ops.project_back_update_`.
        r: of :func:`split_project` with the same ``grad`` and ``basis``; a rule that works in place takes a
            copy of it.
        grad: the shape of ``weight``, float32, bfloat16 or float16, contiguous.
        step: nothing is written where its progress says that the update was skipped.
        outside: "sign" (sign(0) = 0) or "sgd". Where the gradient is not finite, the element stays.
        inside_scale, outside_scale: finite factors of the two parts.
        panel_bytes: default :data:`frugalore.ops.projection.PANEL_BYTES` of the device.

    Raises:
        TypeError: another dtype. ValueError: shapes, devices or options that do not fit together, named with
            both values. The weight is then untouched.
    """
    is_second("outside", outside, "sign", "sgd")
    way = checked_way_back(weight, direction, basis, step, side, panel_bytes)
    check_split(way.weight, direction, r, grad)
    scales = (inside_scale, outside_scale)
    sizes = (group_size, basis_group_size, way.panel_bytes)
    _split_back_update_op(
        way.weight, direction, r, *way.basis, grad, way.side, outside, *scales, *way.step, *sizes
    )
    mark_written(way.weight)
