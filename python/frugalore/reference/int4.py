"""Packed INT4 (specification). Formulas: :mod:`frugalore.ops.int4`."""

from __future__ import annotations

import torch
from torch import Tensor

from frugalore.reference.affine import affine_dequantize, affine_quantize


def int4_pack(codes: Tensor) -> Tensor:
    codes = torch.nn.functional.pad(codes & 15, (0, codes.shape[-1] % 2))
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def int4_unpack(packed: Tensor, columns: int) -> Tensor:
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)[..., :columns]


def int4_quantize(x: Tensor, group_size: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    codes, scale, zero = affine_quantize(x, group_size, 15)
    return int4_pack(codes), scale, zero


def int4_dequantize(
    packed: Tensor,
    scale: Tensor,
    zero: Tensor,
    columns: int,
    group_size: int = 256,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    return affine_dequantize(int4_unpack(packed, columns), scale, zero, group_size, dtype)
