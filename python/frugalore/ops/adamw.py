"""AdamW (Loshchilov & Hutter, arXiv 1711.05101) with float32 moments, in the conventions of its sources.

With ``t`` the updates of this parameter so far, this one included, and ``g`` the gradient::

    m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2

    eps_mode "corrected"   direction = m / (1 - beta1^t) / (sqrt(v) / sqrt(1 - beta2^t) + eps)
             "raw"         direction = m / (1 - beta1^t) * sqrt(1 - beta2^t) / (sqrt(v) + eps)

    decay    "before"      w = (1 - lr weight_decay) w - lr direction
             "after"       w = (1 - lr weight_decay) (w - lr direction)

torch and FRUGAL (arXiv 2411.07837) are corrected and before, bitsandbytes and Q-GaLore (arXiv 2407.08296)
corrected and after, GaLore (arXiv 2403.03507) raw and after.

Each parameter has a progress record on its device, advanced there, so that a step needs no host round trip:

* ``progress``, int64 ``[3]``: updates ``t``; what was skipped because it was not finite; 1 if the last call
  applied its update. Begins as zeros.
* ``beta_powers``, float64 ``[2]``: ``beta1^t, beta2^t`` as running products. Begins as ones.
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
    exp_avgs,
    exp_avg_sqs,
    progress,
    beta_powers,
    lr,
    beta1,
    beta2,
    eps,
    weight_decay,
    eps_raw,
    decay_after,
    stochastic,
    seed,
    tensor_ids,
) -> None:
    _C.adamw_step(
        params,
        grads,
        (exp_avgs, exp_avg_sqs),
        progress,
        beta_powers,
        tensor_ids,
        (beta1, beta2, eps, eps_raw),
        (lr, weight_decay, decay_after, stochastic, seed),
    )


def _direction(r, exp_avg, exp_avg_sq, progress, beta_powers, beta1, beta2, eps, eps_raw) -> None:
    _C.adamw_direction(r, exp_avg, exp_avg_sq, progress, beta_powers, (beta1, beta2, eps, eps_raw))


_step_op = define(
    "adamw_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] progress, Tensor(e!)[] beta_powers, Tensor lr, float beta1, float beta2, float eps, "
    "float weight_decay, bool eps_raw, bool decay_after, bool stochastic, int seed, int[] tensor_ids) -> ()",
    _step,
    no_outputs,
)
_direction_op = define(
    "adamw_direction_(Tensor(a!) r, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!) progress, "
    "Tensor(e!) beta_powers, float beta1, float beta2, float eps, bool eps_raw) -> ()",
    _direction,
    no_outputs,
)


@torch.no_grad()
def adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    progress: Sequence[Tensor],
    beta_powers: Sequence[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    eps_mode: str = "corrected",
    decay: str = "before",
    seed: int = 0,
    tensor_ids: Sequence[int] | None = None,
    rounding: str = "stochastic",
) -> None:
    """One AdamW step of a list of parameters, in place; formulas at the head of this module.

    An element whose fresh moments or weight are not finite (its gradient is NaN, infinite or too large to be
    squared) keeps its weight and its moments, and ``progress[i][1]`` counts it. The step itself always
    counts as applied. The result of a list is that of its tensors one by one.

    Args:
        params: float32, bfloat16 or float16, contiguous, of any shapes, all on one device.
        grads: as the parameters in shape and device, each float32, bfloat16 or float16.
        exp_avgs, exp_avg_sqs: the moments m and v, float32, with as many elements as their parameter.
        progress, beta_powers: one record each for every parameter.
        lr: a number, or a float64 tensor with one element on the parameters' device.
        betas, eps, weight_decay: as above; each beta in [0, 1).
        eps_mode: "corrected" or "raw".
        decay: "before" or "after".
        seed: key of the random numbers that round bfloat16 and float16 parameters.
        tensor_ids: for each parameter the id of its random stream; 0, 1, 2, ... without it.
        rounding: "stochastic" or "nearest"; float32 parameters need neither.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, stride, device or option. Nothing is written.
    """
    params = list(params)
    eps_raw = is_second("eps_mode", eps_mode, "corrected", "raw")
    decay_after = is_second("decay", decay, "before", "after")
    stochastic = is_second("rounding", rounding, "nearest", "stochastic")
    if not params:
        return
    exp_avgs, exp_avg_sqs = list(exp_avgs), list(exp_avg_sqs)
    progress, beta_powers = list(progress), list(beta_powers)
    _step_op(
        params,
        list(grads),
        exp_avgs,
        exp_avg_sqs,
        progress,
        beta_powers,
        lr_on_device(lr, params[0]),
        *beta_pair(betas),
        eps,
        weight_decay,
        eps_raw,
        decay_after,
        stochastic,
        seed_bits(seed),
        list(range(len(params))) if tensor_ids is None else list(tensor_ids),
    )
    mark_written((*params, *exp_avgs, *exp_avg_sqs, *progress, *beta_powers))


@torch.no_grad()
def adamw_direction_(
    r: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    progress: Tensor,
    beta_powers: Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_mode: str = "corrected",
) -> Tensor:
    """Replace a (projected) gradient by its AdamW direction, in place; formulas at the head of this module.

    If any element of ``r`` is NaN or larger than 2^63 in magnitude, the call is skipped: ``r`` becomes zero,
    the moments and the bias corrections stay, ``progress[1]`` grows by one and ``progress[2]`` is 0, which
    tells the op that writes the weight to do nothing.

    Args:
        r: float32, bfloat16 or float16, contiguous, of any shape.
        exp_avg, exp_avg_sq: the moments m and v, float32, with as many elements as ``r``.
        progress, beta_powers: the record of this parameter.
        betas, eps, eps_mode: as in :func:`adamw_step_`.

    Returns:
        ``r``.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, stride, device or option. Nothing is written.
    """
    eps_raw = is_second("eps_mode", eps_mode, "corrected", "raw")
    _direction_op(r, exp_avg, exp_avg_sq, progress, beta_powers, *beta_pair(betas), eps, eps_raw)
    mark_written((r, exp_avg, exp_avg_sq, progress, beta_powers))
    return r
