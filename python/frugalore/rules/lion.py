"""The rule of Lion (arXiv 2302.06675)."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

from frugalore import ops
from frugalore.rules.momentum import MomentumRule


class Lion(MomentumRule):
    """Lion: the direction is ``sign(beta1 m + (1 - beta1) g)``, then ``m = beta2 m + (1 - beta2) g``.

    Group options: ``betas``, ``weight_decay`` (decoupled, before the update), ``state_bits`` (32).
    State of a parameter: ``exp_avg``, float32; ``progress``.
    """

    NAME: ClassVar = "lion"
    BUFFER: ClassVar = "exp_avg"
    RULE_OPTIONS: ClassVar = ("betas",)
    DIRECTION: ClassVar = staticmethod(ops.lion_direction_)
    STEP: ClassVar = staticmethod(ops.lion_step_)

    @staticmethod
    def check_options(group: dict[str, Any]) -> None:
        MomentumRule.check_options(group)
        betas = group["betas"]
        is_pair = isinstance(betas, (tuple, list)) and len(betas) == 2
        if not is_pair or not all(isinstance(beta, Real) and 0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas: two numbers in [0, 1) expected, got {betas!r}")
