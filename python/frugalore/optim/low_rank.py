"""Matrices that train in a low-rank subspace, with or without a state-free part outside of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from frugalore import ops
from frugalore.optim import checks
from frugalore.optim.treatment import Group, Item, State, Treatment
from frugalore.rules.outside import Fira, OutsideRule
from frugalore.subspace import RefreshSchedule, SvdSubspace, matrix_shape
from frugalore.weights.write import descend_, mark_written_weight, stored_weight


class LowRank(Treatment):
    """``G = back(R) + residual``, ``R = project(G)``: the rule moves R, the outside rule the residual.

    One step of a matrix: refresh the basis, if its schedule says so; R; direction = rule(R); one fused write
    of back(direction) and of what the outside rule makes of the residual.
    """

    marker = "rank"
    numbers: ClassVar = {
        "calls": int,
        "gap": int,
        "offset": int,
        "similarity": float,
        "refreshes": int,
        "similarities": list,
        "refresh_again": bool,
    }

    def __init__(
        self,
        inside: Any,
        defaults: dict[str, Any],
        subspace: SvdSubspace,
        schedule: RefreshSchedule | None = None,
    ):
        super().__init__(inside, defaults)
        self.subspace = subspace
        self.schedule = schedule or RefreshSchedule()

    def outside(self, group: Group) -> OutsideRule:
        """What the residual of a group's gradients gets."""
        return OutsideRule()

    def scales(self, group: Group) -> tuple[float, float]:
        """Factors of the learning rate inside and outside."""
        return float(group["scale"]), 0.0

    def layout_options(self, group: Group) -> tuple[str, ...]:
        own = (*self.subspace.LAYOUT_OPTIONS, *self.schedule.layout_options())
        return (*super().layout_options(group), *own)

    def check_options(self, group: Group) -> None:
        super().check_options(group)
        if "scale" in self.defaults and not (
            isinstance(group["scale"], Real) and math.isfinite(group["scale"])
        ):
            raise ValueError(f"scale: a finite number expected, got {group['scale']!r}")
        self.subspace.check_options(group)
        self.schedule.check_options(group)

    def check_parameter(self, name: str, p: Tensor, group: Group) -> None:
        checks.check_matrix(name, p, self.marker)

    def joined(self, group: Group, names: list[str], ordinals: list[int]) -> None:
        if "rank" in group:
            checks.warn_of_small_matrices(names, group)

    # ---- state --------------------------------------------------------------------------------------

    def _low_rank_shape(self, p: Tensor, group: Group) -> tuple[int, int]:
        return self.subspace.low_rank_shape(p.shape, group)

    def state_shapes(
        self, p: Tensor, group: Group, state: State
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        shapes = self.inside.state_shapes(self._low_rank_shape(p, group), group)
        shapes |= self.subspace.state_shapes(p.shape, group)
        return shapes | self.outside(group).state_shapes()

    def initial_state(self, p: Tensor, group: Group, ordinal: int) -> State:
        state = self.inside.initial_state(self._low_rank_shape(p, group), group, p.device)
        state |= self.outside(group).initial_state(p.device)
        return state | self.schedule.initial_state(group, ordinal)

    def check_numbers(self, name: str, state: State) -> None:
        if state["gap"] < 1:
            raise ValueError(f"{name}: gap as a positive integer expected, got {state['gap']}")

    def settle(self) -> None:
        self.schedule.settle_all()

    def forget(self) -> None:
        self.schedule.forget()

    # ---- the step -----------------------------------------------------------------------------------

    def batches(self, params: list[Tensor]) -> Iterator[list[Tensor]]:
        """One by one, so that one R exists at a time."""
        for p in params:
            yield [p]

    def kept_shape(self, p: Tensor, group: Group) -> tuple[tuple[int, ...], tuple[torch.dtype, ...]]:
        if self.outside(group).reads_gradient:
            return super().kept_shape(p, group)
        return self._low_rank_shape(p, group), (torch.float32,)

    def keep(self, p: Tensor, grad: Tensor, state: State, group: Group, *, first: bool) -> Tensor:
        """R; the gradient itself where something is done with the residual.

        If ``first`` is False the basis stays, unless its refresh failed so far: what was projected in this
        call is zero or not finite then.
        """
        grad = grad.contiguous()
        matrix = grad.view(matrix_shape(grad.shape))
        if self.schedule.due(state, group) if first else self.schedule.failed(state):
            self._refresh(matrix, state, group)
        state["calls"] += first
        return grad if self.outside(group).reads_gradient else self.subspace.project(matrix, state, group)

    def _refresh(self, grad: Tensor, state: State, group: Group) -> None:
        iterations = self.schedule.power_iterations(state)
        similarity, turn = self.subspace.refresh(grad, state, group, iterations)
        shape = self.subspace.low_rank_shape(grad.shape, group)
        if turn is not None and group["moments_at_refresh"] == "rotate":
            self.inside.rotate_(state, turn, shape, group)
        elif turn is not None:
            fresh = self.inside.initial_state(shape, group, grad.device)
            del fresh["progress"]  # counts updates, and so names the random numbers of the next write
            turn.replace_(state, fresh)
        self.schedule.refreshed(state, group, similarity)

    def move(self, items: list[Item], group: Group, lr: Tensor, *, owned: bool) -> None:
        for item in items:
            if self.outside(group).reads_gradient:
                self._move_with_residual(item, group, lr)
            else:
                self._move_inside(item, group, lr)

    def _move_inside(self, item: Item, group: Group, lr: Tensor) -> None:
        """``kept`` is R, and is overwritten."""
        p, r, state = item
        step = self.weight_step(item, group, lr, -self.scales(group)[0])
        direction = self.inside.direction_(r, state, group)
        direction, basis, side = self.subspace.way_back(direction, state, group, p.shape)
        descend_(p, direction, step, basis, side, group["quant_group_size"])

    def _move_with_residual(self, item: Item, group: Group, lr: Tensor) -> None:
        """``kept`` is the gradient, and stays."""
        p, grad, state = item
        grad = grad.view(matrix_shape(grad.shape))
        step = self.weight_step(item, group, lr)
        r = self.subspace.project(grad, state, group, exactly=True)
        direction = self.inside.direction_(r.clone(), state, group)
        direction, basis, side = self.subspace.way_back(direction, state, group, p.shape)
        r, _, _ = self.subspace.way_back(r, state, group, p.shape)
        weight, group_size = stored_weight(p)
        places = {"side": side, "group_size": group_size, "basis_group_size": group["quant_group_size"]}
        outside, (inside_scale, outside_scale) = self.outside(group), self.scales(group)
        if self.subspace.is_complete(p.shape, group):
            outside_scale = 0.0  # or the signs of rounding errors would move the weight
        if isinstance(outside, Fira):
            ops.fira_back_update_(
                weight,
                direction,
                r,
                basis,
                grad,
                step,
                state["last_norm"],
                beta_powers=state["beta_powers"],
                mode=outside.mode,
                scale=inside_scale,
                limit=outside.limit,
                **places,
            )
        else:
            ops.split_back_update_(
                weight,
                direction,
                r,
                basis,
                grad,
                step,
                outside=outside.name,
                inside_scale=inside_scale,
                outside_scale=outside_scale,
                **places,
            )
        mark_written_weight(p)
