"""The options that every op which writes a weight shares, from what users pass to what the raw ops take."""

from __future__ import annotations

import torch
from torch import Tensor


def lr_tensor(lr: float | Tensor, device: torch.device) -> Tensor:
    """float64 [1] on ``device``. A tensor is taken as it is, so a captured step can read a changing lr."""
    return lr if isinstance(lr, Tensor) else torch.tensor([lr], dtype=torch.float64, device=device)


def progress_tensor(progress: int | Tensor, device: torch.device) -> Tensor:
    """int64 [3] (csrc/core/progress.h). The number of a step means: this step is applied."""
    if isinstance(progress, Tensor):
        return progress
    return torch.tensor([progress, 0, 1], dtype=torch.int64, device=device)


def decay_is_after(decay: str) -> bool:
    if decay not in ("before", "after"):
        raise ValueError(f"decay: 'before' or 'after' expected, got {decay!r}")
    return decay == "after"


def is_stochastic(rounding: str) -> bool:
    if rounding not in ("stochastic", "nearest"):
        raise ValueError(f"rounding: 'stochastic' or 'nearest' expected, got {rounding!r}")
    return rounding == "stochastic"
