"""One step of Q-GaLore in plain torch (specification), after algorithm 1 of arXiv 2407.08296.

Written to be read beside the paper; slow. The basis is given, because entries of singular vectors cannot be
compared; everything after it is specified to the bit, but for the order of sums in the GEMMs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from frugalore.reference.adamw8bit import adamw8bit_direction_
from frugalore.reference.int4 import int4_dequantize
from frugalore.reference.int8 import int8_stochastic_update_


@dataclass
class QGaLoreState:
    """The state of one INT8 weight ``[m, n]``; ``basis`` is packed INT4 ``[rank, short side]``."""

    basis: tuple[Tensor, Tensor, Tensor]
    exp_avg: Tensor
    exp_avg_absmax: Tensor
    exp_avg_sq: Tensor
    exp_avg_sq_absmax: Tensor
    progress: Tensor = field(default_factory=lambda: torch.zeros(3, dtype=torch.int64))
    beta_powers: Tensor = field(default_factory=lambda: torch.ones(2, dtype=torch.float64))


def qgalore_step_(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    grad: Tensor,
    state: QGaLoreState,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    alpha: float,
    seed: int,
    tensor_id: int,
) -> None:
    """``W <- (W - lr alpha back(Adam8bit(project(G)))) (1 - lr weight_decay)``, rounded stochastically."""
    m, n = grad.shape
    basis = int4_dequantize(*state.basis, min(m, n), dtype=grad.dtype)
    r = grad @ basis.t() if m >= n else basis @ grad
    adamw8bit_direction_(
        r,
        state.exp_avg,
        state.exp_avg_absmax,
        state.exp_avg_sq,
        state.exp_avg_sq_absmax,
        state.progress,
        state.beta_powers,
        betas=betas,
        eps=eps,
        eps_mode="corrected",
    )
    applied, _, applied_now = state.progress.tolist()
    if not applied_now:
        return
    update = r @ basis if m >= n else basis.t() @ r
    int8_stochastic_update_(
        codes,
        scale,
        zero,
        update,
        lr=lr,
        alpha=-alpha,
        weight_decay=weight_decay,
        decay="after",
        seed=seed,
        tensor_id=tensor_id,
        progress=applied,
    )
