"""Weight updates (specification). Formulas: :mod:`frugalore.ops.weight` and ``csrc/core/weight.h``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from frugalore.reference.philox import PURPOSE_WEIGHT, random_words


class StepScalars(NamedTuple):
    """float32 scalars, made in double precision."""

    keep: Tensor
    one_minus_keep: Tensor
    coefficient: Tensor


def step_scalars(lr: float, alpha: float, weight_decay: float, decay: str) -> StepScalars:
    one_minus_keep = lr * weight_decay
    coefficient = lr * alpha * ((1.0 - one_minus_keep) if decay == "after" else 1.0)
    return StepScalars(
        torch.tensor(1.0 - one_minus_keep, dtype=torch.float32),
        torch.tensor(one_minus_keep, dtype=torch.float32),
        torch.tensor(coefficient, dtype=torch.float32),
    )


def stochastic_round(x: Tensor, words: Tensor) -> Tensor:
    """float32 to whole numbers (int64): the fraction of the magnitude against 31 random bits."""
    magnitude = x.abs()
    whole = magnitude.trunc()
    threshold = ((magnitude - whole) * 2147483648.0).long()
    rounded = whole.long() + ((words >> 1) < threshold).long()
    return torch.where(x < 0, -rounded, rounded)


def stochastic_bf16(x: Tensor, words: Tensor) -> Tensor:
    bits = x.view(torch.int32).long() & 0xFFFFFFFF
    rounded = bits + (words >> 16)
    kept = torch.where(rounded & 0x7F800000 == 0x7F800000, bits, rounded)
    return (kept >> 16).to(torch.uint16).view(torch.bfloat16)


def stochastic_f16(x: Tensor, words: Tensor) -> Tensor:
    bits = x.view(torch.int32).long() & 0xFFFFFFFF
    sign, magnitude = (bits >> 16) & 0x8000, x.abs()
    smallest_normal = 2.0**-14
    small = magnitude < smallest_normal
    subnormal = stochastic_round(torch.where(small, magnitude, 0.0) * 2.0**24, words)
    normal = ((bits & 0x7FFFFFFF) + (words >> 19) - 0x38000000) >> 13
    result = torch.where(small, subnormal, normal)
    result = torch.where(magnitude >= 65504.0, 0x7BFF, result.clamp(max=0x7BFF))
    return (sign | result).to(torch.uint16).view(torch.float16)


def stochastic_from_float(x: Tensor, words: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float32:
        return x
    return stochastic_bf16(x, words) if dtype == torch.bfloat16 else stochastic_f16(x, words)


def weight_update_(
    weight: Tensor,
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
    rounding: str = "stochastic",
) -> None:
    scalars = step_scalars(lr, alpha, weight_decay, decay)
    x = scalars.keep * weight.float() + scalars.coefficient * update.float()
    if rounding == "stochastic":
        words = random_words(weight.numel(), seed, tensor_id, progress, PURPOSE_WEIGHT, first_index)
        rounded = stochastic_from_float(x, words.view(weight.shape), weight.dtype)
    else:
        rounded = x.to(weight.dtype)
    weight.copy_(torch.where(x.isfinite() & rounded.isfinite(), rounded, weight))
