"""AdamW with moments in 8 bits (Dettmers et al., "8-bit optimizers via block-wise quantization", arXiv
2110.02861). Formulas and conventions of the update: :mod:`frugalore.ops.adamw`.

The state of a tensor with ``count`` elements:

* ``exp_avg``, uint8, ``count`` codes of the signed dynamic map, and ``exp_avg_absmax``, float32
  ``[ceil(count / 256)]``: one for each block of 256 elements of the flattened tensor, the last block may be
  short. ``m = map[code] * absmax``.
* ``exp_avg_sq`` and ``exp_avg_sq_absmax``: the same for v, in the unsigned map.

All four begin as zeros. The update uses the fresh moments before they are quantised again.
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
    exp_avg_absmaxs,
    exp_avg_sqs,
    exp_avg_sq_absmaxs,
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
    _C.adamw8bit_step(
        params,
        grads,
        (exp_avgs, exp_avg_absmaxs, exp_avg_sqs, exp_avg_sq_absmaxs),
        progress,
        beta_powers,
        tensor_ids,
        (beta1, beta2, eps, eps_raw),
        (lr, weight_decay, decay_after, stochastic, seed),
    )


def _direction(
    r,
    exp_avg,
    exp_avg_absmax,
    exp_avg_sq,
    exp_avg_sq_absmax,
    progress,
    beta_powers,
    beta1,
    beta2,
    eps,
    eps_raw,
) -> None:
    _C.adamw8bit_direction(
        r,
        (exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax),
        progress,
        beta_powers,
        (beta1, beta2, eps, eps_raw),
    )


_step_op = define(
    "adamw8bit_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
    "Tensor(c!)[] exp_avg_absmaxs, Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] exp_avg_sq_absmaxs, "
    "Tensor(f!)[] progress, Tensor(g!)[] beta_powers, Tensor lr, float beta1, float beta2, float eps, "
    "float weight_decay, bool eps_raw, bool decay_after, bool stochastic, int seed, int[] tensor_ids) -> ()",
    _step,
    no_outputs,
)
_direction_op = define(
    "adamw8bit_direction_(Tensor(a!) r, Tensor(b!) exp_avg, Tensor(c!) exp_avg_absmax, "
    "Tensor(d!) exp_avg_sq, Tensor(e!) exp_avg_sq_absmax, Tensor(f!) progress, Tensor(g!) beta_powers, "
    "float beta1, float beta2, float eps, bool eps_raw) -> ()",
    _direction,
    no_outputs,
)


@torch.no_grad()
def adamw8bit_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_absmaxs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    exp_avg_sq_absmaxs: Sequence[Tensor],
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
    """One step of AdamW with 8-bit moments for a list of parameters, in place.

    An element whose fresh moments or weight are not finite keeps its weight, and its moments as they were
    before they are quantised with the rest of their block; ``progress[i][1]`` counts it.

    Args:
        params, grads: as in :func:`~frugalore.ops.adamw_step_`.
        exp_avgs, exp_avg_sqs: codes of the moments, uint8, with as many elements as their parameter.
        exp_avg_absmaxs, exp_avg_sq_absmaxs: float32 ``[ceil(count / 256)]``.
        progress, beta_powers: one record each for every parameter.
        lr, betas, eps, weight_decay, eps_mode, decay, seed, tensor_ids, rounding: as in
            :func:`~frugalore.ops.adamw_step_`. Q-GaLore and bitsandbytes: ``decay="after"``.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, stride, device or option. Nothing is written.
    """
    params = list(params)
    eps_raw = is_second("eps_mode", eps_mode, "corrected", "raw")
    decay_after = is_second("decay", decay, "before", "after")
    stochastic = is_second("rounding", rounding, "nearest", "stochastic")
    if not params:
        return
    written = [
        params,
        *map(list, (exp_avgs, exp_avg_absmaxs, exp_avg_sqs, exp_avg_sq_absmaxs, progress, beta_powers)),
    ]
    _step_op(
        params,
        list(grads),
        *written[1:],
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
    mark_written(tensor for tensors in written for tensor in tensors)


@torch.no_grad()
def adamw8bit_direction_(
    r: Tensor,
    exp_avg: Tensor,
    exp_avg_absmax: Tensor,
    exp_avg_sq: Tensor,
    exp_avg_sq_absmax: Tensor,
    progress: Tensor,
    beta_powers: Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_mode: str = "corrected",
) -> Tensor:
    """Replace a (projected) gradient by its AdamW direction, in place, with 8-bit moments.

    If any element of ``r`` is NaN or larger than 2^63 in magnitude, the call is skipped as in
    :func:`~frugalore.ops.adamw_direction_`, and the state stays to the bit.

    Args:
        r: float32, bfloat16 or float16, contiguous, of any shape.
        exp_avg, exp_avg_sq: codes of the moments, uint8, with as many elements as ``r``.
        exp_avg_absmax, exp_avg_sq_absmax: float32 ``[ceil(count / 256)]``.
        progress, beta_powers: the record of this parameter.
        betas, eps, eps_mode: as in :func:`~frugalore.ops.adamw_step_`.

    Returns:
        ``r``.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, stride, device or option. Nothing is written.
    """
    eps_raw = is_second("eps_mode", eps_mode, "corrected", "raw")
    written = (r, exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax, progress, beta_powers)
    _direction_op(*written, *beta_pair(betas), eps, eps_raw)
    mark_written(written)
    return r
