"""What an optimizer checks of its groups and parameters before anything is written."""

from __future__ import annotations

import math
import numbers
import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from frugalore.subspace import matrix_shape
from frugalore.weights.int8_weight import FLOAT_DTYPES, Int8Weight


def check_lr(lr: float | Tensor) -> None:
    """TypeError or ValueError unless ``lr`` is a number, or a tensor of one element, of zero or more."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr: a tensor of one element expected, got shape {tuple(lr.shape)}")
    if isinstance(lr, Tensor):
        lr = lr.item() if lr.device.type == "cpu" else 0.0  # To look elsewhere would wait for the device.
    if not isinstance(lr, numbers.Real):
        raise TypeError(f"lr: a number or a tensor expected, got {lr!r}")
    if not 0.0 <= lr < math.inf:
        raise ValueError(f"lr: zero or more expected, got {lr!r}")


def check_write_options(group: dict[str, Any]) -> None:
    """The options of a group that decide how its weights are written."""
    if group["lr"] is not None or not group.get("relative_step"):  # Adafactor may make its own.
        check_lr(group["lr"])
    if not -(2**63) <= group["seed"] < 2**63:
        raise ValueError(f"seed: a 64-bit integer expected, got {group['seed']!r}")
    if group["rounding"] not in ("stochastic", "nearest"):
        raise ValueError(f"rounding: 'stochastic' or 'nearest' expected, got {group['rounding']!r}")


def check_parameter(name: str, p: Tensor) -> None:
    """TypeError or ValueError, naming the parameter, unless an optimizer can train it."""
    if type(p) not in (torch.nn.Parameter, Tensor, Int8Weight):
        raise TypeError(f"{name}: a torch.nn.Parameter or Int8Weight expected, got {type(p).__name__}")
    if p.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: dtype float32, bfloat16 or float16 expected, got {p.dtype}")
    if not p.is_contiguous():
        raise ValueError(f"{name}: a contiguous parameter expected, got strides {p.stride()}")


def check_matrix(name: str, p: Tensor, marker: str) -> None:
    """ValueError, naming the parameter, unless it has the dimensions that a group with ``marker`` needs."""
    if p.dim() < 2 or p.numel() == 0:
        raise ValueError(
            f"{name}: two dimensions or more expected in a group with {marker}, got shape {tuple(p.shape)}; "
            f"put it into a group without {marker}"
        )


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """ValueError, naming the option, unless its value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name}: one of {', '.join(allowed)} expected, got {value!r}")


def check_not_negative(name: str, value: Any) -> None:
    """ValueError, naming the option, unless its value is a finite number of zero or more."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0.0 <= value < math.inf:
        raise ValueError(f"{name}: zero or more expected, got {value!r}")


def check_unique(params: Any, known: dict[Tensor, str]) -> None:
    """ValueError, naming the parameter, if one of ``params`` (or pairs of a name and one) is in ``known``."""
    if isinstance(params, (list, tuple)):
        for entry in params:
            p = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
            if isinstance(p, Tensor) and p in known:
                raise ValueError(f"{known[p]}: in two param groups; a parameter belongs to one")


def check_gradient(name: str, grad: Tensor) -> None:
    if grad.layout != torch.strided:
        raise TypeError(f"{name}: a dense gradient expected, got layout {grad.layout}")
    if grad.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: a gradient in float32, bfloat16 or float16 expected, got {grad.dtype}")


def warn(message: str) -> None:
    """A warning that points at the line of the caller's own code."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("frugalore", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def warn_of_small_matrices(names: list[str], group: dict[str, Any]) -> None:
    """Name the matrices whose short side is below the group's rank."""
    rank = group["rank"]
    shapes = [(name, matrix_shape(p.shape)) for name, p in zip(names, group["params"], strict=True)]
    small = [(name, shape) for name, shape in shapes if rank > min(shape)]
    if not small:
        return
    name, shape = small[0]
    more = f"; likewise {len(small) - 1} more" if len(small) > 1 else ""
    warn(f"{name}: rank {rank} is larger than the short side of {shape}; {min(shape)} is used{more}")


def check_density(density: Any, name: str = "density") -> None:
    """ValueError, naming the option, unless ``density`` is a share."""
    if isinstance(density, bool) or not isinstance(density, numbers.Real) or not 0.0 <= density <= 1.0:
        raise ValueError(f"{name}: a number in [0, 1] expected, got {density!r}")
