"""Checks that the ops composed in Python share. The bindings check what reaches a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_matrix(name: str, x: Tensor, dtypes: tuple[torch.dtype, ...] | None = FLOATS) -> None:
    """TypeError or ValueError unless ``x`` is a matrix of one of the dtypes."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: a tensor expected, got {type(x).__name__}")
    if x.dim() != 2:
        raise ValueError(f"{name}: a matrix expected, got shape {tuple(x.shape)}")
    if dtypes is not None and x.dtype not in dtypes:
        raise TypeError(f"{name}: dtype float32, bfloat16 or float16 expected, got {x.dtype}")


def check_same_device(name: str, x: Tensor, device: torch.device) -> None:
    """ValueError unless ``x`` is on ``device``."""
    if x.device != device:
        raise ValueError(f"{name}: device {device} expected, got {x.device}")
