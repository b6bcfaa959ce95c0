"""rademacher_: the random signs of a sketch."""

from __future__ import annotations

import torch

from cases import shapes
from frugalore import ops
from frugalore.reference import sketch as reference
from harness import Calls, Case


def _signs(shape, dtype):
    def setup(device, peers) -> Calls:
        out = torch.empty(shape, device=device, dtype=dtype)
        options = {"seed": 1, "tensor_id": 3, "period": 2}
        return Calls(
            lambda: ops.rademacher_(out, **options),
            lambda: reference.rademacher_(out, **options),
        )

    moved = shape[0] * shape[1] * dtype.itemsize
    return Case("rademacher_", shapes.name(shape), shapes.DTYPES[dtype], moved, setup)


def cases(size: str) -> list[Case]:
    # A sketch of a 7B matrix at rank 1024 with 8 columns more.
    chosen = shapes.SMALL if size == "small" else (shapes.SMALL[1], (4096, 1032))
    return [_signs(shape, dtype) for shape in chosen for dtype in (torch.float32, torch.bfloat16)]
