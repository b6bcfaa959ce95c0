"""The rule of SGD with momentum."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

from torch import Tensor

from frugalore import ops
from frugalore.rules.momentum import MomentumRule


class SGDM(MomentumRule):
    """SGD with momentum in the convention of ``torch.optim.SGD``: ``m = momentum m + (1 - dampening) g``.

    Weight decay is decoupled and comes before the update, as in the library's other rules; torch's joins the
    gradient. Without momentum the two are the same.

    Group options: ``momentum``, ``dampening``, ``nesterov``, ``weight_decay``, ``state_bits`` (32).
    State of a parameter: ``momentum_buffer``, float32; ``progress``.
    """

    NAME: ClassVar = "sgdm"
    BUFFER: ClassVar = "momentum_buffer"
    RULE_OPTIONS: ClassVar = ("momentum", "dampening", "nesterov")
    DIRECTION: ClassVar = staticmethod(ops.sgdm_direction_)
    STEP: ClassVar = staticmethod(ops.sgdm_step_)

    @staticmethod
    def check_options(group: dict[str, Any]) -> None:
        MomentumRule.check_options(group)
        for name in ("momentum", "dampening"):
            if not isinstance(group[name], Real) or not 0.0 <= group[name] < 1.0:
                raise ValueError(f"{name}: a number in [0, 1) expected, got {group[name]!r}")
        if not isinstance(group["nesterov"], bool):
            raise TypeError(f"nesterov: True or False expected, got {group['nesterov']!r}")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError(
                "nesterov: momentum > 0 and dampening 0 expected, got "
                f"{group['momentum']!r} and {group['dampening']!r}"
            )

    def direction_(
        self, r: Tensor, state: dict[str, Any], group: dict[str, Any], *, fresh: bool = False
    ) -> Tensor:
        """As in :class:`MomentumRule`; a fresh buffer becomes the gradient itself, whatever ``dampening``."""
        return super().direction_(r, state, group | {"dampening": 0.0} if fresh else group)
