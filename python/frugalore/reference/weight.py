"""Weight updates (specification). Formulas: :mod:`frugalore.ops.weight` and ``csrc/core/weight.h``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from frugalore.reference.philox import PURPOSE_WEIGHT, random_words
from frugalore.reference.rounding import round_to_dtype


class StepScalars(NamedTuple):
    """float32 scalars, made in double precision."""

    keep: Tensor
    one_minus_keep: Tensor
    coefficient: Tensor


def step_scalars(lr: float, alpha: float, weight_decay: float, decay: str) -> StepScalars:
    one_minus_keep = lr * weight_decay
    coefficient = lr * alpha * ((1.0 - one_minus_keep) if decay == "after" else 1.0)
    return StepScalars(
        torch.tensor(1.0 - one_minus_keep, dtype=torch.float32),
        torch.tensor(one_minus_keep, dtype=torch.float32),
        torch.tensor(coefficient, dtype=torch.float32),
    )


def weight_update_(
    weight: Tensor,
    update: Tensor,
    *,
    lr: float = 1.0,
    alpha: float = 1.0,
    weight_decay: float = 0.0,
    decay: str = "before",
    seed: int = 0,
    tensor_id: int = 0,
    progress: int = 1,
    first_index: int = 0,
    rounding: str = "stochastic",
) -> None:
    scalars = step_scalars(lr, alpha, weight_decay, decay)
    x = scalars.keep * weight.float() + scalars.coefficient * update.float()
    words = None
    if rounding == "stochastic":
        words = random_words(
            weight.numel(), seed, tensor_id, progress, PURPOSE_WEIGHT, first_index, weight.device
        )
        words = words.view(weight.shape)
    rounded = round_to_dtype(x, weight.dtype, words)
    weight.copy_(torch.where(x.isfinite() & rounded.isfinite(), rounded, weight))
