"""Parameters whose subspace is spanned by coordinates (FRUGAL, arXiv 2411.07837): columns, rows, single
elements, or whole parameters ("blocks")."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor

from frugalore import ops
from frugalore.ops.selection import Selection, matrix_shape
from frugalore.optim import checks
from frugalore.optim.active_blocks import ActiveBlocks
from frugalore.optim.treatment import Group, Item, State, Treatment
from frugalore.optim.whole import Whole
from frugalore.rules.outside import INACTIVE_UPDATE_RULES
from frugalore.subspace.coordinate_turn import CoordinateTurn
from frugalore.subspace.coordinates import selection_of
from frugalore.subspace.options import check_positive_integer
from frugalore.subspace.svd import MOMENTS_AT_REFRESH
from frugalore.weights.int8_weight import Int8Weight
from frugalore.weights.write import mark_written_weight, stored_weight

#: Subspaces of coordinates.
COORDINATES = ("columns", "rows", "randk", "randperm", "blocks")


class Coordinates(Treatment):
    """Inside the chosen coordinates the state-full rule, outside the state-free one, both in one pass over a
    float weight with float32 state; otherwise R, the rule, and a write in row panels.

    Periods are counted for the whole group, at the end of every step, whether or not a parameter had a
    gradient. A parameter's coordinates are a function of (seed, ordinal, period): nothing of them is saved,
    and every process chooses the same ones. They change at the parameter's first gradient in a new period.

    Group options: those of :class:`frugalore.FrugalAdamW`. Where the schedule stands is in the group too:
    ``period``, ``period_calls`` (steps made in it) and ``period_density``.
    State of a parameter: that of the rule, ``period`` and ``density`` of its coordinates.
    """

    marker = "density"
    numbers: ClassVar = {"period": int, "density": float}

    def __init__(self, inside: Any, defaults: dict[str, Any]):
        super().__init__(inside, {**defaults, "period": 0, "period_calls": 0, "period_density": None})
        self._blocks = ActiveBlocks()
        self._ordinals: dict[Tensor, int] = {}
        self._selections: dict[Tensor, Selection] = {}  # of the present period

    # ---- groups -------------------------------------------------------------------------------------

    def layout_options(self, group: Group) -> tuple[str, ...]:
        of_blocks = ActiveBlocks.LAYOUT_OPTIONS if group["subspace"] == "blocks" else ()
        return (*super().layout_options(group), "subspace", *of_blocks)

    def check_options(self, group: Group) -> None:
        super().check_options(group)
        checks.check_density(group["density"])
        check_positive_integer("update_gap", group["update_gap"])
        for name in ("inactive_lr_scale", "proj_params_lr_scale"):
            checks.check_not_negative(name, group[name])
        checks.check_choice(
            "inactive_update_rule", group["inactive_update_rule"], tuple(INACTIVE_UPDATE_RULES)
        )
        checks.check_choice("moments_at_refresh", group["moments_at_refresh"], MOMENTS_AT_REFRESH)
        if group["period_density"] is not None:  # None: has not joined yet
            checks.check_density(group["period_density"], "period_density")
        for name in ("period", "period_calls"):
            if not isinstance(group[name], Integral) or group[name] < 0:
                raise ValueError(f"{name}: zero or more expected, got {group[name]!r}")
        if group["subspace"] == "blocks":
            self._blocks.check_options(group)

    def check_parameter(self, name: str, p: Tensor, group: Group) -> None:
        if group["subspace"] != "blocks":
            checks.check_matrix(name, p, self.marker)

    def joined(self, group: Group, names: list[str], ordinals: list[int]) -> None:
        self._ordinals.update(zip(group["params"], ordinals, strict=True))
        if group["subspace"] == "blocks":
            self._blocks.joined(group, names)
        elif not any(p.requires_grad for p in group["params"]):
            raise ValueError(f"params: all {len(names)} parameters of the group are frozen, {names[0]} first")
        group["period_density"] = float(group["density"])

    # ---- state --------------------------------------------------------------------------------------

    def state_shapes(
        self, p: Tensor, group: Group, state: State
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        selection = self._select(p, group, state["period"], state["density"])
        return self.inside.state_shapes(selection.state_shape(*self._matrix(p)), group)

    def initial_state(self, p: Tensor, group: Group, ordinal: int) -> State:
        numbers = {"period": int(group["period"]), "density": float(group["period_density"])}
        shape = self._select(p, group, *numbers.values()).state_shape(*self._matrix(p))
        return self.inside.initial_state(shape, group, p.device) | numbers

    def check_numbers(self, name: str, state: State) -> None:
        if state["period"] < 0 or not 0.0 <= state["density"] <= 1.0:
            raise ValueError(
                f"{name}: a period of zero or more and a density in [0, 1] expected, got "
                f"{state['period']} and {state['density']}"
            )

    def forget(self) -> None:
        self._selections.clear()
        self._blocks.forget()

    def entered(self, group: Group) -> None:
        self._thaw(group)

    # ---- what is inside -----------------------------------------------------------------------------

    @staticmethod
    def _matrix(p: Tensor) -> tuple[int, int]:
        return matrix_shape(p.shape)

    def _select(self, p: Tensor, group: Group, period: int, density: float) -> Selection:
        """The coordinates of a parameter in a period; a pure function of the arguments and the seed."""
        if group["subspace"] == "blocks":
            active = p in self._active(group, period, density)
            return Selection("all" if active else "none")
        ordinal = self._ordinals[p]
        return selection_of(
            group["subspace"], self._matrix(p), density, group["seed"], ordinal, period, p.device
        )

    def _selection(self, p: Tensor, group: Group, state: State) -> Selection:
        """The coordinates that the state of ``p`` is for."""
        if p not in self._selections:
            self._selections[p] = self._select(p, group, state["period"], state["density"])
        return self._selections[p]

    def _active(self, group: Group, period: int, density: float) -> set[Tensor]:
        return self._blocks.active(group, period, density, self._ordinals[group["params"][0]])

    def is_state_free(self, p: Tensor, group: Group) -> bool:
        if group["subspace"] == "blocks":
            return p not in self._active(group, group["period"], group["period_density"])
        return group["period_density"] == 0

    # ---- the period ---------------------------------------------------------------------------------

    def end_step(self, group: Group, states: Mapping[Tensor, State]) -> None:
        group["period_calls"] += 1
        if group["period_calls"] < group["update_gap"]:
            return
        if group["subspace"] == "blocks":
            active = self._active(group, group["period"], group["period_density"])
            self._blocks.warn_of_unvisited(group, active)
        group["period"] += 1
        group["period_calls"] = 0
        group["period_density"] = float(group["density"])
        if group["subspace"] == "blocks":
            self._drop_inactive(group, states)
        self._thaw(group)

    def _drop_inactive(self, group: Group, states: Mapping[Tensor, State]) -> None:
        """Free the moments of blocks whose turn is over, before those of the next are made; also where no
        gradient would come that could do it."""
        active = self._active(group, group["period"], group["period_density"])
        for p in group["params"]:
            if states.get(p) and p not in active:
                self._enter_period(p, states[p], group)

    def _thaw(self, group: Group) -> None:
        """With ``freeze_inactive``, let autograd make the gradients of the next step's blocks only."""
        if group["subspace"] == "blocks" and group["freeze_inactive"]:
            active = self._active(group, group["period"], group["period_density"])
            for p in group["params"]:
                p.requires_grad_(p in active)

    def _enter_period(self, p: Tensor, state: State, group: Group) -> bool:
        """Bring a parameter into its group's period. Returns whether its moments begin anew; the state then
        has the right tensors, whatever they hold."""
        if state["period"] == group["period"]:
            return False
        old = self._selection(p, group, state)
        state["period"], state["density"] = int(group["period"]), float(group["period_density"])
        new = self._selections[p] = self._select(p, group, state["period"], state["density"])
        before, after = (selection.state_shape(*self._matrix(p)) for selection in (old, new))
        if group["moments_at_refresh"] == "keep" and before == after:
            return False
        if group["moments_at_refresh"] == "rotate" and "none" not in (old.kind, new.kind):
            if CoordinateTurn.changes(old, new):
                self.inside.rotate_(state, CoordinateTurn(old, new, self._matrix(p)), before, group)
                for name in self.inside.state_shapes(before, group).keys() - self.inside.state_shapes(
                    after, group
                ):
                    del state[name]  # stored in another width now
            return False
        if before != after:
            fresh = self.inside.initial_state(after, group, p.device)
            for name in self.inside.state_shapes(before, group).keys() - {"progress"}:
                del state[name]
            del fresh["progress"]  # counts updates, and so names the random numbers of the next write
            state.update(fresh)
        return True

    @staticmethod
    def _clear(state: State) -> None:
        """Zero moments."""
        for name, value in state.items():
            if isinstance(value, Tensor) and name != "progress":
                value.fill_(1.0 if name == "beta_powers" else 0)

    # ---- the step -----------------------------------------------------------------------------------

    def _is_frozen(self, p: Tensor, group: Group) -> bool:
        blocks = group["subspace"] == "blocks" and group["freeze_inactive"]
        return blocks and p not in self._active(group, group["period"], group["period_density"])

    def move(self, items: list[Item], group: Group, lr: Tensor, *, owned: bool) -> None:
        in_one_pass: list[Item] = []
        fresh: list[bool] = []
        whole: list[Item] = []
        for item in items:
            if self._is_frozen(item.p, group):
                continue
            self._blocks.visited(item.p)
            begins_anew = self._enter_period(item.p, item.state, group)
            is_float = not isinstance(item.p, Int8Weight)
            if is_float and self.inside.is_fusable(item.state):
                in_one_pass.append(item)
                fresh.append(begins_anew)
                continue
            if begins_anew:
                self._clear(item.state)
            kind = self._selection(item.p, group, item.state).kind
            if is_float and kind == "all" and group["proj_params_lr_scale"] == 1:
                whole.append(item)
            else:
                self._move_in_parts(item, group, lr, begins_anew)
        if in_one_pass:
            self._move_in_one_pass(in_one_pass, fresh, group, lr)
        if whole:  # packed moments: the rule has a pass of its own for them
            Whole(self.inside).move(whole, group, lr, owned=owned)

    @staticmethod
    def _scales(group: Group) -> dict[str, float]:
        """Factors of the learning rate inside and outside; decay has none."""
        inside = float(group["proj_params_lr_scale"])
        return {"inside_scale": inside, "outside_scale": inside * float(group["inactive_lr_scale"])}

    def _move_in_one_pass(self, items: list[Item], fresh: list[bool], group: Group, lr: Tensor) -> None:
        params, grads, states = (list(part) for part in zip(*items, strict=True))
        ops.split_step_(
            [p.detach() for p in params],
            grads,
            [self._selection(p, group, state) for p, _, state in items],
            progress=[state["progress"] for state in states],
            **self.inside.split_arguments(states, group),
            **self._scales(group),
            outside=INACTIVE_UPDATE_RULES[group["inactive_update_rule"]],
            fresh=fresh,
            lr=lr,
            weight_decay=group["weight_decay"],
            decay=self.inside.decay,
            seed=group["seed"],
            tensor_ids=[state["tensor_id"] for state in states],
            rounding=group["rounding"],
        )

    def _move_in_parts(self, item: Item, group: Group, lr: Tensor, fresh: bool) -> None:
        p, grad, state = item
        selection = self._selection(p, group, state)
        step = self.weight_step(item, group, lr)
        grad = grad.view(self._matrix(p))
        direction = ops.coordinates_project(grad, selection)
        if selection.kind == "none":
            state["progress"][0] += 1
            state["progress"][2] = 1
        else:
            direction = self.inside.direction_(direction, state, group, fresh=fresh)
        weight, group_size = stored_weight(p)
        ops.coordinates_back_update_(
            weight,
            direction,
            grad,
            selection,
            step,
            outside=INACTIVE_UPDATE_RULES[group["inactive_update_rule"]],
            **self._scales(group),
            group_size=group_size,
        )
        mark_written_weight(p)
