"""The 8-bit dynamic maps (specification). Construction: ``csrc/core/dynamic_map.h``."""

from __future__ import annotations

import torch
from torch import Tensor

SIGNED_ZERO = 127  # the code of 0 in the signed map


def dynamic_levels(signed: bool) -> Tensor:
    """The magnitudes of a map, ascending from 0 to 1: 129 (signed) or 256 (unsigned), float32."""
    levels = [0.0]
    for decade, power in enumerate((1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)):
        parts = 2**decade if signed else 2 ** (decade + 1)
        levels += [(0.1 + 0.9 * (part + 0.5) / parts) * power for part in range(parts)]
    return torch.tensor([*levels, 1.0], dtype=torch.float64).float()


def dynamic_map(signed: bool) -> Tensor:
    """The 256 values in the order of the codes, which is ascending."""
    levels = dynamic_levels(signed)
    return torch.cat((-levels[1:-1].flip(0), levels)) if signed else levels


def dynamic_quantize(x: Tensor, signed: bool) -> Tensor:
    """The nearest code (uint8) of each value; half-way between two magnitudes, the smaller one."""
    levels = dynamic_levels(signed).double().to(x.device)
    midpoints = (levels[:-1] + levels[1:]) / 2  # exact
    level = torch.bucketize(x.abs().double().contiguous(), midpoints)
    if signed:
        below = SIGNED_ZERO - level.clamp(max=SIGNED_ZERO)
        level = torch.where(torch.signbit(x), below, SIGNED_ZERO + level)
    return level.to(torch.uint8)
