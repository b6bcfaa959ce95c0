"""adamw_step_ and adamw_direction_, with float32 moments.

The peer is torch's fused AdamW; its moments have the parameter's dtype, so that with bf16 it moves 14 bytes
an element where this op moves 22.
"""

from __future__ import annotations

import torch

from cases import peers as other
from cases import shapes
from cases.shapes import LR
from frugalore import ops
from frugalore.reference import adamw as reference
from harness import Calls, Case

ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}


def step_options(count: int, rounding: str) -> dict:
    """Options of a step over ``count`` tensors, but for the learning rate."""
    return {
        **ADAM,
        "weight_decay": 0.01,
        "eps_mode": "corrected",
        "decay": "before",
        "seed": 1,
        "tensor_ids": list(range(count)),
        "rounding": rounding,
    }


def progress_of(count: int, device) -> tuple[list, list]:
    """Fresh progress records and beta powers."""
    progress = [torch.zeros(3, dtype=torch.int64, device=device) for _ in range(count)]
    powers = [torch.ones(2, dtype=torch.float64, device=device) for _ in range(count)]
    return progress, powers


def _step(shape, count, dtype, rounding, label):
    def setup(device, peers) -> Calls:
        params = [shapes.normal(shape, device, dtype) for _ in range(count)]
        grads = [shapes.normal(shape, device, dtype) for _ in range(count)]
        states = [[torch.zeros_like(p, dtype=torch.float32) for p in params] for _ in range(2)]
        operands = (params, grads, *states, *progress_of(count, device))
        options, lr = step_options(count, rounding), shapes.device_lr(device)
        return Calls(
            lambda: ops.adamw_step_(*operands, lr=lr, **options),
            lambda: reference.adamw_step_(*operands, lr=LR, **options),
            other.adamw_steps(tuple(p for p in peers if p == "torch"), [shape] * count, device, dtype),
        )

    # Parameter and both moments read and written, the gradient read.
    moved = count * shape[0] * shape[1] * (3 * dtype.itemsize + 16)
    name = shapes.name(shape) if count == 1 else f"{count} x {shapes.name(shape)}"
    return Case("adamw_step_", name, label, moved, setup)


def _direction(shape):
    def setup(device, peers) -> Calls:
        r = shapes.normal(shape, device)
        first, second = torch.zeros_like(r), torch.zeros_like(r)
        progress, powers = progress_of(1, device)
        operands = (r, first, second, progress[0], powers[0])
        options = {**ADAM, "eps_mode": "corrected"}
        return Calls(
            lambda: ops.adamw_direction_(*operands, **options),
            lambda: reference.adamw_direction_(*operands, **options),
        )

    # R and both moments, read and written.
    return Case("adamw_direction_", shapes.name(shape), "f32", shape[0] * shape[1] * 24, setup)


def cases(size: str) -> list[Case]:
    many = (64, 32) if size == "small" else (200, 1024)  # many small tensors: biases, norms
    found = []
    for dtype, rounding in ((torch.float32, "nearest"), (torch.bfloat16, "stochastic")):
        label = f"{shapes.DTYPES[dtype]} {rounding}"
        found += [_step(shape, 1, dtype, rounding, label) for shape in shapes.matrices(size)]
        found.append(_step((1, many[1]), many[0], dtype, rounding, label))
    # The projected gradient of a 7B matrix at rank 1024.
    chosen = shapes.SMALL if size == "small" else ((1024, 4096), (1024, 11008))
    return found + [_direction(shape) for shape in chosen]
