"""Packed INT4 (specification). Formulas: :mod:`frugalore.ops.int4`."""

from __future__ import annotations

import torch
from torch import Tensor

from frugalore.reference.groups import from_groups, per_group, to_groups


def affine_quantize(x: Tensor, group_size: int, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and zero-point of asymmetric groups with codes 0..levels."""
    groups = to_groups(x.float(), group_size)
    lo, hi = groups.amin(-1).clamp(max=0.0), groups.amax(-1).clamp(min=0.0)
    scale = (hi - lo).clamp(min=1e-5) / levels
    zero = (-torch.round(lo / scale)).clamp(0, levels)
    codes = (torch.round(groups / scale[..., None]) + zero[..., None]).clamp(0, levels)
    finite = groups.isfinite().all(-1)
    scale, zero = torch.where(finite, scale, torch.nan), torch.where(finite, zero, 0)
    codes = torch.where(finite[..., None], codes, 0)
    shape = (*x.shape[:-1], scale.shape[-1])
    return (
        from_groups(codes.to(torch.uint8), x),
        scale.reshape(shape),
        zero.to(torch.uint8).reshape(shape),
    )


def affine_dequantize(
    codes: Tensor, scale: Tensor, zero: Tensor, group_size: int, dtype: torch.dtype
) -> Tensor:
    columns = codes.shape[-1]
    k = codes.float() - per_group(zero, group_size, columns).float()
    return (k * per_group(scale, group_size, columns)).to(dtype)


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
