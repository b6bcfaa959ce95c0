"""Adam's moments in 4 bits (Li, Chen & Zhu, "Memory Efficient Optimizers with 4-bit States", arXiv
2309.01507), in plain torch.

Two codes a byte, the even element in the low nibble; one float32 absmax for each 128 elements of the
flattened tensor (the last block may be short). A code's value times the absmax of its block is the moment:

    m    the signed dynamic map with three decades: 0, 1, and +-10^(i-2) times the midpoints of 2^i equal
         parts of [0.1, 1], i = 0, 1, 2. In ascending order; code 7 is 0.
    v    (k + 1) / 16, without a zero: a zero would make Adam's denominator vanish for a small element of a
         block. A block of zeros has absmax 0.

The nearest value is taken; half-way, the lower one. A block whose absmax is below 2^-126 counts as zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128


def map4bit(signed: bool) -> Tensor:
    """The 16 values in ascending order, float32."""
    if not signed:
        return torch.arange(1, 17, dtype=torch.float32) / 16
    magnitudes = [
        (0.1 + 0.9 * (part + 0.5) / 2**decade) * 10.0 ** (decade - 2)
        for decade in range(3)
        for part in range(2**decade)
    ]
    values = sorted([-x for x in magnitudes] + [0.0] + magnitudes + [1.0])
    return torch.tensor(values, dtype=torch.float32)


def quantize_moment4(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Packed codes, uint8 ``[ceil(numel / 2)]``, and absmax, float32 ``[ceil(numel / 128)]``."""
    flat = x.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    absmax = blocks.abs().amax(1)
    normal = absmax >= 2.0**-126
    absmax = torch.where(normal, absmax, 0.0)
    scaled = blocks * torch.where(normal, 1.0 / absmax, 0.0)[:, None]
    values = map4bit(signed).to(x.device)
    codes = torch.bucketize(scaled, (values[1:] + values[:-1]) / 2).to(torch.uint8).view(-1, 2)
    packed = codes[:, 0] | (codes[:, 1] << 4)
    return packed[: -(-flat.numel() // 2)].contiguous(), absmax


def dequantize_moment4(packed: Tensor, absmax: Tensor, signed: bool, shape: tuple[int, ...]) -> Tensor:
    """float32 in ``shape``."""
    codes = torch.stack([packed & 15, packed >> 4], dim=1).flatten().int()
    values = map4bit(signed).to(packed.device)[codes]
    values = torch.nn.functional.pad(values, (0, absmax.numel() * BLOCK - values.numel()))
    flat = (values.view(-1, BLOCK) * absmax[:, None]).flatten()
    count = 1
    for size in shape:
        count *= size
    return flat[:count].view(shape)
