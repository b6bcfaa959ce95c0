"""Fira (arXiv 2410.01623): GaLore, and outside of the subspace the residual as Adam would scale it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from frugalore.optim.engine import SubspaceOptimizer
from frugalore.optim.frugal import check_fira
from frugalore.optim.galore import SUBSPACE_DEFAULTS
from frugalore.optim.low_rank import LowRank
from frugalore.optim.treatment import Group
from frugalore.rules import AdamW
from frugalore.rules import outside as outside_rules
from frugalore.subspace import SvdSubspace


class _FiraLowRank(LowRank):
    def outside(self, group: Group) -> outside_rules.OutsideRule:
        return outside_rules.Fira(mode=group["fira_mode"], limit=group["fira_limit"])

    def check_options(self, group: Group) -> None:
        super().check_options(group)
        check_fira(group, self.inside)


class Fira(SubspaceOptimizer):
    """Fira: full-rank updates with the state of a low-rank subspace.

    The residual ``G - back(R)`` moves the weight too, each column (or row) scaled by what Adam makes of that
    of R, ``|N_j| / |R_j|``, and its norm grows by at most ``fira_limit`` from step to step. One
    back-projection serves both parts, and nothing waits for the device.

    Args:
        params: groups as :func:`frugalore.param_groups` makes them; one with ``rank`` trains so, the others
            by AdamW on the whole gradient. Weights may be float32, bfloat16, float16 or INT8.
        lr: learning rate, a float or a tensor of one element.
        betas, eps, weight_decay: of AdamW, in every group. ``eps`` joins the root of the second moment before
            its bias is corrected, and decay comes after the update, as in the published code.
        state_bits: 32, 8 or 4 bits a moment. rounding: "stochastic" or "nearest" writes. seed: as in
            :class:`frugalore.GaLoreAdamW`.

    Options of a group with ``rank``: those of :class:`frugalore.GaLoreAdamW`; ``scale`` may be spelt
    ``alpha``, as published. ``fira_mode``: "code" (default: what the published code does, where ``alpha``
    multiplies the inside, and what is subtracted from G, but not the residual) or "paper" (algorithm 1: both
    parts times ``alpha``). ``fira_limit`` (1.01).

    Raises:
        TypeError, ValueError: as :class:`frugalore.FusedQGaLore`.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        state_bits: int = 32,
        rounding: str = "stochastic",
        seed: int | None = None,
    ):
        rule = AdamW(eps_mode="raw", decay="after")
        defaults = SUBSPACE_DEFAULTS | {"fira_mode": "code", "fira_limit": 1.01}
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "state_bits": state_bits,
                "rounding": rounding,
            },
            treatments=(_FiraLowRank(rule, defaults, SvdSubspace()),),
            seed=seed,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in :class:`SubspaceOptimizer`; ``alpha`` is ``scale``."""
        group = dict(param_group)
        if "alpha" in group:
            if "scale" in group:
                raise ValueError(
                    f"alpha: {group['alpha']!r} beside scale {group['scale']!r}; they are one option"
                )
            group["scale"] = group.pop("alpha")
        super().add_param_group(group)
