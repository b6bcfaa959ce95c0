"""INT8 weights in a ``state_dict``: plain tensors ``X.weight.codes``, ``X.weight.scale``, ``X.weight.zero``.

Plain tensors, because ``torch.load(weights_only=True)`` and safetensors refuse tensor subclasses. Hooks on a
module turn its INT8 weight into the three on saving and back on loading. Loading also takes a float
``X.weight`` and quantises it. The format does not hold the dtype that the weight shows: the module decides.

Beside the three, ``X.weight`` is the format record, int64 ``[format version, group size]``. It tells what the
scale's shape cannot, and it stops a loader that does not know the format: a float model that expects a matrix
under that name refuses the record's shape, where it would otherwise keep its random weights
(``strict=False``, and ``from_pretrained`` always).

All checks run before the first write: those of a whole model in a hook on its root, those of a module in its
own hook, for when it is loaded alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from frugalore.weights.int8_weight import FLOAT_DTYPES, PARTS, Int8Weight, check_part

#: Of ``X.weight.codes|scale|zero``, the first number of the format record.
FORMAT_VERSION = 1


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
        # On the CPU: writing or reading two numbers on a device would wait for it.
        state_dict[key] = torch.tensor([FORMAT_VERSION, weight.group_size], device="cpu")
        state_dict.update({f"{key}.{part}": getattr(weight, part) for part in PARTS})


def _load(module: nn.Module, state_dict: dict, prefix: str, *_: Any) -> None:
    """Put one ``Int8Weight`` under ``X.weight``, where the module's own loading then finds it."""
    weight = _weight(module)
    if weight is None:
        return
    key = f"{prefix}weight"
    _check(weight, state_dict, key)
    if f"{key}.codes" in state_dict:
        parts = (state_dict.pop(f"{key}.{part}").contiguous() for part in PARTS)
        state_dict[key] = Int8Weight(*parts, weight.group_size, weight.dtype)
    elif key in state_dict and not isinstance(state_dict[key], Int8Weight):
        state_dict[key] = Int8Weight.quantize(state_dict[key], weight.group_size, weight.dtype)


def _check_all(module: nn.Module, state_dict: dict, prefix: str, *_: Any) -> None:
    for name, child in module.named_modules(remove_duplicate=False):
        weight = _weight(child)
        if weight is not None:
            _check(weight, state_dict, f"{prefix}{name}.weight" if name else f"{prefix}weight")


def _check(weight: Int8Weight, state_dict: dict, key: str) -> None:
    """Raise, naming the key, unless ``state_dict`` has a sound value for ``key`` or none at all."""
    names = [f"{key}.{part}" for part in PARTS]
    present = [name for name in names if name in state_dict]
    if is_record(state_dict.get(key)):
        check_record(state_dict[key], key, weight.group_size)
        present.insert(0, key)
        names.insert(0, key)
    elif present and key in state_dict:
        raise ValueError(f"{key}: the state dict has both {key} and {present[0]}")
    if present and len(present) < len(names):
        missing = ", ".join(name for name in names if name not in state_dict)
        raise ValueError(f"{key}: the state dict has {', '.join(present)} but not {missing}")
    if present:
        for part in PARTS:
            name = f"{key}.{part}"
            check_part(part, state_dict[name], name, weight.shape, weight.group_size)
            if state_dict[name].device != state_dict[f"{key}.codes"].device:
                raise ValueError(f"{name}: on another device than {key}.codes")
        check_scale(state_dict[f"{key}.scale"], f"{key}.scale")
    elif key in state_dict:
        _check_float(state_dict[key], key, weight)


def is_record(value: Any) -> bool:
    """Whether ``value`` is a format record, of any version, rather than a weight."""
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.dim() == 1


def check_record(record: Tensor, key: str, group_size: int) -> None:
    """Raise ValueError unless the format record under ``key`` is of this version and of this group size."""
    version, saved, *_ = [*record.tolist(), None, None]
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{key}: INT8 format {FORMAT_VERSION} expected, got {version}; is frugalore too old?"
        )
    if saved != group_size:
        raise ValueError(
            f"{key}: saved in groups of {saved}, the module's weight is in groups of {group_size}"
        )


def check_scale(scale: Tensor, name: str) -> None:
    """Raise ValueError unless every element is a positive finite number; waits for the device."""
    good = scale.isfinite() & (scale > 0)
    if not scale.is_meta and not bool(good.all()):
        raise ValueError(f"{name}: positive finite numbers expected, got {scale[~good][0].item()}")


def _check_float(value: Any, key: str, weight: Int8Weight) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{key}: a tensor expected, got {type(value).__name__}")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{key}: float32, bfloat16 or float16 expected, got {value.dtype}")
    if value.shape != weight.shape:
        raise ValueError(f"{key}: shape {tuple(weight.shape)} expected, got {tuple(value.shape)}")
    if not value.is_meta and not bool(value.isfinite().all()):
        raise ValueError(f"{key}: a NaN or infinite element cannot be quantised")
