"""INT8 weights in a ``state_dict``: plain tensors ``X.weight.codes``, ``X.weight.scale``, ``X.weight.zero``.

Plain tensors, because ``torch.load(weights_only=True)`` and safetensors refuse tensor subclasses. Hooks on a
module turn its INT8 weight into the three on saving and back on loading. Loading also takes a float
``X.weight`` and quantises it. The format does not hold the dtype that the weight shows: the module decides.

All checks run before the first write: those of a whole model in a hook on its root, those of a module in its
own hook, for when it is loaded alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from frugalore.weights.int8_weight import FLOAT_DTYPES, PARTS, Int8Weight, check_part

#: In the metadata of a state dict: the scale's shape alone does not tell all group sizes apart.
_GROUP_SIZE = "int8_group_size"


def install(module: nn.Module) -> None:
    """Make the state dict of ``module`` hold its INT8 ``weight`` as plain tensors; once is enough."""
    if _save not in module._state_dict_hooks.values():
        module.register_state_dict_post_hook(_save)
    _install_before_load(module, _load)


def install_check(model: nn.Module) -> None:
    """Make ``model`` check the INT8 weights of all its modules before it loads any."""
    _install_before_load(model, _check_all)


def remove(module: nn.Module) -> None:
    """Undo :func:`install` and :func:`install_check`."""
    _drop(module._state_dict_hooks, lambda hook: hook is _save)
    _drop(module._load_state_dict_pre_hooks, lambda hook: hook.hook in (_load, _check_all))


def _install_before_load(module: nn.Module, hook: Any) -> None:
    if all(present.hook is not hook for present in module._load_state_dict_pre_hooks.values()):
        module.register_load_state_dict_pre_hook(hook)


def _drop(hooks: dict, ours: Any) -> None:
    for key in [key for key, hook in hooks.items() if ours(hook)]:
        del hooks[key]


def _weight(module: nn.Module) -> Int8Weight | None:
    weight = module._parameters.get("weight")
    return weight if isinstance(weight, Int8Weight) else None


def _save(module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    key = f"{prefix}weight"
    weight = state_dict.get(key)
    if isinstance(weight, Int8Weight):
        del state_dict[key]
        state_dict.update({f"{key}.{part}": getattr(weight, part) for part in PARTS})
        local_metadata[_GROUP_SIZE] = weight.group_size


def _load(module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict, *_: Any) -> None:
    """Put one ``Int8Weight`` under ``X.weight``, where the module's own loading then finds it."""
    weight = _weight(module)
    if weight is None:
        return
    key = f"{prefix}weight"
    _check(weight, state_dict, key, local_metadata)
    if f"{key}.codes" in state_dict:
        parts = (state_dict.pop(f"{key}.{part}").contiguous() for part in PARTS)
        state_dict[key] = Int8Weight(*parts, weight.group_size, weight.dtype)
    elif key in state_dict and not isinstance(state_dict[key], Int8Weight):
        state_dict[key] = Int8Weight.quantize(state_dict[key], weight.group_size, weight.dtype)


def _check_all(module: nn.Module, state_dict: dict, prefix: str, *_: Any) -> None:
    metadata = getattr(state_dict, "_metadata", None) or {}
    for name, child in module.named_modules(remove_duplicate=False):
        weight = _weight(child)
        if weight is not None:
            path = f"{prefix}{name}"
            _check(
                weight, state_dict, f"{path}.weight" if name else f"{prefix}weight", metadata.get(path, {})
            )


def _check(weight: Int8Weight, state_dict: dict, key: str, metadata: dict) -> None:
    """Raise, naming the key, unless ``state_dict`` has a sound value for ``key`` or none at all."""
    names = [f"{key}.{part}" for part in PARTS]
    present = [name for name in names if name in state_dict]
    if present and key in state_dict:
        raise ValueError(f"{key}: the state dict has both {key} and {present[0]}")
    if present and len(present) < len(names):
        missing = ", ".join(name for name in names if name not in state_dict)
        raise ValueError(f"{key}: the state dict has {', '.join(present)} but not {missing}")
    if present:
        saved = metadata.get(_GROUP_SIZE, weight.group_size)
        if saved != weight.group_size:
            raise ValueError(
                f"{key}: saved in groups of {saved}, the module's weight is in groups of {weight.group_size}"
            )
        for part, name in zip(PARTS, names, strict=True):
            check_part(part, state_dict[name], name, weight.shape, weight.group_size)
            if state_dict[name].device != state_dict[names[0]].device:
                raise ValueError(f"{name}: on another device than {names[0]}")
        scale = state_dict[f"{key}.scale"]
        if not scale.is_meta and not bool((scale.isfinite() & (scale > 0)).all()):
            raise ValueError(f"{key}.scale: positive finite numbers expected, got {_first_bad(scale)}")
    elif key in state_dict:
        _check_float(state_dict[key], key, weight)


def _first_bad(scale: Tensor) -> float:
    return scale[~(scale.isfinite() & (scale > 0))][0].item()


def _check_float(value: Any, key: str, weight: Int8Weight) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{key}: a tensor expected, got {type(value).__name__}")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{key}: float32, bfloat16 or float16 expected, got {value.dtype}")
    if value.shape != weight.shape:
        raise ValueError(f"{key}: shape {tuple(weight.shape)} expected, got {tuple(value.shape)}")
    if not value.is_meta and not bool(value.isfinite().all()):
        raise ValueError(f"{key}: a NaN or infinite element cannot be quantised")
