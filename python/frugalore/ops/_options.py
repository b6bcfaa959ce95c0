"""Options of the ops: words to flags, numbers to tensors on the device."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

#: State-free rules, in the order of ``OutsideRule`` in ``csrc/core/outside.h``.
OUTSIDE_RULES = ("sign", "sgd", "none")


def index_of(name: str, value: str, allowed: tuple[str, ...]) -> int:
    """Where ``value`` is among the allowed words; ValueError for anything else."""
    if value not in allowed:
        raise ValueError(f"{name}: one of {', '.join(map(repr, allowed))} expected, got {value!r}")
    return allowed.index(value)


def is_second(name: str, value: str, first: str, second: str) -> bool:
    """True for ``second``, False for ``first``, ValueError for anything else."""
    if value not in (first, second):
        raise ValueError(f"{name}: {first!r} or {second!r} expected, got {value!r}")
    return value == second


def lr_on_device(lr: float | Tensor, like: Tensor) -> Tensor:
    """The learning rate as float64 ``[1]`` on the device of ``like``. A tensor is passed through."""
    if isinstance(lr, Tensor):
        return lr
    if not -math.inf < lr < math.inf:
        raise ValueError(f"lr: a finite number expected, got {lr}")
    return torch.full((1,), lr, dtype=torch.float64, device=like.device)


def progress_on_device(progress: int | Tensor, like: Tensor) -> Tensor:
    """A progress record, int64 ``[3]`` (csrc/core/progress.h). The number of a step means: it is applied."""
    if isinstance(progress, Tensor):
        return progress
    step = operator.index(progress)
    if not 0 <= step < 2**63:
        raise ValueError(f"progress: the number of a step, 0 to 2^63 - 1, expected, got {step}")
    return torch.tensor([step, 0, 1], dtype=torch.int64, device=like.device)


def seed_bits(seed: int) -> int:
    """The 64 bits of a seed as a signed number. -2^63 to 2^64 - 1, as in torch.manual_seed."""
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed: -2^63 to 2^64 - 1 expected, got {seed}")
    return seed - 2**64 if seed >= 2**63 else seed


def beta_pair(betas: Sequence[float]) -> tuple[float, float]:
    """beta1 and beta2; the binding checks their range."""
    if len(betas) != 2:
        raise ValueError(f"betas: two numbers expected, got {tuple(betas)}")
    beta1, beta2 = betas
    return beta1, beta2
