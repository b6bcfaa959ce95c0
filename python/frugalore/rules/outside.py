"""State-free rules: what becomes of the part of a gradient that is outside the subspace."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Spellings of the rules, those of the published FRUGAL first.
INACTIVE_UPDATE_RULES = {"sign_sgd": "sign", "sgd": "sgd", "no": "none", "sign": "sign", "none": "none"}


@dataclass(frozen=True)
class OutsideRule:
    """``sign``: signSGD. ``sgd``: the residual itself. ``none``: the residual is dropped (GaLore)."""

    name: str = "none"

    @property
    def reads_gradient(self) -> bool:
        return self.name != "none"

    def state_shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {}

    def initial_state(self, device: torch.device) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True)
class Fira(OutsideRule):
    """The residual, scaled column by column as Adam scales the inside, and limited in growth
    (Fira, arXiv 2410.01623, algorithm 1; see :func:`frugalore.ops.fira_back_update_`).

    Attributes:
        mode: "code" or "paper". limit: of the growth of the residual's norm from step to step.

    State of a parameter: ``last_norm``, float32 [], negative before the first step.
    """

    name: str = "fira"
    mode: str = "code"
    limit: float = 1.01

    def state_shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"last_norm": ((), torch.float32)}

    def initial_state(self, device: torch.device) -> dict[str, Tensor]:
        return {"last_norm": torch.full((), -1.0, dtype=torch.float32, device=device)}
