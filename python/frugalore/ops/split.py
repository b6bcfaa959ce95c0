"""A step of FRUGAL (arXiv 2411.07837, algorithm 1) in one pass: one rule inside a selection, another outside.

With ``g`` the gradient and ``keep = 1 - lr weight_decay``, an element moves by::

    inside    w = keep w - lr inside_scale direction       direction and state of AdamW, SGDM or Lion
    outside   w = keep w - lr outside_scale f(g)           f(g) = sign(g), g, or 0 ("none")

with ``decay="after"`` by ``keep (w - lr ..)``. Directions are those of :mod:`frugalore.ops.adamw` and
:mod:`frugalore.ops.momentum`; state exists for the elements inside only, in float32, where
:class:`frugalore.ops.Selection` says.
"""A gradient split into the parts inside and outside of a low-rank subspace, and FRUGAL's step with both.

FRUGAL (arXiv 2411.07837) moves a weight by a rule with state inside of the subspace and by one without state
outside of it. With R the gradient seen from the subspace and D the direction that a rule made of R:

    w <- keep w + lr alpha (inside_scale back(D) + outside_scale f(G - back(R)))        f = sign or identity

A sign looks at the smallest of residuals, so R and its way back are made with more precision than those of
:mod:`frugalore.ops.projection`: R is float32 whatever the dtype of the gradient, and so are the sums of all
products. The operands are float32 too, but for a bfloat16 gradient on a GPU: there they are bfloat16, where
the same rounded basis serves both ways, and R goes back as the sum of two bfloat16 numbers,
``back(R) = back(high) + back(low)``, in one product of twice the rank. (float32 products on a GPU are torch's,
whose default is full precision; TF32, if it is allowed, spoils the signs.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from frugalore import _C
from frugalore.ops._options import beta_pair, is_second, lr_on_device, seed_bits
from frugalore.ops._registry import define, mark_written, no_outputs
from frugalore.ops.momentum import checked_nesterov
from frugalore.ops.selection import Selection

#: The order of ``SplitRule`` and ``OutsideRule`` in ``csrc/core/split.h``.
RULES = ("adamw", "sgdm", "lion")
OUTSIDE = ("sign", "sgd", "none")


def _step(
    params,
    grads,
    firsts,
    seconds,
    progress,
    beta_powers,
    below,
    chosen,
    kinds,
    densities,
    selection_seeds,
    selection_ids,
    periods,
    fresh,
    tensor_ids,
    lr,
    rule,
    outside,
    inside_scale,
    outside_scale,
    first,
    second,
    eps,
    eps_raw,
    nesterov,
    weight_decay,
    decay_after,
    stochastic,
    seed,
) -> None:
    _C.split_step(
        params,
        grads,
        list(zip(kinds, below, chosen, densities, selection_seeds, selection_ids, periods, strict=True)),
        (firsts, seconds),
        progress,
        beta_powers,
        tensor_ids,
        fresh,
        (rule, outside, inside_scale, outside_scale),
        (first, second, eps, eps_raw, nesterov),
        (lr, weight_decay, decay_after, stochastic, seed),
    )


_step_op = define(
    "split_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] firsts, Tensor(c!)[] seconds, "
    "Tensor(d!)[] progress, Tensor(e!)[] beta_powers, Tensor?[] below, Tensor?[] chosen, int[] kinds, "
    "float[] densities, int[] selection_seeds, int[] selection_ids, int[] periods, bool[] fresh, "
    "int[] tensor_ids, Tensor lr, int rule, int outside, float inside_scale, float outside_scale, "
    "float first, float second, float eps, bool eps_raw, bool nesterov, float weight_decay, "
    "bool decay_after, bool stochastic, int seed) -> ()",
    _step,

from frugalore.ops._checks import check_matrix, check_same_device
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
from frugalore.ops.residual import check_outside, residual_add_
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


def _index_of(name: str, value: str, allowed: tuple[str, ...]) -> int:
    if value not in allowed:
        raise ValueError(f"{name}: one of {', '.join(map(repr, allowed))} expected, got {value!r}")
    return allowed.index(value)


def _state_lists(rule: str, moments: Sequence, beta_powers: Sequence | None) -> list[list[Tensor]]:
    """The two lists of state tensors and the powers of beta; what the rule lacks is empty."""
    wanted = 2 if rule == "adamw" else 1
    if len(moments) != wanted:
        raise ValueError(f"moments: {wanted} lists expected for {rule!r}, got {len(moments)}")
    if (beta_powers is None) == (rule == "adamw"):
        expected = "one record for each of params" if beta_powers is None else "None"
        got = "None" if beta_powers is None else f"{len(beta_powers)} records"
        raise ValueError(f"beta_powers: {expected} expected for {rule!r}, got {got}")
    return [list(moments[0]), list(moments[1]) if wanted == 2 else [], list(beta_powers or ())]


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
    lr: float | Tensor,
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
    """One step of a list of parameters, in place; formulas at the head of this module.

    A parameter of more than two dimensions is the matrix of its first dimension by all others, one of fewer
    is one row. An element inside is skipped as in :func:`frugalore.ops.adamw_step_`. One outside keeps its
    weight if its gradient or its fresh weight is not finite. ``progress[i][1]`` counts both; the step itself
    always counts as applied. With ``outside="none"`` gradients outside are not read, and without decay
    weights outside are not either. The result of a list is that of its tensors one by one.

    Args:
        params: float32, bfloat16 or float16, contiguous, of any shapes, all on one device.
        grads: as the parameters in shape and device, each float32, bfloat16 or float16.
        selections: what is inside each parameter. That ``below`` and ``chosen`` belong together is not
            checked: take them from :func:`frugalore.ops.select` or :meth:`Selection.of`.
        moments: ``(exp_avgs, exp_avg_sqs)`` for "adamw", ``(momenta,)`` for "sgdm" and "lion": lists of
            float32 tensors, each with as many elements as are inside (``Selection.state_shape``).
        progress: int64 [3], one for every parameter; zeros in the beginning.
        beta_powers: float64 [2], one for every parameter, ones in the beginning; for "adamw" only.
        rule: inside, "adamw", "sgdm" or "lion".
        lr: a number, or a float64 tensor with one element on the parameters' device.
        betas: of "adamw" and "lion", each in [0, 1). eps, eps_mode: of "adamw".
        momentum, dampening, nesterov: of "sgdm", as in :func:`frugalore.ops.sgdm_step_`.
        outside: "sign", "sgd" or "none".
        inside_scale, outside_scale: factors of the learning rate; weight decay does not have them.
        weight_decay, decay: for all elements, as in :func:`frugalore.ops.adamw_step_`.
        fresh: for each parameter whether its state starts anew: the old one counts as zero, whatever it
            holds, the powers of beta restart, and "sgdm" takes its first update. None is fresh without it.
        seed, tensor_ids, rounding: as in :func:`frugalore.ops.adamw_step_`.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, stride, device or option. Nothing is written.
    """
    params, progress, selections = list(params), list(progress), list(selections)
    rule_index, outside_index = _index_of("rule", rule, RULES), _index_of("outside", outside, OUTSIDE)
    eps_raw = is_second("eps_mode", eps_mode, "corrected", "raw")
    decay_after = is_second("decay", decay, "before", "after")
    stochastic = is_second("rounding", rounding, "nearest", "stochastic")
    if rule == "sgdm":
        nesterov = checked_nesterov(nesterov, momentum, dampening)
    numbers = (momentum, dampening) if rule == "sgdm" else beta_pair(betas)
    firsts, seconds, beta_powers = _state_lists(rule, moments, beta_powers)
    if not params:
        return
    kinds, below, chosen, densities, selection_seeds, selection_ids, periods = (
        zip(*[selection.arguments() for selection in selections], strict=True) if selections else [()] * 7
    )
    _step_op(
        params,
        list(grads),
        firsts,
        seconds,
        progress,
        beta_powers,
        below,
        chosen,
        kinds,
        densities,
        selection_seeds,
        selection_ids,
        periods,
        [False] * len(params) if fresh is None else list(fresh),
        list(range(len(params))) if tensor_ids is None else list(tensor_ids),
        lr_on_device(lr, params[0]),
        rule_index,
        outside_index,
        inside_scale,
        outside_scale,
        *numbers,
        eps,
        eps_raw,
        nesterov,
        weight_decay,
        decay_after,
        stochastic,
        seed_bits(seed),
    )
    mark_written((*params, *firsts, *seconds, *progress, *beta_powers))
def split_back_update_(
    weight: Tensor | Int8Groups,
    direction: Tensor,
    r: Tensor,
    basis: Basis,
    grad: Tensor,
    step: Step,
    side: str | None = None,
    group_size: int = 256,
    basis_group_size: int = 256,
    panel_bytes: int | None = None,
    """FRUGAL's step in the subspace of a basis: a direction inside, a rule without state outside; formula at
    the head of this module.

    In row panels: two products into a workspace of ``panel_bytes``, one pass that joins both parts and one
    that writes the weight.

        weight, direction, basis, side, group_size, basis_group_size: as in
            :func:`frugalore.ops.project_back_update_`.
        r: of :func:`split_project` with the same ``grad`` and ``basis``; a rule that works in place takes a
            copy of it.
        grad: the shape of ``weight``, float32, bfloat16 or float16, contiguous.
        step: nothing is written where its progress says that the update was skipped.
        outside: "sign" (sign(0) = 0) or "sgd". Where the gradient is not finite, the element stays.
        inside_scale, outside_scale: finite factors of the two parts.
        panel_bytes: default :data:`frugalore.ops.projection.PANEL_BYTES` of the device.

        TypeError: another dtype. ValueError: shapes, devices or options that do not fit together, named with
            both values. The weight is then untouched.
    check_outside(outside, ("sign", "sgd"))
    way = checked_way_back(weight, direction, basis, step, side, panel_bytes)
    check_split(way.weight, direction, r, grad)
    scales = (inside_scale, outside_scale)
    sizes = (group_size, basis_group_size, way.panel_bytes)
    _split_back_update_op(
        way.weight, direction, r, *way.basis, grad, way.side, outside, *scales, *way.step, *sizes
    mark_written(way.weight)
