"""FRUGAL (arXiv 2411.07837) with the rules of one buffer inside: SGD with momentum, and Lion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from frugalore.optim.frugal import FrugalOptimizer
from frugalore.rules import SGDM, Lion


class FrugalSGDM(FrugalOptimizer):
    """FRUGAL with SGD and momentum inside. With ``inactive_update_rule="sgd"``, ``dampening=momentum`` and
    ``moments_at_refresh="rotate"`` it is, from the second step on, the method whose convergence the paper
    proves (algorithm 2, theorem 5.2).

    Args:
        lr, momentum, dampening, nesterov: as in ``torch.optim.SGD``. The buffer begins with the first
            gradient, also after a reset; after one of "svd" or "random" with ``1 - dampening`` times it.
        weight_decay: decoupled, before the update.

    Everything else is as in :class:`frugalore.FrugalAdamW`; the buffer takes 32 bits.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        state_bits: int = 32,
        rounding: str = "stochastic",
        seed: int | None = None,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "state_bits": state_bits,
            "rounding": rounding,
        }
        super().__init__(params, defaults, SGDM(), options, seed)


class FrugalLion(FrugalOptimizer):
    """FRUGAL with Lion (arXiv 2302.06675) inside.

    Args:
        lr, betas: of Lion. weight_decay: decoupled, before the update.

    Everything else is as in :class:`frugalore.FrugalAdamW`; the buffer takes 32 bits.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        state_bits: int = 32,
        rounding: str = "stochastic",
        seed: int | None = None,
        **options: Any,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "state_bits": state_bits,
            "rounding": rounding,
        }
        super().__init__(params, defaults, Lion(), options, seed)
