"""int8_quantize, int8_dequantize and int8_stochastic_update_."""

from __future__ import annotations

import torch

from cases import shapes
from frugalore import ops
from frugalore.reference import int8 as reference
from harness import Calls, Case

_FLOATS = (torch.float32, torch.bfloat16)


def _group_bytes(shape) -> int:
    return 5 * shapes.groups(shape)  # scale (f32) and zero-point (u8)


def _quantize(shape, dtype):
    def setup(device, peers) -> Calls:
        x = shapes.normal(shape, device, dtype)
        return Calls(lambda: ops.int8_quantize(x), lambda: reference.int8_quantize(x))

    moved = shape[0] * shape[1] * (dtype.itemsize + 1) + _group_bytes(shape)
    return Case("int8_quantize", shapes.name(shape), shapes.DTYPES[dtype], moved, setup)


def _dequantize(shape, dtype):
    def setup(device, peers) -> Calls:
        groups = ops.int8_quantize(shapes.normal(shape, device))
        return Calls(
            lambda: ops.int8_dequantize(*groups, shapes.GROUP, dtype),
            lambda: reference.int8_dequantize(*groups, shapes.GROUP, dtype),
        )

    moved = shape[0] * shape[1] * (dtype.itemsize + 1) + _group_bytes(shape)
    return Case("int8_dequantize", shapes.name(shape), shapes.DTYPES[dtype], moved, setup)


def _update(shape, dtype, rounding):
    def setup(device, peers) -> Calls:
        groups = ops.int8_quantize(shapes.normal(shape, device))
        update = shapes.normal(shape, device, dtype, std=1.0)
        options = {"weight_decay": 0.01, "seed": 1, "tensor_id": 3, "rounding": rounding}
        lr, progress = shapes.device_lr(device), shapes.device_progress(device)
        return Calls(
            lambda: ops.int8_stochastic_update_(*groups, update, lr=lr, progress=progress, **options),
            lambda: reference.int8_stochastic_update_(*groups, update, lr=shapes.LR, progress=1, **options),
        )

    # Codes read and written, the update read, the group's scale and zero-point read and written.
    moved = shape[0] * shape[1] * (2 + dtype.itemsize) + 2 * _group_bytes(shape)
    label = f"{shapes.DTYPES[dtype]} {rounding}"
    return Case("int8_stochastic_update_", shapes.name(shape), label, moved, setup)


def cases(size: str) -> list[Case]:
    found = []
    for shape in shapes.matrices(size):
        found += [_update(shape, dtype, "stochastic") for dtype in _FLOATS]
        found.append(_update(shape, torch.bfloat16, "nearest"))
    # The conversions run on a load, a forward and an export; one large shape says what they cost.
    for make in (_quantize, _dequantize):
        for shape in shapes.SMALL if size == "small" else (shapes.SMALL[1], shapes.ATTENTION):
            found += [make(shape, dtype) for dtype in _FLOATS]
    return found
