"""A step of FRUGAL (arXiv 2411.07837, algorithm 1) in one pass: one rule inside a selection, another outside.

With ``g`` the gradient and ``keep = 1 - lr weight_decay``, an element moves by::

    inside    w = keep w - lr inside_scale direction       direction and state of AdamW, SGDM or Lion
    outside   w = keep w - lr outside_scale f(g)           f(g) = sign(g), g, or 0 ("none")

with ``decay="after"`` by ``keep (w - lr ..)``. Directions are those of :mod:`frugalore.ops.adamw` and
:mod:`frugalore.ops.momentum`; state exists for the elements inside only, in float32, where
:class:`frugalore.ops.Selection` says.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from frugalore import _C
from frugalore.ops._options import (
    OUTSIDE_RULES,
    beta_pair,
    index_of,
    is_second,
    lr_on_device,
    seed_bits,
)
from frugalore.ops._registry import define, mark_written, no_outputs
from frugalore.ops.momentum import checked_nesterov
from frugalore.ops.selection import Selection

#: The order of ``SplitRule`` in ``csrc/core/split.h``.
RULES = ("adamw", "sgdm", "lion")


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
    no_outputs,
)


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
    rule_index, outside_index = index_of("rule", rule, RULES), index_of("outside", outside, OUTSIDE_RULES)
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
        zip(*[s.arguments(f"selections[{i}]") for i, s in enumerate(selections)], strict=True)
        if selections
        else [()] * 7
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
