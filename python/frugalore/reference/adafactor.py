"""Adafactor, whole or inside a subspace (specification). Formulas: :class:`frugalore.rules.Adafactor`."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def step_size(
    weight: Tensor,
    step: int,
    lr: float | None,
    eps: tuple[float, float],
    *,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
) -> float:
    size = lr
    if relative_step:
        size = min(1e-6 * step if warmup_init else 1e-2, 1 / math.sqrt(step))
    return size * (max(eps[1], rms(weight)) if scale_parameter else 1.0)


def adafactor_update(
    r: Tensor,
    state: dict[str, Tensor],
    step: int,
    *,
    eps: tuple[float, float] = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
) -> Tensor:
    """U of the ``step``-th gradient, the first being 1; ``state`` is empty then, and is advanced."""
    beta2 = 1 - step**decay_rate
    squares = r.square() + eps[0]
    means = {"sq": squares} if r.dim() < 2 else {"row": squares.mean(-1), "col": squares.mean(-2)}
    for name, mean in means.items():
        state[name] = beta2 * state.get(name, torch.zeros_like(mean)) + (1 - beta2) * mean
    if r.dim() < 2:
        update = r / state["sq"].sqrt()
    else:
        row, col = state["row"], state["col"]
        update = r / (row / row.mean(-1, keepdim=True)).sqrt()[..., None] / col.sqrt()[..., None, :]
    return update / max(1.0, rms(update) / clip_threshold)


def adafactor_step_(
    weight: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    *,
    step: int,
    lr: float | None = None,
    eps: tuple[float, float] = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float | None = None,
    weight_decay: float = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
    scale: float = 1.0,
    left: Tensor | None = None,
    right: Tensor | None = None,
) -> None:
    """One step in the dtype of its tensors. ``left [r, m]`` and ``right [r, n]`` are the bases, if any."""
    r = grad if left is None else left @ grad
    r = r if right is None else r @ right.t()
    size = step_size(
        weight,
        step,
        lr,
        eps,
        scale_parameter=scale_parameter,
        relative_step=relative_step,
        warmup_init=warmup_init,
    )
    update = size * adafactor_update(
        r, state, step, eps=eps, clip_threshold=clip_threshold, decay_rate=decay_rate
    )
    if beta1 is not None:
        state["m"] = update = beta1 * state.get("m", torch.zeros_like(update)) + (1 - beta1) * update
    update = update if left is None else left.t() @ update
    update = update if right is None else update @ right
    weight.mul_(1 - size * weight_decay).sub_(scale * update)
