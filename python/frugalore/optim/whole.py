"""Parameters outside every subspace: the state-full rule on the whole gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from frugalore.optim.treatment import Group, Item, State, Treatment
from frugalore.weights.int8_weight import Int8Weight
from frugalore.weights.write import descend_


class Whole(Treatment):
    """The rule on the whole gradient: float parameters of a device in one call, INT8 ones each by itself."""

    def state_shapes(
        self, p: Tensor, group: Group, state: State
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return self.inside.state_shapes(tuple(p.shape), group)

    def initial_state(self, p: Tensor, group: Group, ordinal: int) -> State:
        return self.inside.initial_state(p.shape, group, p.device)

    def move(self, items: list[Item], group: Group, lr: Tensor, *, owned: bool) -> None:
        floats = [item for item in items if not isinstance(item.p, Int8Weight)]
        if floats:
            params, grads, states = zip(*floats, strict=True)
            self.inside.step_([p.detach() for p in params], list(grads), list(states), group, lr)
        for item in items:
            if isinstance(item.p, Int8Weight):
                step = self.weight_step(item, group, lr)
                kept = item.kept if owned else item.kept.clone()
                descend_(item.p, self.inside.direction_(kept, item.state, group), step)
