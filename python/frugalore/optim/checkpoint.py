"""Checks of an optimizer state before it is loaded, so that a wrong one changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from frugalore.optim.engine import SubspaceOptimizer

#: Version of the layout of the state; in every param group.
FORMAT = 2


def check_keys(state_dict: Any) -> None:
    """ValueError unless ``state_dict`` looks like the state of an optimizer at all."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError("state_dict: the keys 'state' and 'param_groups' expected")


def check(optimizer: SubspaceOptimizer, state_dict: dict[str, Any]) -> None:
    """ValueError, naming what differs, unless ``state_dict`` fits ``optimizer``."""
    check_keys(state_dict)
    saved_groups = state_dict["param_groups"]
    if not _is_well_formed(state_dict["state"], saved_groups):
        raise ValueError("state_dict: a dict of states and a list of param groups with params expected")
    if len(saved_groups) != len(optimizer.param_groups):
        raise ValueError(
            f"state_dict: {len(optimizer.param_groups)} param groups expected, got {len(saved_groups)}"
        )
    for index, (group, saved) in enumerate(zip(optimizer.param_groups, saved_groups, strict=True)):
        _check_group(optimizer, index, group, saved)
        for p, key in zip(group["params"], saved["params"], strict=True):
            if key in state_dict["state"]:
                _check_state(optimizer, p, state_dict["state"][key], saved, group["params"])
    if state_dict.get("per_layer"):
        _check_per_layer(optimizer, state_dict["per_layer"], saved_groups)


def _is_well_formed(states: Any, groups: Any) -> bool:
    return (
        isinstance(states, dict)
        and all(isinstance(state, dict) for state in states.values())
        and isinstance(groups, list)
        and all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups)
    )


def _check_group(
    optimizer: SubspaceOptimizer, index: int, group: dict[str, Any], saved: dict[str, Any]
) -> None:
    if saved.get("format") != FORMAT:
        raise ValueError(
            f"param group {index}: format {FORMAT} of a frugalore optimizer expected, "
            f"got {saved.get('format')}"
        )
    if len(saved["params"]) != len(group["params"]):
        raise ValueError(
            f"param group {index}: {len(group['params'])} parameters expected, got {len(saved['params'])}"
        )
    marker = optimizer.marker
    if (marker in group) != (marker in saved):
        raise ValueError(
            f"param group {index}: {marker} {group.get(marker)} expected, got {saved.get(marker)} in the "
            "state"
        )
    missing = sorted(optimizer.option_names(group) - saved.keys())
    if missing:
        raise ValueError(f"param group {index}: the state has no {', '.join(missing)}")
    for name, value in optimizer._layout(group).items():
        if saved[name] != value:
            raise ValueError(
                f"param group {index}: {name} {value!r} expected, got {saved[name]!r} in the state"
            )
    try:
        optimizer._check_options(saved)
    except (TypeError, ValueError) as error:
        raise ValueError(f"param group {index} of the state: {error}") from error


def _check_state(
    optimizer: SubspaceOptimizer,
    p: Tensor,
    state: dict[str, Any],
    saved: dict[str, Any],
    params: list[Tensor],
) -> None:
    if not state:
        return
    name, treatment = optimizer._names[p], optimizer.treatment(saved)
    for key, kind in ({"tensor_id": int} | treatment.numbers).items():
        if not isinstance(state.get(key), kind):
            raise ValueError(f"{name}: {key} as {kind.__name__} expected, got {state.get(key)!r}")
    treatment.check_numbers(name, state)
    # The loaded group has no parameters yet; those it is for have the same places in the present one.
    expected = treatment.state_shapes(p, {**saved, "params": params}, state)
    tensors = {key for key, value in state.items() if isinstance(value, Tensor)}
    if tensors != expected.keys():
        raise ValueError(f"{name}: state {sorted(expected)} expected, got {sorted(tensors)}")
    for key, (shape, dtype) in expected.items():
        if tuple(state[key].shape) != shape or state[key].dtype != dtype:
            raise ValueError(
                f"{name}: {key} {shape} {dtype} expected, got {tuple(state[key].shape)} {state[key].dtype}"
            )
        if state[key].is_floating_point() and not bool(state[key].isfinite().all()):
            raise ValueError(f"{name}: {key} has a NaN or infinite element")


def _check_per_layer(
    optimizer: SubspaceOptimizer, state: dict[str, Any], saved_groups: list[dict[str, Any]]
) -> None:
    """The part of :mod:`frugalore.optim.per_layer`."""
    keys = {"accumulation_steps": int, "gradients": dict, "accumulated": dict}
    for key, kind in keys.items():
        if not isinstance(state, dict) or not isinstance(state.get(key), kind):
            raise ValueError(f"per_layer: {key} as {kind.__name__} expected in the state")
    steps, counts, accumulated = (state[key] for key in keys)
    if optimizer._per_layer is not None:
        check_rounds_agree(steps, bool(counts), optimizer._per_layer.accumulation_steps)
    params = [
        (p, saved)
        for group, saved in zip(optimizer.param_groups, saved_groups, strict=True)
        for p in group["params"]
    ]
    for index, count in counts.items():
        if index not in range(len(params)) or count not in range(1, steps + 1):
            raise ValueError(f"per_layer: {count} gradients of parameter {index} in a round of {steps}")
    if not accumulated.keys() <= counts.keys():
        raise ValueError("per_layer: accumulated gradients of parameters that got none")
    for index, value in accumulated.items():
        p, saved = params[index]
        shape, dtypes = optimizer.treatment(saved).kept_shape(p, saved)
        if not isinstance(value, Tensor) or value.shape != shape or value.dtype not in dtypes:
            got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)
            name = optimizer._names[p]
            raise ValueError(f"{name}: accumulated gradient {tuple(shape)} {dtypes} expected, got {got}")
    for key in ("square_sum", "last_norm"):
        value = state.get(key)
        if value is not None and (
            not isinstance(value, Tensor) or value.dim() or value.dtype != torch.float64
        ):
            raise ValueError(f"per_layer: {key} as a float64 scalar expected, got {value!r}")


def check_rounds_agree(saved: int, is_open: bool, accumulation_steps: int) -> None:
    """ValueError if a state from the middle of a round would have to continue in rounds of another length."""
    if is_open and saved != accumulation_steps:
        raise ValueError(
            f"accumulation_steps: {saved} expected, as in the state, which is from the middle of a round; "
            f"got {accumulation_steps}"
        )


def placed(optimizer: SubspaceOptimizer, state_dict: dict[str, Any]) -> dict[Tensor, dict[str, Any]]:
    """Copies of the saved state on the parameters' devices, in the saved dtypes, keyed by parameter."""
    result = {}
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        for p, key in zip(group["params"], saved["params"], strict=True):
            if state_dict["state"].get(key):
                result[p] = {
                    name: _copied(value, p.device) for name, value in state_dict["state"][key].items()
                }
    return result


def _copied(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    return list(value) if isinstance(value, list) else value
