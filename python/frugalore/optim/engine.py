"""The engine: one step loop for every optimizer of the library.

    G = inside(G) + outside(G);   inside -> state-full rule;   weight <- one fused write

A preset names the parts: a subspace (how the inside is chosen and stored), a rule for the inside, the
conventions of its source. Parameters in a group with ``rank`` go through the subspace; the others are moved
whole by the same rule, all of a group in one launch.

One step of a matrix: refresh the basis if its schedule says so; R = project(G); direction = rule(R);
write(W, back(direction)). Nothing waits for the device: the learning rate, the step count and the decision to
skip a non-finite gradient are read and made there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frugalore import ops
from frugalore.optim import checkpoint, checks
from frugalore.rules import AdamW
from frugalore.subspace import RefreshSchedule, SvdSubspace, matrix_shape
from frugalore.weights.int8_weight import Int8Weight
from frugalore.weights.write import descend_

if TYPE_CHECKING:
    from frugalore.optim.per_layer import PerLayerUpdates

#: What a group may hold besides options.
_NO_OPTIONS = {"params", "param_names", "name", "initial_lr"}


class SubspaceOptimizer(torch.optim.Optimizer):
    """The optimizer that presets configure.

    Args:
        params: parameters, ``(name, parameter)`` pairs or groups of them (:func:`frugalore.param_groups`).
        defaults: of every group.
        subspace_defaults: of every group that has ``rank``.
        subspace, inside: the parts.
        seed: of all randomness (stochastic rounding, sketches). Default: drawn from torch's generator, so
            ``torch.manual_seed`` governs. It is part of the state.

    State is tensors, numbers and lists of numbers; ``torch.load(weights_only=True)`` reads it.
    """

    _COPIED = (
        "_option_names",
        "_subspace_defaults",
        "_subspace",
        "_inside",
        "_schedule",
        "_names",
        "_tensor_ids",
        "_layouts",
    )

    def __init__(
        self,
        params: Iterable,
        defaults: dict[str, Any],
        *,
        subspace_defaults: dict[str, Any],
        subspace: SvdSubspace,
        inside: AdamW,
        seed: int | None = None,
    ):
        if seed is None:
            seed = int(torch.randint(2**62, ()).item())
        self._subspace_defaults = subspace_defaults
        self._subspace = subspace
        self._inside = inside
        self._schedule = RefreshSchedule()
        self._names: dict[Tensor, str] = {}
        self._tensor_ids: dict[Tensor, int] = {}
        self._layouts: dict[Tensor, dict[str, Any]] = {}
        self._lr_tensors: dict[tuple[int, torch.device], Tensor] = {}
        self._lr_values: dict[tuple[int, torch.device], float] = {}
        self._per_layer: PerLayerUpdates | None = None
        self._per_layer_waiting: dict[str, Any] | None = None  # loaded; for per_layer_updates() to take over
        defaults = defaults | {"seed": int(seed), "format": checkpoint.FORMAT}
        self._option_names = frozenset(defaults)  # torch adds to its own copy later
        super().__init__(params, defaults)

    # ---- groups -------------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch. A group with ``rank`` trains in the subspace and takes the subspace's options."""
        group = dict(param_group)
        if "rank" in group:
            group = self._subspace_defaults | group
        unknown = sorted(group.keys() - self.option_names(group) - _NO_OPTIONS)
        if unknown:
            kind = "with" if "rank" in group else "without"
            checks.warn(f"param group: {', '.join(unknown)}: no option of a group {kind} rank; ignored")
        self._check_options(self.defaults | group)
        checks.check_unique(group["params"], self._names)
        super().add_param_group(group)
        group = self.param_groups[-1]
        names = group.get("param_names") or [
            f"parameter {len(self._names) + i}" for i in range(len(group["params"]))
        ]
        try:
            if len(set(group["params"])) < len(group["params"]):
                raise ValueError("params: a parameter is twice in one group")
            for name, p in zip(names, group["params"], strict=True):
                checks.check_parameter(name, p, group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        if "rank" in group:
            checks.warn_of_small_matrices(names, group)
        taken = set(self._names.values())
        for name, p in zip(names, group["params"], strict=True):
            self._names[p] = f"{name} (group {len(self.param_groups) - 1})" if name in taken else name
            self._tensor_ids[p] = len(self._tensor_ids)
        self._remember_layouts([group])
        if self._per_layer is not None:
            self._per_layer._hook_parameters()

    def _layout(self, group: dict[str, Any]) -> dict[str, Any]:
        """The options that the state was made for."""
        names = self._inside.LAYOUT_OPTIONS
        if "rank" in group:
            names = (*names, *self._subspace.LAYOUT_OPTIONS, *self._schedule.LAYOUT_OPTIONS)
        return {name: group[name] for name in names}

    def _remember_layouts(self, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            self._layouts.update(dict.fromkeys(group["params"], self._layout(group)))

    def _check_options(self, group: dict[str, Any]) -> None:
        checks.check_write_options(group)
        self._inside.check_options(group)
        if "rank" in group:
            self._subspace.check_options(group)
            self._schedule.check_options(group)

    # ---- the step -----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient. Gradients stay as they are.

        A non-finite gradient never reaches weights or state: a matrix in the subspace skips the whole update,
        a whole parameter the elements concerned. :meth:`statistics` counts them.

        With :func:`frugalore.per_layer_updates` it closes the round instead.
        """
        if self._per_layer is not None:
            return self._per_layer.close_round(closure)
        self._leave_per_layer_state()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_step()
        for index, group in enumerate(self.param_groups):
            whole = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                if "rank" in group:
                    self._write_matrix(p, self._inside_of(p, p.grad, group), group, self._lr(index, p.device))
                elif isinstance(p, Int8Weight):
                    self._write_matrix(p, p.grad.clone(), group, self._lr(index, p.device))
                else:
                    whole.append(p)
            for device in {p.device for p in whole}:
                params = [p for p in whole if p.device == device]
                grads = [p.grad.contiguous() for p in params]
                self._move_whole(params, grads, group, self._lr(index, device))
        return loss

    def _leave_per_layer_state(self) -> None:
        if self._per_layer_waiting is not None and self._per_layer_waiting["gradients"]:
            raise RuntimeError(
                "the loaded state is from the middle of a round of per-layer updates: call "
                "frugalore.per_layer_updates(optimizer, accumulation_steps="
                f"{self._per_layer_waiting['accumulation_steps']}) to continue it, or load the state without "
                "its key 'per_layer'"
            )
        self._per_layer_waiting = None

    def _check_step(self) -> None:
        """Everything that could raise, before the first parameter moves."""
        for index, group in enumerate(self.param_groups):
            self._check_group(index, group["params"])
            for p in group["params"]:
                if p.grad is not None:
                    self._check_gradient(p, p.grad, group)

    def _check_group(self, index: int, params: list[Tensor]) -> None:
        """The options of a group, as they are at this moment, for these of its parameters."""
        group = self.param_groups[index]
        try:
            self._check_options(group)
        except (TypeError, ValueError) as error:
            raise type(error)(f"param group {index}: {error}") from None
        layout = self._layout(group)
        for p in params:
            if self._layouts[p] != layout:
                self._raise_changed(p, layout)

    def _check_gradient(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        checks.check_parameter(self._names[p], p, group)
        checks.check_gradient(self._names[p], grad)

    def _raise_changed(self, p: Tensor, layout: dict[str, Any]) -> None:
        known = self._layouts[p]
        option = next(name for name in known | layout if known.get(name) != layout.get(name))
        raise ValueError(
            f"{self._names[p]}: {option} was {known.get(option)!r} when it joined the optimizer and cannot "
            f"change, got {layout.get(option)!r}"
        )

    def _inside_of(self, p: Tensor, grad: Tensor, group: dict[str, Any], *, first: bool = True) -> Tensor:
        """What of a gradient the rule gets: R in a group with ``rank``, the gradient itself elsewhere.

        Args:
            first: whether the gradient opens a call of the parameter. If not, the basis stays, unless its
                refresh failed so far: what was projected in this call is zero or not finite then.
        """
        grad = grad.contiguous()
        if "rank" not in group:
            return grad
        grad = grad.view(matrix_shape(grad.shape))
        state = self._state_of(p, group)
        if self._schedule.due(state, group) if first else self._schedule.failed(state):
            self._refresh(grad, state, group)
        state["calls"] += first
        return self._subspace.project(grad, state, group)

    def _refresh(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        iterations = self._schedule.power_iterations(state)
        similarity, turn = self._subspace.refresh(grad, state, group, iterations)
        shape = self._subspace.low_rank_shape(grad.shape, group)
        if turn is not None and group["moments_at_refresh"] == "rotate":
            self._inside.rotate_(state, turn, shape)
        elif turn is not None:
            fresh = self._inside.initial_state(shape, group, grad.device)
            del fresh["progress"]  # counts updates, and so names the random numbers of the next write
            turn.replace_(state, fresh)
        self._schedule.refreshed(state, group, similarity)

    def _write_matrix(self, p: Tensor, inside: Tensor, group: dict[str, Any], lr: Tensor) -> None:
        """Move a matrix; ``inside`` is overwritten."""
        state = self._state_of(p, group)
        in_subspace = "rank" in group
        step = ops.Step(
            lr=self._inside.learning_rate(p, state, group, lr),
            progress=state["progress"],
            alpha=-float(group["scale"]) if in_subspace else -1.0,
            weight_decay=group["weight_decay"],
            decay=self._inside.decay,
            seed=group["seed"],
            tensor_id=state["tensor_id"],
            rounding=group["rounding"],
        )
        direction = self._inside.direction_(inside, state, group)
        if not in_subspace:
            return descend_(p, direction, step)
        direction, basis, side = self._subspace.way_back(direction, state, group, p.shape)
        return descend_(p, direction, step, basis, side, group["quant_group_size"])

    def _move_whole(
        self, params: list[Tensor], grads: list[Tensor], group: dict[str, Any], lr: Tensor
    ) -> None:
        states = [self._state_of(p, group) for p in params]
        self._inside.step_([p.detach() for p in params], grads, states, group, lr)

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = self.state[p]
        if not state:
            shape = self._subspace.low_rank_shape(p.shape, group) if "rank" in group else p.shape
            state["tensor_id"] = self._tensor_ids[p]
            state.update(self._inside.initial_state(shape, group, p.device))
            if "rank" in group:
                state.update(self._schedule.initial_state(group, self._tensor_ids[p]))
        return state

    def _lr(self, index: int, device: torch.device) -> Tensor:
        """The group's learning rate as the kernels read it; refilled only when it changed."""
        key, lr = (index, device), self.param_groups[index]["lr"]
        if lr is None:  # The rule makes its own.
            lr = 0.0
        if key not in self._lr_tensors:
            self._lr_tensors[key] = torch.empty(1, dtype=torch.float64, device=device)
        tensor = self._lr_tensors[key]
        if isinstance(lr, Tensor):
            tensor.copy_(lr.reshape(1), non_blocking=True)
            self._lr_values.pop(key, None)
        elif self._lr_values.get(key) != lr:
            tensor.fill_(float(lr))
            self._lr_values[key] = lr
        return tensor

    # ---- state --------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """What ``copy`` and ``pickle`` take along; torch's own leaves out whatever a subclass adds."""
        self._schedule.settle_all()
        own = {name: value for name, value in self.__dict__.items() if name in self._COPIED}
        # Hooks stay with the parameters they are on; per_layer_updates() on the copy takes the state over.
        fresh = {"_lr_tensors": {}, "_lr_values": {}, "_per_layer": None}
        return super().__getstate__() | own | fresh | {"_per_layer_waiting": self._per_layer_state()}

    def _per_layer_state(self) -> dict[str, Any] | None:
        return self._per_layer_waiting if self._per_layer is None else self._per_layer.state_dict()

    def _all_parameters(self) -> list[Tensor]:
        """In the order of their positions in ``state_dict()``."""
        return [p for group in self.param_groups for p in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """As in torch: plain tensors, numbers and lists, no object of ours.

        The key ``per_layer`` holds the state of :func:`frugalore.per_layer_updates`, where there is one.
        """
        self._schedule.settle_all()
        per_layer = self._per_layer_state()
        return super().state_dict() | ({} if per_layer is None else {"per_layer": per_layer})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of the same optimizer, to the bit on the same machine.

        State tensors keep their saved dtype (torch would cast them to the parameter's). Per-layer updates may
        be installed before or after; a state without them begins a round.

        Raises:
            ValueError: a state of another optimizer, another format, or other shapes, named; nothing is
                changed then.
        """
        checkpoint.check_keys(state_dict)
        placed: dict[Tensor, dict[str, Any]] = {}
        per_layer: dict[str, Any] = {}

        # After the hooks that may change the state, and before those that may read what was loaded.
        def check(_: Any, changed: dict[str, Any]) -> dict[str, Any]:
            checkpoint.check(self, changed)
            placed.update(checkpoint.placed(self, changed))
            per_layer.update(changed.get("per_layer") or {})
            return {**changed, "state": {}}

        def install(_: Any) -> None:
            self._schedule.forget()
            self._lr_values.clear()
            self._remember_layouts(self.param_groups)
            self.state.clear()
            self.state.update(placed)
            self._per_layer_waiting = per_layer or None
            if self._per_layer is not None:
                self._per_layer._install(self._per_layer_waiting)
                self._per_layer_waiting = None

        hooks = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(install, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def option_names(self, group: dict[str, Any]) -> set[str]:
        """What every group like ``group`` holds besides its parameters."""
        return {*self._option_names, *(("rank", *self._subspace_defaults) if "rank" in group else ())}

    def expected_state(
        self, p: Tensor, group: dict[str, Any]
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each state tensor of ``p`` under the options of ``group``."""
        if "rank" not in group:
            return self._inside.state_shapes(tuple(p.shape), group)
        shapes = self._inside.state_shapes(self._subspace.low_rank_shape(p.shape, group), group)
        return shapes | self._subspace.state_shapes(p.shape, group)

    # ---- what it knows ------------------------------------------------------------------------------

    def state_bytes(self) -> dict[str, int]:
        """Bytes of the state on the devices: ``moments``, ``basis`` and ``records`` (step counts)."""
        total = {"moments": 0, "basis": 0, "records": 0}
        for state in self.state.values():
            for name, value in state.items():
                if not isinstance(value, Tensor):
                    continue
                kinds = {
                    "exp_avg": "moments",
                    "momentum_buffer": "moments",
                    "basis": "basis",
                    "first_vector": "basis",
                }
                kind = next((k for prefix, k in kinds.items() if name.startswith(prefix)), "records")
                total[kind] += value.numel() * value.element_size()
        return total

    def statistics(self) -> dict[str, dict[str, int]]:
        """For each parameter, by name: ``applied`` and ``skipped`` updates (elements, for a parameter that is
        moved whole), and in the subspace ``refreshes`` and the present ``gap``. Waits for the device."""
        self._schedule.settle_all()
        result = {}
        for p, state in self.state.items():
            applied, skipped, _ = state["progress"].tolist()
            known = {name: state[name] for name in ("refreshes", "gap") if name in state}
            result[self._names[p]] = {"applied": applied, "skipped": skipped, **known}
        return result
