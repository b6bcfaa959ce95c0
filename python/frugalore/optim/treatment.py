"""What the engine asks of the way in which a group's parameters are trained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from frugalore import ops
from frugalore.weights.int8_weight import FLOAT_DTYPES

Group = dict[str, Any]
State = dict[str, Any]


class Item(NamedTuple):
    """A parameter that is about to move: what was kept of its gradient, and its state."""

    p: Tensor
    kept: Tensor
    state: State


class Treatment:
    """How the parameters of a group are trained: what is kept of a gradient, what their state is, how they
    move. It holds no state of a parameter itself; what it remembers can be made again at any time.

    Attributes:
        marker: the key that puts a group under this treatment; None: every group without another's marker.
        defaults: further options of its groups.
    """

    marker: str | None = None

    def __init__(self, inside: Any, defaults: dict[str, Any] | None = None):
        self.inside = inside
        self.defaults = defaults or {}

    # ---- groups -------------------------------------------------------------------------------------

    def takes(self, group: Group) -> bool:
        """Whether a group with the marker, and all its options, is under this treatment."""
        return True

    def layout_options(self, group: Group) -> tuple[str, ...]:
        """Options that decide how the state is stored, and so cannot change later."""
        return self.inside.LAYOUT_OPTIONS

    def check_options(self, group: Group) -> None:
        """TypeError or ValueError, naming the option."""
        self.inside.check_options(group)

    def check_parameter(self, name: str, p: Tensor, group: Group) -> None:
        """TypeError or ValueError, naming the parameter."""

    def joined(self, group: Group, names: list[str], ordinals: list[int]) -> None:
        """A checked group joins the optimizer; ``ordinals`` are those of its parameters in it."""

    # ---- state --------------------------------------------------------------------------------------

    #: Numbers of a parameter's state, by name, besides ``tensor_id``.
    numbers: ClassVar[dict[str, type]] = {}

    @abstractmethod
    def state_shapes(
        self, p: Tensor, group: Group, state: State
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each state tensor of ``p``, given the numbers in its state."""

    @abstractmethod
    def initial_state(self, p: Tensor, group: Group, ordinal: int) -> State:
        """Everything but ``tensor_id``."""

    def check_numbers(self, name: str, state: State) -> None:
        """ValueError unless the numbers of a loaded state can be."""

    def settle(self) -> None:
        """Bring the numbers in the states up to date; before a checkpoint."""

    def forget(self) -> None:
        """Drop what is remembered of states; when others are loaded."""

    def entered(self, group: Group) -> None:
        """All groups are in place, or another period, with other states and options, was loaded."""

    # ---- the step -----------------------------------------------------------------------------------

    def kept_shape(self, p: Tensor, group: Group) -> tuple[tuple[int, ...], tuple[torch.dtype, ...]]:
        """Shape, and possible dtypes, of what is kept of a gradient."""
        return tuple(p.shape), FLOAT_DTYPES

    def keep(self, p: Tensor, grad: Tensor, state: State, group: Group, *, first: bool) -> Tensor:
        """What of a gradient the move needs. Kept tensors of several micro-batches add up.

        Args:
            first: whether the gradient is the first of its round.
        """
        return grad.contiguous()

    def batches(self, params: list[Tensor]) -> Iterator[list[Tensor]]:
        """The parameters that move together: all of one device."""
        for device in dict.fromkeys(p.device for p in params):
            yield [p for p in params if p.device == device]

    @abstractmethod
    def move(self, items: list[Item], group: Group, lr: Tensor, *, owned: bool) -> None:
        """Move parameters of one device.

        Args:
            lr: the group's learning rate as the kernels read it. owned: what was kept may be overwritten.
        """

    def is_state_free(self, p: Tensor, group: Group) -> bool:
        """Whether the next move of ``p`` has no state-full part."""
        return False

    def end_step(self, group: Group, states: Mapping[Tensor, State]) -> None:
        """All of a step's moves are made, whichever parameters had a gradient."""

    # ---- shared by treatments -----------------------------------------------------------------------

    def weight_step(self, item: Item, group: Group, lr: Tensor, alpha: float = -1.0) -> ops.Step:
        """How the write that ends the update of a parameter goes; before its direction is made."""
        return ops.Step(
            lr=self.inside.learning_rate(item.p, item.state, group, lr),
            progress=item.state["progress"],
            alpha=alpha,
            weight_decay=group["weight_decay"],
            decay=self.inside.decay,
            seed=group["seed"],
            tensor_id=item.state["tensor_id"],
            rounding=group["rounding"],
        )
