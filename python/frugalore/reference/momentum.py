"""SGD with momentum and Lion (specification). Formulas: :mod:`frugalore.ops.momentum`; what is skipped:
``csrc/core/adamw.h``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from frugalore.reference.adamw import direction_accepts, write_scalars, write_weight

#: (m, g, whether it is the first applied update) -> fresh m, direction; float32.
Rule = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]


def _float(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64).float()


def sgdm(momentum: float = 0.9, dampening: float = 0.0, nesterov: bool = False) -> Rule:
    def rule(m: Tensor, g: Tensor, first: bool) -> tuple[Tensor, Tensor]:
        fresh = _float(momentum) * m + _float(1.0 if first else 1.0 - dampening) * g
        a, b = (momentum, 1.0) if nesterov else (1.0, 0.0)
        return fresh, _float(a) * fresh + _float(b) * g

    return rule


def lion(betas: tuple[float, float] = (0.9, 0.99)) -> Rule:
    def rule(m: Tensor, g: Tensor, first: bool) -> tuple[Tensor, Tensor]:
        mixed = _float(betas[0]) * m + _float(1.0 - betas[0]) * g
        return _float(betas[1]) * m + _float(1.0 - betas[1]) * g, mixed.sign()

    return rule


def step_elements(
    rule: Rule, w: Tensor, g: Tensor, m: Tensor, first: bool, keep32: Tensor, coefficient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """New w, m (float32) and which elements were applied."""
    new_m, direction = rule(m, g, first)
    new_w = keep32 * w - coefficient * direction
    applied = new_m.isfinite() & new_w.isfinite()
    return torch.where(applied, new_w, w), torch.where(applied, new_m, m), applied


def _step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    progress: Sequence[Tensor],
    rule: Rule,
    lr: float,
    weight_decay: float = 0.0,
    decay: str = "before",
    seed: int = 0,
    tensor_ids: Sequence[int] | None = None,
    rounding: str = "stochastic",
) -> None:
    keep32, coefficient = write_scalars(lr, weight_decay, decay)
    for i, (param, grad, m, record) in enumerate(zip(params, grads, momenta, progress, strict=True)):
        record[0] += 1
        record[2] = 1
        w, new_m, applied = step_elements(
            rule, param.float(), grad.float(), m.view_as(param), int(record[0]) == 1, keep32, coefficient
        )
        m.copy_(new_m.view_as(m))
        record[1] += int((~applied).sum())
        tensor_id = i if tensor_ids is None else tensor_ids[i]
        write_weight(param, w, seed, tensor_id, int(record[0]), rounding)


def _direction(r: Tensor, buffer: Tensor, progress: Tensor, rule: Rule) -> Tensor:
    applied = direction_accepts(r)
    progress[2] = int(applied)
    progress[0 if applied else 1] += 1
    if not applied:
        return r.zero_()
    fresh, direction = rule(buffer.view_as(r), r.float(), int(progress[0]) == 1)
    buffer.copy_(fresh.view_as(buffer))
    return r.copy_(direction.to(r.dtype))


@torch.no_grad()
def sgdm_step_(params, grads, momenta, progress, *, momentum=0.9, dampening=0.0, nesterov=False, **options):
    _step(params, grads, momenta, progress, sgdm(momentum, dampening, nesterov), **options)


@torch.no_grad()
def lion_step_(params, grads, momenta, progress, *, betas=(0.9, 0.99), **options):
    _step(params, grads, momenta, progress, lion(betas), **options)


@torch.no_grad()
def sgdm_direction_(r, buffer, progress, *, momentum=0.9, dampening=0.0, nesterov=False) -> Tensor:
    return _direction(r, buffer, progress, sgdm(momentum, dampening, nesterov))


@torch.no_grad()
def lion_direction_(r, buffer, progress, *, betas=(0.9, 0.99)) -> Tensor:
    return _direction(r, buffer, progress, lion(betas))
