"""What SGD with momentum and Lion share as rules: one float32 buffer, and the calls of their ops."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from frugalore.subspace.turn import Turn


class MomentumRule:
    """The protocol of a rule; a subclass names its ops, its buffer and its options.

    State of a parameter: the buffer, float32, and ``progress``, int64 [3].
    """

    decay: ClassVar = "before"
    LAYOUT_OPTIONS: ClassVar = ("state_bits",)
    NAME: ClassVar[str]
    BUFFER: ClassVar[str]
    #: Group options that are keyword arguments of the ops.
    RULE_OPTIONS: ClassVar[tuple[str, ...]]
    DIRECTION: ClassVar[Any]
    STEP: ClassVar[Any]

    @staticmethod
    def check_options(group: dict[str, Any]) -> None:
        decay = group["weight_decay"]
        if not isinstance(decay, Real) or not 0.0 <= decay < math.inf:
            raise ValueError(f"weight_decay: zero or more expected, got {decay!r}")
        if group["state_bits"] != 32:
            raise ValueError(
                f"state_bits: 32 expected, the only width of a momentum so far, got {group['state_bits']!r}"
            )

    def state_shapes(
        self, shape: tuple[int, ...], group: dict[str, Any]
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each state tensor for a parameter, or projected gradient, of this shape."""
        return {"progress": ((3,), torch.int64), self.BUFFER: (tuple(shape), torch.float32)}

    def initial_state(
        self, shape: tuple[int, ...], group: dict[str, Any], device: torch.device
    ) -> dict[str, Tensor]:
        return {
            name: torch.zeros(size, dtype=dtype, device=device)
            for name, (size, dtype) in self.state_shapes(shape, group).items()
        }

    @staticmethod
    def learning_rate(p: Tensor, state: dict[str, Any], group: dict[str, Any], lr: Tensor) -> Tensor:
        """What the update that comes next is multiplied by: the group's."""
        return lr

    def direction_(
        self, r: Tensor, state: dict[str, Any], group: dict[str, Any], *, fresh: bool = False
    ) -> Tensor:
        """Replace a projected gradient by its direction; a non-finite one by zeros, counted as skipped.

        Args:
            fresh: whether the state was just set to zero; of matter to SGDM.
        """
        options = {name: group[name] for name in self.RULE_OPTIONS}
        return self.DIRECTION(r, state[self.BUFFER], state["progress"], **options)

    @staticmethod
    def is_fusable(state: dict[str, Any]) -> bool:
        """Whether :func:`frugalore.ops.split_step_` can move a parameter with this state."""
        return True

    def split_arguments(self, states: list[dict[str, Any]], group: dict[str, Any]) -> dict[str, Any]:
        """What :func:`frugalore.ops.split_step_` takes of this rule."""
        options = {name: group[name] for name in self.RULE_OPTIONS}
        return {"rule": self.NAME, "moments": ([state[self.BUFFER] for state in states],), **options}

    def rotate_(
        self, state: dict[str, Any], turn: Turn, shape: tuple[int, ...], group: dict[str, Any]
    ) -> None:
        """Carry the buffer, of this ``shape``, from an old basis into a new one; there it may be another."""
        turn.replace_(state, {self.BUFFER: turn.first_moment(state[self.BUFFER].view(shape))})

    def step_(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Any]],
        group: dict[str, Any],
        lr: Tensor,
    ) -> None:
        """Move whole float parameters of one device in one call."""
        self.STEP(
            params,
            grads,
            [state[self.BUFFER] for state in states],
            [state["progress"] for state in states],
            lr=lr,
            weight_decay=group["weight_decay"],
            decay=self.decay,
            seed=group["seed"],
            tensor_ids=[state["tensor_id"] for state in states],
            rounding=group["rounding"],
            **{name: group[name] for name in self.RULE_OPTIONS},
        )
