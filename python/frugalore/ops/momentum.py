"""The rules with one float32 buffer a parameter: SGD with momentum, and Lion (arXiv 2302.06675).

With ``m`` the buffer, ``g`` the gradient::

    SGDM   m = momentum m + (1 - dampening) g        (m = momentum m + g at the first update)
           direction = m,  or  g + momentum m  with nesterov              as in torch.optim.SGD
    Lion   direction = sign(beta1 m + (1 - beta1) g);    m = beta2 m + (1 - beta2) g

    decay  "before"      w = (1 - lr weight_decay) w - lr direction
           "after"       w = (1 - lr weight_decay) (w - lr direction)

Decay is decoupled in both rules; that of torch.optim.SGD joins the gradient, and so the momentum. What is
skipped because it is not finite, and the record ``progress``, are those of :mod:`frugalore.ops.adamw`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from frugalore import _C
from frugalore.ops._options import beta_pair, is_second, lr_on_device, seed_bits
from frugalore.ops._registry import define, mark_written, no_outputs


def _step(
    params,
    grads,
    momenta,
    progress,
    lr,
    is_lion,
    first,
    second,
    nesterov,
    weight_decay,
    decay_after,
    stochastic,
    seed,
    tensor_ids,
) -> None:
    rule = (is_lion, first, second, nesterov)
    write = (lr, weight_decay, decay_after, stochastic, seed)
    _C.momentum_step(params, grads, momenta, progress, tensor_ids, rule, write)


def _direction(r, buffer, progress, is_lion, first, second, nesterov) -> None:
    _C.momentum_direction(r, buffer, progress, (is_lion, first, second, nesterov))


_step_op = define(
    "momentum_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta, Tensor(c!)[] progress, "
    "Tensor lr, bool is_lion, float first, float second, bool nesterov, float weight_decay, "
    "bool decay_after, bool stochastic, int seed, int[] tensor_ids) -> ()",
    _step,
    no_outputs,
)
_direction_op = define(
    "momentum_direction_(Tensor(a!) r, Tensor(b!) buffer, Tensor(c!) progress, bool is_lion, float first, "
    "float second, bool nesterov) -> ()",
    _direction,
    no_outputs,
)


def checked_nesterov(nesterov: bool, momentum: float, dampening: float) -> bool:
    if nesterov and (momentum <= 0 or dampening != 0):
        raise ValueError(f"nesterov: momentum > 0 and dampening 0 expected, got {momentum} and {dampening}")
    return bool(nesterov)


def _all_step(params, grads, momenta, progress, rule, lr, weight_decay, decay, seed, tensor_ids, rounding):
    params, momenta, progress = list(params), list(momenta), list(progress)
    decay_after = is_second("decay", decay, "before", "after")
    stochastic = is_second("rounding", rounding, "nearest", "stochastic")
    if not params:
        return
    _step_op(
        params,
        list(grads),
        momenta,
        progress,
        lr_on_device(lr, params[0]),
        *rule,
        weight_decay,
        decay_after,
        stochastic,
        seed_bits(seed),
        list(range(len(params))) if tensor_ids is None else list(tensor_ids),
    )
    mark_written((*params, *momenta, *progress))


@torch.no_grad()
def sgdm_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    progress: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay: str = "before",
    seed: int = 0,
    tensor_ids: Sequence[int] | None = None,
    rounding: str = "stochastic",
) -> None:
    """One step of SGD with momentum of a list of parameters, in place; formulas at the head of this module.

    An element whose fresh buffer or weight is not finite keeps both, and ``progress[i][1]`` counts it.

    Args:
        params: float32, bfloat16 or float16, contiguous, of any shapes, all on one device.
        grads: as the parameters in shape and device, each float32, bfloat16 or float16.
        momenta: the buffers m, float32, with as many elements as their parameter; zeros in the beginning.
        progress: int64 [3], one for every parameter; zeros in the beginning.
        lr: a number, or a float64 tensor with one element on the parameters' device.
        momentum, dampening: in [0, 1). nesterov: needs a momentum and no dampening.
        weight_decay, decay, seed, tensor_ids, rounding: as in :func:`frugalore.ops.adamw_step_`.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, stride, device or option. Nothing is written.
    """
    rule = (False, momentum, dampening, checked_nesterov(nesterov, momentum, dampening))
    _all_step(params, grads, momenta, progress, rule, lr, weight_decay, decay, seed, tensor_ids, rounding)


@torch.no_grad()
def lion_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    progress: Sequence[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    decay: str = "before",
    seed: int = 0,
    tensor_ids: Sequence[int] | None = None,
    rounding: str = "stochastic",
) -> None:
    """One Lion step of a list of parameters, in place; arguments and errors as in :func:`sgdm_step_`.

    Args:
        betas: each in [0, 1).
    """
    rule = (True, *beta_pair(betas), False)
    _all_step(params, grads, momenta, progress, rule, lr, weight_decay, decay, seed, tensor_ids, rounding)


def _all_direction(r: Tensor, buffer: Tensor, progress: Tensor, rule: tuple) -> Tensor:
    _direction_op(r, buffer, progress, *rule)
    mark_written((r, buffer, progress))
    return r


@torch.no_grad()
def sgdm_direction_(
    r: Tensor,
    buffer: Tensor,
    progress: Tensor,
    *,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> Tensor:
    """Replace a (projected) gradient by its direction, in place; formulas at the head of this module.

    If any element of ``r`` is NaN or larger than 2^63 in magnitude, the call is skipped: ``r`` becomes zero,
    the buffer stays, ``progress[1]`` grows by one and ``progress[2]`` is 0, which tells the op that writes
    the weight to do nothing.

    Args:
        r: float32, bfloat16 or float16, contiguous, of any shape.
        buffer: m, float32, with as many elements as ``r``.
        progress: the record of this parameter.
        momentum, dampening, nesterov: as in :func:`sgdm_step_`.

    Returns:
        ``r``.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, stride, device or option. Nothing is written.
    """
    rule = (False, momentum, dampening, checked_nesterov(nesterov, momentum, dampening))
    return _all_direction(r, buffer, progress, rule)


@torch.no_grad()
def lion_direction_(
    r: Tensor, buffer: Tensor, progress: Tensor, *, betas: tuple[float, float] = (0.9, 0.99)
) -> Tensor:
    """Replace a (projected) gradient by the sign that Lion follows; otherwise as :func:`sgdm_direction_`."""
    return _all_direction(r, buffer, progress, (True, *beta_pair(betas), False))
