"""One step of GaLore with AdamW in plain torch (specification), after algorithm 2 of arXiv 2403.03507.

Written to be read beside the paper; slow, in the dtype of its arguments. The bases are given, because entries
of singular vectors cannot be compared; everything after them is specified.
"""

from __future__ import annotations

import math

from torch import Tensor


def project(grad: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """R = A G Bᵀ with the bases that there are, one vector a row: ``left`` A ``[rank, m]``, ``right`` B
    ``[rank, n]``."""
    if right is not None:
        grad = grad @ right.t()
    return grad if left is None else left @ grad


def project_back(r: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Aᵀ R B."""
    if left is not None:
        r = left.t() @ r
    return r if right is None else r @ right


def galore_adamw_step_(
    weight: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    left: Tensor | None = None,
    right: Tensor | None = None,
) -> None:
    """The published step, in place; ``step`` counts from 1. Without bases it is AdamW with a raw eps."""
    beta1, beta2 = betas
    r = project(grad, left, right)
    exp_avg.mul_(beta1).add_(r, alpha=1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(r, r, value=1 - beta2)
    step_size = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    direction = exp_avg / (exp_avg_sq.sqrt() + eps)
    weight.add_(project_back(direction, left, right), alpha=-step_size * scale)
    weight.mul_(1 - lr * weight_decay)
