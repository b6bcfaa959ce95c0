"""AdamW with 8-bit moments (specification). Formulas: :mod:`frugalore.ops.adamw8bit`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from frugalore.reference.adamw import (
    adam_direction,
    adam_scalars,
    advance,
    direction_accepts,
    fresh_moments,
    step_elements,
    write_scalars,
    write_weight,
)
from frugalore.reference.dynamic_map import dynamic_map, dynamic_quantize

BLOCK = 256


def dequantize_moment(codes: Tensor, absmax: Tensor, signed: bool) -> Tensor:
    """Codes of any shape and one absmax per block of 256 of them: float32 in the shape of the codes."""
    values = dynamic_map(signed).to(codes.device)[codes.flatten().long()]
    return (values * absmax.repeat_interleave(BLOCK)[: values.numel()]).view_as(codes)


def quantize_moment(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes in the shape of x, and the absmax of each block. A block below 2^-126 counts as zeros."""
    flat = x.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    absmax = blocks.abs().amax(1) if flat.numel() else flat.new_empty(0)
    normal = absmax >= 2.0**-126
    absmax = torch.where(normal, absmax, 0.0)
    inverse = torch.where(normal, 1.0 / absmax, 0.0)
    codes = dynamic_quantize(blocks * inverse[:, None], signed)
    return codes.flatten()[: flat.numel()].view_as(x), absmax


def _load(codes, absmax, codes_sq, absmax_sq, like: Tensor) -> tuple[Tensor, Tensor]:
    m, v = dequantize_moment(codes, absmax, True), dequantize_moment(codes_sq, absmax_sq, False)
    return m.view_as(like), v.view_as(like)


def _store(codes, absmax, codes_sq, absmax_sq, m: Tensor, v: Tensor) -> None:
    for moment, signed, into, scale in ((m, True, codes, absmax), (v, False, codes_sq, absmax_sq)):
        quantized, largest = quantize_moment(moment, signed)
        into.copy_(quantized.view_as(into))
        scale.copy_(largest.view_as(scale))


@torch.no_grad()
def adamw8bit_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_absmaxs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    exp_avg_sq_absmaxs: Sequence[Tensor],
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
    states = zip(exp_avgs, exp_avg_absmaxs, exp_avg_sqs, exp_avg_sq_absmaxs, strict=True)
    for i, (param, grad, state, record, powers) in enumerate(
        zip(params, grads, states, progress, beta_powers, strict=True)
    ):
        advance(record, powers, betas, True)
        s = adam_scalars(powers, betas, eps, eps_mode)
        m, v = _load(*state, param)
        w, m, v, applied = step_elements(s, param.float(), grad.float(), m, v, keep32, coefficient)
        _store(*state, m, v)
        record[1] += int((~applied).sum())
        tensor_id = i if tensor_ids is None else tensor_ids[i]
        write_weight(param, w, seed, tensor_id, int(record[0]), rounding)


@torch.no_grad()
def adamw8bit_direction_(
    r: Tensor,
    exp_avg: Tensor,
    exp_avg_absmax: Tensor,
    exp_avg_sq: Tensor,
    exp_avg_sq_absmax: Tensor,
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
    state = (exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax)
    m, v = fresh_moments(s, *_load(*state, r), r.float())
    _store(*state, m, v)
    return r.copy_(adam_direction(s, m, v).to(r.dtype))
