"""Philox4x32-10 and the library's counter convention (specification). See ``csrc/core/philox.h``."""

from __future__ import annotations

import torch
from torch import Tensor

PURPOSE_WEIGHT, PURPOSE_EXP_AVG, PURPOSE_EXP_AVG_SQ, PURPOSE_SKETCH, PURPOSE_SELECTION = range(5)

_MASK = 0xFFFFFFFF


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of ``a * b``; int64 holds 32-bit values, so the product is made in halves."""
    low, high = (b & 0xFFFF) * a, (b >> 16) * a
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox4x32(counter: list[Tensor], seed: int) -> list[Tensor]:
    """Four words of random bits for each counter; all values are 32-bit numbers in int64 tensors."""
    c0, c1, c2, c3 = counter
    key0, key1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        high0, low0 = _multiply(0xD2511F53, c0)
        high1, low1 = _multiply(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & _MASK, (key1 + 0xBB67AE85) & _MASK
    return [c0, c1, c2, c3]


def random_words(
    count: int, seed: int, tensor_id: int, step: int, purpose: int, first_index: int = 0, device=None
) -> Tensor:
    """The random words (int64 tensor of 32-bit values) of elements first_index ... first_index+count-1."""
    index = torch.arange(first_index, first_index + count, dtype=torch.int64, device=device)
    quad = index >> 2
    fixed = [torch.full_like(quad, tensor_id), torch.full_like(quad, (step & 0x0FFFFFFF) | purpose << 28)]
    words = torch.stack(philox4x32([quad & _MASK, quad >> 32, *fixed], seed))
    return words.gather(0, (index & 3)[None]).squeeze(0)
