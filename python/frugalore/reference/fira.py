"""Fira (arXiv 2410.01623) in plain torch, in any float dtype (specification). Formulas:
:mod:`frugalore.ops.fira`; here the residual and its norm are made in full."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Keeps the quotients of norms finite.
NORM_EPS = 1e-8


@dataclass
class FiraState:
    """Moments in the subspace, the number of steps, and the norm of the last residual (None: none yet)."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int = 0
    last_norm: Tensor | None = None


def column_factors(n: Tensor, r: Tensor, side: str) -> Tensor:
    """``||N_j|| / (||R_j|| + 1e-8)`` for each column ("left") or row ("right"), as it multiplies a matrix."""
    dim = 0 if side == "left" else 1
    return n.norm(dim=dim, keepdim=True) / (r.norm(dim=dim, keepdim=True) + NORM_EPS)


def limited(s: Tensor, last_norm: Tensor | None, limit: float) -> tuple[Tensor, Tensor]:
    """S with a norm that grows by at most the factor ``limit``, and that norm."""
    norm = s.norm()
    if last_norm is None:
        return s, norm
    limiter = (norm / (last_norm + NORM_EPS)).clamp(min=limit) / limit
    return s / limiter, norm / limiter


@torch.no_grad()
def fira_step_(
    weight: Tensor,
    grad: Tensor,
    basis: Tensor,
    state: FiraState,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    limit: float = 1.01,
    mode: str = "code",
    side: str | None = None,
) -> None:
    side = side or ("right" if weight.shape[0] >= weight.shape[1] else "left")

    def back(x: Tensor) -> Tensor:
        return x @ basis if side == "right" else basis.t() @ x

    r = grad @ basis.t() if side == "right" else basis @ grad
    state.step += 1
    state.exp_avg = betas[0] * state.exp_avg + (1.0 - betas[0]) * r
    state.exp_avg_sq = betas[1] * state.exp_avg_sq + (1.0 - betas[1]) * r * r
    n = state.exp_avg / (state.exp_avg_sq.sqrt() + eps)
    correction = math.sqrt(1.0 - betas[1] ** state.step) / (1.0 - betas[0] ** state.step)
    if mode == "paper":
        n = correction * n
        s = column_factors(n, r, side) * (grad - back(r))
    else:
        s = column_factors(n, r, side) * (grad - scale * back(r))
    s, state.last_norm = limited(s, state.last_norm, limit)
    update = scale * (back(n) + s) if mode == "paper" else correction * (scale * back(n) + s)
    weight.copy_((1.0 - lr * weight_decay) * (weight - lr * update))
