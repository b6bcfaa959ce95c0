"""INT8 weights in asymmetric groups (specification). Formulas: :mod:`frugalore.ops.int8`."""

from __future__ import annotations

import torch
from torch import Tensor

from frugalore.reference.affine import affine_dequantize, affine_quantize
from frugalore.reference.groups import from_groups, to_groups
from frugalore.reference.philox import PURPOSE_WEIGHT, random_words
from frugalore.reference.rounding import stochastic_round
from frugalore.reference.weight import step_scalars

_LIMIT = 2.0**60


def int8_quantize(x: Tensor, group_size: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    return affine_quantize(x, group_size, 255)


def int8_dequantize(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    group_size: int = 256,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    return affine_dequantize(codes, scale, zero, group_size, dtype)


def _requantized_grid(lo: Tensor, hi: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """A new scale and zero-point for values lo * scale ... hi * scale, with a margin."""
    low = lo * scale
    width = hi * scale - low
    new_scale = (width * 1.02).clamp(min=1e-5) / 253.0
    codes_below = -low / new_scale + (254.0 - width / new_scale) * 0.5
    return new_scale, codes_below.ceil()


def int8_stochastic_update_(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    update: Tensor,
    *,
    lr: float = 1.0,
    alpha: float = 1.0,
    weight_decay: float = 0.0,
    decay: str = "before",
    seed: int = 0,
    tensor_id: int = 0,
    progress: int = 1,
    first_index: int = 0,
    group_size: int = 256,
    rounding: str = "stochastic",
) -> None:
    """See ``csrc/core/int8.h`` for the formulas. Padding of a short group has q = z and no update."""
    scalars = step_scalars(lr, alpha, weight_decay, decay)
    inside = to_groups(torch.ones_like(codes), group_size).bool()
    s, z = scale.view(inside.shape[:2])[..., None], zero.view(inside.shape[:2])[..., None].float()
    q = torch.where(inside, to_groups(codes, group_size).float(), z)
    k = q - z

    usable = (s > 0) & (s < _LIMIT)
    per_code = torch.where(usable, scalars.coefficient / s, torch.nan)
    d = to_groups(update.float(), group_size) * per_code - k * scalars.one_minus_keep
    d = torch.where((d.abs() <= _LIMIT) & inside, d, 0.0)

    y = k + d
    lo, hi = y.amin(-1, keepdim=True).clamp(max=0.0), y.amax(-1, keepdim=True).clamp(min=0.0)
    outside = ((d < -q) | (d > 255.0 - q)).any(-1, keepdim=True)
    moved = (d != 0).any(-1, keepdim=True)
    fine_enough = (hi - lo >= 128.0) | (s <= torch.tensor(1e-5) / 253.0)
    kept = ~moved | (~outside & fine_enough)

    new_s, new_z = _requantized_grid(lo, hi, s)
    x = torch.where(kept, d, y * (s / new_s))
    if rounding == "stochastic":
        words = random_words(
            codes.numel(), seed, tensor_id, progress, PURPOSE_WEIGHT, first_index, codes.device
        )
        rounded = stochastic_round(x, to_groups(words.view(codes.shape), group_size))
    else:
        rounded = x.round()
    new_q = torch.where(kept, q, new_z) + rounded
    codes.copy_(from_groups(new_q, codes))
    scale.copy_(torch.where(kept, s, new_s).view(scale.shape))
    zero.copy_(torch.where(kept, z, new_z).view(zero.shape))
