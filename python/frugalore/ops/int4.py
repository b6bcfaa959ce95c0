"""Packed INT4 in asymmetric groups: the format of a quantised projection (Q-GaLore, arXiv 2407.08296).

Groups of ``group_size`` run along the last dimension; every row starts a new group and its last group may
be short. Two codes share a byte, the even column in the low nibble.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from frugalore import _C
from frugalore.ops._registry import define


class Int4Groups(NamedTuple):
    """A matrix in packed INT4: ``x ~ (code - zero) * scale`` per group."""

    packed: Tensor  #: uint8 [..., ceil(columns / 2)]
    scale: Tensor  #: float32 [..., ceil(columns / group_size)]
    zero: Tensor  #: uint8, the shape of ``scale``


def _with_columns(x: Tensor, columns: int) -> tuple[int, ...]:
    return (*x.shape[:-1], columns)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _check_layout(x: Tensor, group_size: int, name: str = "x") -> None:
    # Only what is needed to allocate the outputs; the binding checks the rest.
    if x.dim() < 1:
        raise ValueError(f"{name}: at least one dimension expected, got a scalar tensor")
    if group_size <= 0:
        raise ValueError(f"group_size: a positive integer expected, got {group_size}")


def _empty_groups(x: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    _check_layout(x, group_size)
    columns = x.shape[-1]
    groups = _with_columns(x, _ceil_div(columns, group_size))
    return (
        x.new_empty(_with_columns(x, _ceil_div(columns, 2)), dtype=torch.uint8),
        x.new_empty(groups, dtype=torch.float32),
        x.new_empty(groups, dtype=torch.uint8),
    )


def _quantize(x: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    packed, scale, zero = _empty_groups(x, group_size)
    _C.int4_quantize(x, packed, scale, zero, group_size)
    return packed, scale, zero


def _empty_float(packed: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    _check_layout(packed, 1, "packed")
    if columns < 0:
        raise ValueError(f"columns: zero or more expected, got {columns}")
    return packed.new_empty(_with_columns(packed, columns), dtype=dtype)


def _dequantize(
    packed: Tensor, scale: Tensor, zero: Tensor, columns: int, group_size: int, dtype: torch.dtype
) -> Tensor:
    x = _empty_float(packed, columns, dtype)
    _C.int4_dequantize(packed, scale, zero, x, group_size)
    return x


def _empty_packed(codes: Tensor) -> Tensor:
    _check_layout(codes, 1, "codes")
    return codes.new_empty(_with_columns(codes, _ceil_div(codes.shape[-1], 2)), dtype=torch.uint8)


def _pack(codes: Tensor) -> Tensor:
    packed = _empty_packed(codes)
    _C.int4_pack(codes, packed)
    return packed


def _unpack(packed: Tensor, columns: int) -> Tensor:
    codes = _empty_float(packed, columns, torch.uint8)
    _C.int4_unpack(packed, codes)
    return codes


_quantize_op = define(
    "int4_quantize(Tensor x, int group_size) -> (Tensor, Tensor, Tensor)", _quantize, _empty_groups
)
_dequantize_op = define(
    "int4_dequantize(Tensor packed, Tensor scale, Tensor zero, int columns, int group_size, "
    "ScalarType dtype) -> Tensor",
    _dequantize,
    lambda packed, scale, zero, columns, group_size, dtype: _empty_float(packed, columns, dtype),
)
_pack_op = define("int4_pack(Tensor codes) -> Tensor", _pack, _empty_packed)
_unpack_op = define(
    "int4_unpack(Tensor packed, int columns) -> Tensor",
    _unpack,
    lambda packed, columns: _empty_float(packed, columns, torch.uint8),
)


@torch.no_grad()
def int4_quantize(x: Tensor, group_size: int = 256) -> Int4Groups:
    """Quantise to 4 bits and pack two codes a byte.

    Args:
        x: float32, bfloat16 or float16, contiguous, ``[..., columns]``.
        group_size: elements that share a scale and a zero-point; positive and even.

    Returns:
        :class:`Int4Groups`. With ``lo = min(x, 0)`` and ``hi = max(x, 0)`` of a group,
        ``scale = max(hi - lo, 1e-5) / 15``, ``zero = clamp(-round(lo / scale), 0, 15)`` and
        ``code = clamp(round(x / scale) + zero, 0, 15)`` (Q-GaLore, section 3.2, with the zero included in
        the range so that groups of one sign do not saturate). A group with a NaN or infinite element gets
        scale NaN.

    Raises:
        TypeError: another dtype. ValueError: a bad shape, stride or group size.
    """
    return Int4Groups(*_quantize_op(x, group_size))


@torch.no_grad()
def int4_dequantize(
    packed: Tensor,
    scale: Tensor,
    zero: Tensor,
    columns: int,
    group_size: int = 256,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``(code - zero) * scale`` as a float tensor ``[..., columns]``; the inverse of :func:`int4_quantize`.

    Args:
        packed, scale, zero: as in :class:`Int4Groups`.
        columns: the length of a row; ``packed`` alone does not tell odd from even.
        dtype: float32, bfloat16 or float16; the product is rounded once.

    Raises:
        TypeError: another dtype. ValueError: a bad shape, stride or group size.
    """
    return _dequantize_op(packed, scale, zero, columns, group_size, dtype)


def int4_pack(codes: Tensor) -> Tensor:
    """Two 4-bit codes a byte: uint8 ``[..., columns]`` to uint8 ``[..., ceil(columns / 2)]``.

    The upper four bits of each code are ignored; the last nibble of an odd row is 0.

    Raises:
        TypeError: another dtype. ValueError: not contiguous, or a scalar.
    """
    return _pack_op(codes)


def int4_unpack(packed: Tensor, columns: int) -> Tensor:
    """One code a byte, uint8 ``[..., columns]``: the inverse of :func:`int4_pack`.

    Raises:
        TypeError: another dtype. ValueError: not contiguous, or a last dimension other than
            ``ceil(columns / 2)``.
    """
    return _unpack_op(packed, columns)
