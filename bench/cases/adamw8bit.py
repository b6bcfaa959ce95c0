"""adamw8bit_step_ and adamw8bit_direction_: moments as 8-bit codes of a dynamic map, absmax per 256."""

from __future__ import annotations

import torch

from cases import peers as other
from cases import shapes
from cases.adamw import ADAM, progress_of, step_options
from frugalore import ops
from frugalore.reference import adamw8bit as reference
from harness import Calls, Case

BLOCK = 256


def empty_states(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """First and second moment with their absmax per block of the flattened tensor.

    The codes are drawn at random, so that the first call reads what a later call would.
    """
    blocks = -(-tensor.numel() // BLOCK)
    codes = [torch.randint(0, 256, tensor.shape, dtype=torch.uint8, device=tensor.device) for _ in range(2)]
    absmax = [torch.full((blocks,), value, device=tensor.device) for value in (1e-2, 1e-4)]
    return codes[0], absmax[0], codes[1], absmax[1]


def state_bytes(elements: int) -> int:
    """Bytes of reading and writing the codes and absmax of two moments."""
    return 2 * 2 * (elements + 4 * -(-elements // BLOCK))


def _step(shape, dtype, rounding):
    def setup(device, peers) -> Calls:
        param, grad = (shapes.normal(shape, device, dtype) for _ in range(2))
        operands = ([param], [grad], *([state] for state in empty_states(param)), *progress_of(1, device))
        options, lr = step_options(1, rounding), shapes.device_lr(device)
        return Calls(
            lambda: ops.adamw8bit_step_(*operands, lr=lr, **options),
            lambda: reference.adamw8bit_step_(*operands, lr=shapes.LR, **options),
            other.adamw_steps(peers, [shape], device, dtype),
        )

    elements = shape[0] * shape[1]
    moved = elements * 3 * dtype.itemsize + state_bytes(elements)
    label = f"{shapes.DTYPES[dtype]} {rounding}"
    return Case("adamw8bit_step_", shapes.name(shape), label, moved, setup)


def _direction(shape):
    def setup(device, peers) -> Calls:
        r = shapes.normal(shape, device)
        progress, powers = progress_of(1, device)
        operands = (r, *empty_states(r), progress[0], powers[0])
        options = {**ADAM, "eps_mode": "corrected"}
        return Calls(
            lambda: ops.adamw8bit_direction_(*operands, **options),
            lambda: reference.adamw8bit_direction_(*operands, **options),
        )

    elements = shape[0] * shape[1]
    moved = elements * 8 + state_bytes(elements)
    return Case("adamw8bit_direction_", shapes.name(shape), "f32", moved, setup)


def cases(size: str) -> list[Case]:
    chosen = (*shapes.matrices(size), *(() if size == "small" else (shapes.EMBEDDING,)))
    kinds = ((torch.float32, "nearest"), (torch.bfloat16, "stochastic"))
    found = [_step(shape, dtype, rounding) for shape in chosen for dtype, rounding in kinds]
    low_rank = shapes.SMALL if size == "small" else ((1024, 4096), (1024, 11008))
    return found + [_direction(shape) for shape in low_rank]
