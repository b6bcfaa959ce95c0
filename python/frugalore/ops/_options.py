"""Options of the optimizer ops: words to flags, numbers to tensors on the device."""

from __future__ import annotations

import torch
from torch import Tensor


def is_second(name: str, value: str, first: str, second: str) -> bool:
    """True for ``second``, False for ``first``, ValueError for anything else."""
    if value not in (first, second):
        raise ValueError(f"{name}: {first!r} or {second!r} expected, got {value!r}")
    return value == second


def lr_on_device(lr: float | Tensor, like: Tensor) -> Tensor:
    """The learning rate as float64 ``[1]`` on the device of ``like``. A tensor is passed through."""
    if isinstance(lr, Tensor):
        return lr
    return torch.full((1,), lr, dtype=torch.float64, device=like.device)


def progress_on_device(progress: int | Tensor, like: Tensor) -> Tensor:
    """A progress record, int64 ``[3]`` (csrc/core/progress.h). The number of a step means: it is applied."""
    if isinstance(progress, Tensor):
        return progress
    return torch.tensor([progress, 0, 1], dtype=torch.int64, device=like.device)
