"""INT8 weights in asymmetric groups (specification). Formulas: :mod:`frugalore.ops.int8`."""

from __future__ import annotations

import torch
from torch import Tensor

from frugalore.reference.affine import affine_dequantize, affine_quantize


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
