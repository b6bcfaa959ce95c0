"""int4_quantize and int4_dequantize."""

from __future__ import annotations

import torch

from cases import shapes
from frugalore import ops
from frugalore.reference import int4 as reference
from harness import Calls, Case


def _format_bytes(shape) -> int:
    # Packed codes, and scale (f32) and zero-point (u8) of each group.
    return shape[0] * -(-shape[1] // 2) + 5 * shapes.groups(shape)


def _quantize(shape, dtype):
    def setup(device, peers) -> Calls:
        x = shapes.normal(shape, device, dtype)
        return Calls(lambda: ops.int4_quantize(x), lambda: reference.int4_quantize(x))

    moved = shape[0] * shape[1] * dtype.itemsize + _format_bytes(shape)
    return Case("int4_quantize", shapes.name(shape), shapes.DTYPES[dtype], moved, setup)


def _dequantize(shape, dtype):
    def setup(device, peers) -> Calls:
        groups = ops.int4_quantize(shapes.normal(shape, device))
        options = (shape[1], shapes.GROUP, dtype)
        return Calls(
            lambda: ops.int4_dequantize(*groups, *options),
            lambda: reference.int4_dequantize(*groups, *options),
        )

    moved = shape[0] * shape[1] * dtype.itemsize + _format_bytes(shape)
    return Case("int4_dequantize", shapes.name(shape), shapes.DTYPES[dtype], moved, setup)


def cases(size: str) -> list[Case]:
    # The basis of a 7B matrix at rank 1024 is 1024 x 4096.
    full = (*shapes.SMALL[1:], (1024, 4096), shapes.ATTENTION)
    return [
        make(shape, dtype)
        for make in (_quantize, _dequantize)
        for shape in (shapes.SMALL if size == "small" else full)
        for dtype in (torch.float32, torch.bfloat16)
    ]
