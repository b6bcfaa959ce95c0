"""The update of a float weight in place, with stochastic rounding where the format is short."""

from __future__ import annotations

import torch
from torch import Tensor

from frugalore import _C
from frugalore.ops._options import is_second, lr_on_device, progress_on_device, seed_bits
from frugalore.ops._registry import define, mark_written, no_outputs

_update_op = define(
    "weight_update_(Tensor(a!) weight, Tensor update, Tensor lr, Tensor progress, float alpha, "
    "float weight_decay, bool decay_after, int seed, int tensor_id, int first_index, bool stochastic) -> ()",
    _C.weight_update,
    no_outputs,
)


@torch.no_grad()
def weight_update_(
    weight: Tensor,
    update: Tensor,
    *,
    lr: float | Tensor = 1.0,
    alpha: float = 1.0,
    weight_decay: float = 0.0,
    decay: str = "before",
    seed: int = 0,
    tensor_id: int = 0,
    progress: int | Tensor = 1,
    first_index: int = 0,
    rounding: str = "stochastic",
) -> None:
    """Add an update to a float weight, in place.

    ``w <- keep * w + lr * alpha * update`` with ``keep = 1 - lr * weight_decay``, computed in float32.
    bfloat16 and float16 weights are rounded stochastically: to nearest, an update below half a unit in the
    last place would be lost at every step.

    Args:
        weight: float32, bfloat16 or float16, contiguous.
        update: float32, bfloat16 or float16, contiguous, the shape of ``weight``.
        lr: a number, or a float64 tensor with one element on the device of ``weight``.
        alpha: multiplies the update only, not the decay; negative for a descent direction.
        weight_decay: decoupled decay per unit of lr (Loshchilov & Hutter, arXiv 1711.05101).
        decay: "before" the update (torch, FRUGAL), or "after" it (bitsandbytes, GaLore, Q-GaLore): the
            update is then decayed too.
        seed, tensor_id: name the random stream; -2^63 to 2^64 - 1, and 0 ... 2^32 - 1.
        progress: the number of this step, from 0, which names the random words within the stream (modulo
            2^28); or the int64 [3] progress record of the parameter: a step it calls skipped writes nothing.
        first_index: index of the first element within the whole weight, for panels and shards.
        rounding: "stochastic" or "nearest" (ties to even). A float32 weight is always written as computed.

    An element whose new value is not finite keeps its value. Stochastic rounding ends at the largest finite
    number of the format.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, stride, device or option. Nothing is written.
    """
    _update_op(
        weight,
        update,
        lr_on_device(lr, weight),
        progress_on_device(progress, weight),
        alpha,
        weight_decay,
        is_second("decay", decay, "before", "after"),
        seed_bits(seed),
        tensor_id,
        first_index,
        is_second("rounding", rounding, "nearest", "stochastic"),
    )
    mark_written((weight,))
