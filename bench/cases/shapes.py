"""Shapes and operands that the families share."""

from __future__ import annotations

import torch
from torch import Tensor

# The matrices of LLaMA-7B: attention, the two sides of the MLP, the embedding.
ATTENTION, GATE, DOWN, EMBEDDING = (4096, 4096), (11008, 4096), (4096, 11008), (32000, 4096)
SMALL = ((64, 256), (130, 1000))
GROUP = 256
LR = 1e-4


def matrices(size: str) -> tuple[tuple[int, int], ...]:
    """Weight shapes of a run: two that take no time, or also those of a 7B model."""
    return SMALL if size == "small" else (SMALL[1], (1024, 1024), ATTENTION, DOWN, GATE)


def groups(shape: tuple[int, int], group_size: int = GROUP) -> int:
    """Quantisation groups of a matrix: every row starts anew."""
    return shape[0] * -(-shape[1] // group_size)


def name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def normal(shape: tuple[int, ...], device: torch.device, dtype=torch.float32, std: float = 0.02) -> Tensor:
    """Fresh random operands; never zeros, on which hardware can run faster than on data."""
    return (torch.randn(shape, device=device) * std).to(dtype)


DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def device_lr(device: torch.device) -> Tensor:
    """The learning rate where an optimizer keeps it, so that no call pays for carrying it there."""
    return torch.full((1,), LR, dtype=torch.float64, device=device)


def device_progress(device: torch.device) -> Tensor:
    """The record of a parameter whose first update was applied."""
    return torch.tensor([1, 0, 1], device=device)
