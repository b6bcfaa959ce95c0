"""The engine: one step loop for every optimizer of the library.

    G = inside(G) + outside(G);   inside -> state-full rule;   outside -> state-free rule;   one fused write

A preset names the parts: a rule for the inside with its conventions, and the treatments of its groups: in a
low-rank subspace (:mod:`frugalore.optim.low_rank`) or in one of coordinates
(:mod:`frugalore.optim.coordinates`). A group with the treatment's marker (``rank``, ``density``) goes through
the subspace; the others are moved whole by the same rule (:mod:`frugalore.optim.whole`).

Nothing waits for the device: the learning rate, the step count and the decision to skip a non-finite gradient
are read and made there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frugalore.optim import checkpoint, checks
from frugalore.optim.treatment import Item, Treatment
from frugalore.optim.whole import Whole

if TYPE_CHECKING:
    from frugalore.optim.per_layer import PerLayerUpdates

#: Keys that put a group into a subspace, of all presets.
MARKERS = frozenset({"rank", "density"})

#: What a group may hold besides options.
_NO_OPTIONS = {"params", "param_names", "name", "initial_lr"}


class SubspaceOptimizer(torch.optim.Optimizer):
    """The optimizer that presets configure.

    Args:
        params: parameters, ``(name, parameter)`` pairs or groups of them (:func:`frugalore.param_groups`).
        defaults: of every group.
        treatments: of groups in a subspace. All have one marker, one rule and the same defaults; the first
            that takes a group treats it.
        seed: of all randomness (stochastic rounding, sketches, selections). Default: drawn from torch's
            generator, so ``torch.manual_seed`` governs. It is part of the state.

    State is tensors, numbers and lists of numbers; ``torch.load(weights_only=True)`` reads it.
    """

    _COPIED = ("_option_names", "_treatments", "_whole", "_names", "_tensor_ids", "_layouts", "_constructed")

    def __init__(
        self,
        params: Iterable,
        defaults: dict[str, Any],
        *,
        treatments: Sequence[Treatment],
        seed: int | None = None,
    ):
        if seed is None:
            seed = int(torch.randint(2**62, ()).item())
        self._treatments = tuple(treatments)
        self._whole = Whole(treatments[0].inside)
        self._names: dict[Tensor, str] = {}
        self._tensor_ids: dict[Tensor, int] = {}
        self._layouts: dict[Tensor, dict[str, Any]] = {}
        self._lr_tensors: dict[tuple[int, torch.device], Tensor] = {}
        self._lr_values: dict[tuple[int, torch.device], float] = {}
        self._per_layer: PerLayerUpdates | None = None
        self._per_layer_waiting: dict[str, Any] | None = None  # loaded; for per_layer_updates() to take over
        defaults = defaults | {"seed": int(seed), "format": checkpoint.FORMAT}
        self._option_names = frozenset(defaults)  # torch adds to its own copy later
        self._constructed = False
        super().__init__(params, defaults)
        self._constructed = True
        for group in self.param_groups:
            self.treatment(group).entered(group)

    # ---- groups -------------------------------------------------------------------------------------

    @property
    def marker(self) -> str:
        """The key that puts a group into the subspace."""
        return self._treatments[0].marker

    def treatment(self, group: dict[str, Any]) -> Treatment:
        """Of a group with all its options."""
        if self.marker not in group:
            return self._whole
        return next(treatment for treatment in self._treatments if treatment.takes(group))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch. A group with the marker trains in the subspace and takes the subspace's options."""
        group = dict(param_group)
        for other in MARKERS - {self.marker}:
            if other in group:
                raise ValueError(
                    f"{other}: {self.marker} expected in a group of {type(self).__name__}, got {other} "
                    f"{group[other]!r}"
                )
        if self.marker in group:
            group = self._treatments[0].defaults | group
        unknown = sorted(group.keys() - self.option_names(group) - _NO_OPTIONS)
        if unknown:
            kind = "with" if self.marker in group else "without"
            names = ", ".join(unknown)
            checks.warn(f"param group: {names}: no option of a group {kind} {self.marker}; ignored")
        self._check_options(self.defaults | group)
        checks.check_unique(group["params"], self._names)
        super().add_param_group(group)
        group = self.param_groups[-1]
        names = group.get("param_names") or [
            f"parameter {len(self._names) + i}" for i in range(len(group["params"]))
        ]
        ordinals = [len(self._tensor_ids) + i for i in range(len(names))]
        try:
            if len(set(group["params"])) < len(group["params"]):
                raise ValueError("params: a parameter is twice in one group")
            for name, p in zip(names, group["params"], strict=True):
                self._check_parameter(name, p, group)
            self.treatment(group).joined(group, names, ordinals)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        taken = set(self._names.values())
        for name, p, ordinal in zip(names, group["params"], ordinals, strict=True):
            self._names[p] = f"{name} (group {len(self.param_groups) - 1})" if name in taken else name
            self._tensor_ids[p] = ordinal
        self._remember_layouts([group])
        if self._constructed:
            self.treatment(group).entered(group)
        if self._per_layer is not None:
            self._per_layer._hook_parameters()

    def _layout(self, group: dict[str, Any]) -> dict[str, Any]:
        """The options that the state was made for."""
        return {name: group[name] for name in self.treatment(group).layout_options(group)}

    def _remember_layouts(self, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            self._layouts.update(dict.fromkeys(group["params"], self._layout(group)))

    def _check_options(self, group: dict[str, Any]) -> None:
        checks.check_write_options(group)
        self.treatment(group).check_options(group)

    def _check_parameter(self, name: str, p: Tensor, group: dict[str, Any]) -> None:
        checks.check_parameter(name, p)
        self.treatment(group).check_parameter(name, p, group)

    # ---- the step -----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient. Gradients stay as they are.

        A non-finite gradient never reaches weights or state. A matrix in a low-rank subspace skips the whole
        update, and so does, for an element inside, one in coordinates with INT8 weights, or packed moments of
        a part of it; any other parameter skips the elements concerned. :meth:`statistics` counts them.

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
            treatment = self.treatment(group)
            for batch in treatment.batches([p for p in group["params"] if p.grad is not None]):
                items = [Item(p, self._keep(p, p.grad, group), self.state[p]) for p in batch]
                treatment.move(items, group, self._lr(index, batch[0].device), owned=False)
        self._end_step()
        return loss

    def _end_step(self) -> None:
        for group in self.param_groups:
            self.treatment(group).end_step(group, self.state)

    def _keep(self, p: Tensor, grad: Tensor, group: dict[str, Any], *, first: bool = True) -> Tensor:
        """What of a gradient the move of ``p`` needs; see :meth:`Treatment.keep`."""
        return self.treatment(group).keep(p, grad, self._state_of(p, group), group, first=first)

    def _move(self, p: Tensor, kept: Tensor, index: int) -> None:
        """Move one parameter by what was kept, which is overwritten."""
        group = self.param_groups[index]
        item = Item(p, kept, self._state_of(p, group))
        self.treatment(group).move([item], group, self._lr(index, p.device), owned=True)

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
        self._check_parameter(self._names[p], p, group)
        checks.check_gradient(self._names[p], grad)

    def _raise_changed(self, p: Tensor, layout: dict[str, Any]) -> None:
        known = self._layouts[p]
        option = next(name for name in known | layout if known.get(name) != layout.get(name))
        raise ValueError(
            f"{self._names[p]}: {option} was {known.get(option)!r} when it joined the optimizer and cannot "
            f"change, got {layout.get(option)!r}"
        )

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = self.state[p]
        if not state:
            ordinal = self._tensor_ids[p]
            state["tensor_id"] = ordinal
            state.update(self.treatment(group).initial_state(p, group, ordinal))
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
        self._settle()
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
        self._settle()
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
            for treatment in self._treatments:
                treatment.forget()
            self._lr_values.clear()
            self._remember_layouts(self.param_groups)
            self.state.clear()
            self.state.update(placed)
            for group in self.param_groups:
                self.treatment(group).entered(group)
            self._per_layer_waiting = per_layer or None
            if self._per_layer is not None:
                self._per_layer._install(self._per_layer_waiting)
                self._per_layer_waiting = None
                self._per_layer._hook_parameters()  # the loaded period may have thawed others

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
        marked = self.marker in group
        return {*self._option_names, *((self.marker, *self._treatments[0].defaults) if marked else ())}

    def _settle(self) -> None:
        for treatment in self._treatments:
            treatment.settle()

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
        self._settle()
        result = {}
        for p, state in self.state.items():
            applied, skipped, _ = state["progress"].tolist()
            known = {name: state[name] for name in ("refreshes", "gap", "period") if name in state}
            result[self._names[p]] = {"applied": applied, "skipped": skipped, **known}
        return result
