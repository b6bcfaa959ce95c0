"""Rounding of float32 to integers, bfloat16 and float16, to nearest or stochastically, and the square root
of IEEE 754 (specification)."""

from __future__ import annotations

import torch
from torch import Tensor


def stochastic_round(x: Tensor, words: Tensor) -> Tensor:
    """float32 to whole numbers (int64): the fraction of the magnitude against 31 random bits."""
    magnitude = x.abs()
    whole = magnitude.trunc()
    threshold = ((magnitude - whole) * 2147483648.0).long()
    rounded = whole.long() + ((words >> 1) < threshold).long()
    return torch.where(x < 0, -rounded, rounded)


def _from_bits(bits: Tensor, dtype: torch.dtype) -> Tensor:
    signed = torch.where(bits >= 0x8000, bits - 0x10000, bits)
    return signed.to(torch.int16).view(dtype)


def _stochastic_bfloat16(x: Tensor, words: Tensor) -> Tensor:
    bits = x.view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    rounded = bits + (words >> 16)
    overflow = (rounded & 0x7F800000) == 0x7F800000
    return _from_bits(torch.where(overflow, bits, rounded) >> 16, torch.bfloat16)


def _stochastic_float16(x: Tensor, words: Tensor) -> Tensor:
    magnitude = x.abs()
    bits = magnitude.view(torch.int32).to(torch.int64)
    subnormal = stochastic_round(magnitude.clamp(max=2.0**-14) * 2.0**24, words)
    normal = (bits + (words >> 19) - 0x38000000) >> 13
    result = torch.where(magnitude < 2.0**-14, subnormal, normal)
    result = torch.where(magnitude >= 65504.0, 0x7BFF, result).clamp(max=0x7BFF)
    return _from_bits(result | (torch.signbit(x).to(torch.int64) << 15), torch.float16)


def round_to_dtype(x: Tensor, dtype: torch.dtype, words: Tensor | None = None) -> Tensor:
    """x (float32) in ``dtype``: to nearest, or with ``words`` (32 random bits for each
    element, int64) up or down such that the expectation is x. What is not finite stays so; a finite x never
    becomes infinite by stochastic rounding."""
    if words is None or dtype == torch.float32:
        return x.to(dtype)
    stochastic = {torch.bfloat16: _stochastic_bfloat16, torch.float16: _stochastic_float16}[dtype]
    finite = x.isfinite()
    return torch.where(finite, stochastic(torch.where(finite, x, 0.0), words), x.to(dtype))


def sqrt32(x: Tensor) -> Tensor:
    """The correctly rounded square root of float32. ``torch.sqrt`` may call a vector library that is off by
    one unit in the last place; a root taken in float64 and rounded once is exact."""
    return x.double().sqrt().float()
