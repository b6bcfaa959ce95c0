"""weight_update_: the fused write of a float weight, with stochastic rounding where it is bf16 or fp16."""

from __future__ import annotations

import torch

from cases import shapes
from frugalore import ops
from frugalore.reference import weight as reference
from harness import Calls, Case


def _update(shape, dtype, rounding):
    def setup(device, peers) -> Calls:
        weight = shapes.normal(shape, device, dtype)
        update = shapes.normal(shape, device, dtype, std=1.0)
        options = {
            "alpha": 1.0,
            "weight_decay": 0.01,
            "decay": "before",
            "seed": 1,
            "tensor_id": 3,
            "first_index": 0,
            "rounding": rounding,
        }
        lr, progress = shapes.device_lr(device), shapes.device_progress(device)
        return Calls(
            lambda: ops.weight_update_(weight, update, lr=lr, progress=progress, **options),
            lambda: reference.weight_update_(weight, update, lr=shapes.LR, progress=1, **options),
        )

    # The weight read and written, the update read.
    moved = shape[0] * shape[1] * 3 * dtype.itemsize
    return Case("weight_update_", shapes.name(shape), f"{shapes.DTYPES[dtype]} {rounding}", moved, setup)


def cases(size: str) -> list[Case]:
    kinds = (
        (torch.float32, "nearest"),
        (torch.bfloat16, "nearest"),
        (torch.bfloat16, "stochastic"),
    )
    return [_update(shape, dtype, rounding) for shape in shapes.matrices(size) for dtype, rounding in kinds]
