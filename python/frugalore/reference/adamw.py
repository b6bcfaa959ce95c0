"""AdamW (specification). Formulas: :mod:`frugalore.ops.adamw`; what is skipped: ``csrc/core/adamw.h``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from frugalore.reference.philox import PURPOSE_WEIGHT, random_words
from frugalore.reference.rounding import round_to_dtype, sqrt32


class Scalars(NamedTuple):
    """The scalars of one update as float32 tensors; ``rest = 1 - beta``."""

    beta1: Tensor
    rest1: Tensor
    beta2: Tensor
    rest2: Tensor
    a: Tensor
    b: Tensor
    eps: Tensor


def _floats(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64).float() for value in values]


def adam_scalars(beta_powers: Tensor, betas: tuple[float, float], eps: float, eps_mode: str) -> Scalars:
    power1, power2 = beta_powers.tolist()
    correction1, correction2 = 1.0 - power1, math.sqrt(1.0 - power2)
    raw = eps_mode == "raw"
    a, b = (correction2 if raw else 1.0) / correction1, 1.0 if raw else 1.0 / correction2
    return Scalars(*_floats(betas[0], 1.0 - betas[0], betas[1], 1.0 - betas[1], a, b, eps))


def fresh_moments(s: Scalars, m: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    return s.beta1 * m + s.rest1 * g, s.beta2 * v + s.rest2 * (g * g)


def adam_direction(s: Scalars, m: Tensor, v: Tensor) -> Tensor:
    return (m * s.a) / (sqrt32(v) * s.b + s.eps)


def advance(progress: Tensor, beta_powers: Tensor, betas: tuple[float, float], applied: bool) -> None:
    progress[2] = int(applied)
    progress[0 if applied else 1] += 1
    if applied:
        beta_powers *= torch.tensor(betas, dtype=torch.float64, device=beta_powers.device)


def write_scalars(lr: float, weight_decay: float, decay: str, scale: float = 1.0) -> list[Tensor]:
    """``keep`` and ``coefficient`` of ``w <- keep w - coefficient direction``; ``scale`` goes with lr."""
    keep = 1.0 - lr * weight_decay
    return _floats(keep, lr * scale * (keep if decay == "after" else 1.0))


def step_elements(
    s: Scalars, w: Tensor, g: Tensor, m: Tensor, v: Tensor, keep32: Tensor, coefficient: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """New w, m, v (float32) and which elements were applied."""
    new_m, new_v = fresh_moments(s, m, v, g)
    new_w = keep32 * w - coefficient * adam_direction(s, new_m, new_v)
    applied = new_m.isfinite() & new_v.isfinite() & new_w.isfinite()
    return (
        torch.where(applied, new_w, w),
        torch.where(applied, new_m, m),
        torch.where(applied, new_v, v),
        applied,
    )


def write_weight(param: Tensor, w: Tensor, seed: int, tensor_id: int, step: int, rounding: str) -> None:
    """Round w (float32, any shape) to the dtype of the parameter and store it."""
    words = None
    if rounding == "stochastic" and param.dtype != torch.float32:
        words = random_words(w.numel(), seed, tensor_id, step, PURPOSE_WEIGHT, device=w.device)
    param.copy_(round_to_dtype(w.flatten(), param.dtype, words).view_as(param))


@torch.no_grad()
def adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    progress: Sequence[Tensor],
    beta_powers: Sequence[Tensor],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    eps_mode: str = "corrected",
    decay: str = "before",
    seed: int = 0,
    tensor_ids: Sequence[int] | None = None,
    rounding: str = "stochastic",
) -> None:
    keep32, coefficient = write_scalars(lr, weight_decay, decay)
    for i, (param, grad, m, v, record, powers) in enumerate(
        zip(params, grads, exp_avgs, exp_avg_sqs, progress, beta_powers, strict=True)
    ):
        advance(record, powers, betas, True)
        s = adam_scalars(powers, betas, eps, eps_mode)
        w, new_m, new_v, applied = step_elements(
            s, param.float(), grad.float(), m.view_as(param), v.view_as(param), keep32, coefficient
        )
        m.copy_(new_m.view_as(m))
        v.copy_(new_v.view_as(v))
        record[1] += int((~applied).sum())
        tensor_id = i if tensor_ids is None else tensor_ids[i]
        write_weight(param, w, seed, tensor_id, int(record[0]), rounding)


def direction_accepts(r: Tensor) -> bool:
    return bool((r.float().abs() <= 2.0**63).all())


@torch.no_grad()
def adamw_direction_(
    r: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    progress: Tensor,
    beta_powers: Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_mode: str = "corrected",
) -> Tensor:
    applied = direction_accepts(r)
    advance(progress, beta_powers, betas, applied)
    if not applied:
        return r.zero_()
    s = adam_scalars(beta_powers, betas, eps, eps_mode)
    m, v = fresh_moments(s, exp_avg.view_as(r), exp_avg_sq.view_as(r), r.float())
    exp_avg.copy_(m.view_as(exp_avg))
    exp_avg_sq.copy_(v.view_as(exp_avg_sq))
    return r.copy_(adam_direction(s, m, v).to(r.dtype))
