"""Asymmetric integer groups (specification): what INT4 and INT8 share."""

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
