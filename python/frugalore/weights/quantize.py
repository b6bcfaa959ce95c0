"""``quantize_`` and ``dequantize_``: the weights of a model's linear layers to INT8 and back, in place."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from frugalore.target_modules import matching_linears
from frugalore.weights import state_dict
from frugalore.weights.int8_weight import FLOAT_DTYPES, Int8Weight, check_float_dtype


def quantize_(
    model: nn.Module,
    target_modules: str | Iterable[str] | None = None,
    group_size: int = 256,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Replace the weights of linear layers by INT8 weights that train as before (Q-GaLore, arXiv 2407.08296).

    The modules stay what they are. Each weight becomes an ``nn.Parameter`` of type
    :class:`frugalore.Int8Weight`, with the same ``requires_grad`` and ``.grad``; a weight that several
    modules share stays shared. Biases stay float. ``model.state_dict()`` then holds ``X.weight.codes``,
    ``X.weight.scale`` and ``X.weight.zero``, and under ``X.weight`` a record of the format
    (:mod:`frugalore.weights.state_dict`). The config of a transformers model gets a ``quantization_config``,
    for ``save_pretrained`` and ``from_pretrained``. Build the optimizer afterwards.

    Args:
        model: changed in place.
        target_modules: which linear layers, as in :func:`frugalore.target_modules.matching_linears`. If not
            given: every ``nn.Linear``, except the output head (named ``lm_head``, or what
            ``model.get_output_embeddings()`` returns) and those that share their weight with a module that is
            not a linear layer. Layers that are INT8 already are skipped.
        group_size: elements of a row that share a scale and a zero-point; positive.
        dtype: what the weights show and compute in, float32, bfloat16 or float16; if not given, each keeps
            its own. The codes are computed from the weight as it is, in float32.

    Returns:
        ``model``.

    Raises:
        TypeError: a weight of another dtype or class. ValueError: no layer matches; or a weight that has a
        NaN or infinite element, lies on the meta device, has hooks, is shared with a module that is not a
        linear layer, or is INT8 already in groups of another size. Nothing is changed then.
    """
    if dtype is not None:
        check_float_dtype("dtype", dtype)
    if group_size <= 0:
        raise ValueError(f"group_size: a positive integer expected, got {group_size}")
    targets = _default_targets(model) if target_modules is None else matching_linears(model, target_modules)
    owners = _owners(model)
    new: dict[int, Tensor] = {}
    for name, module in targets:
        weight = module._parameters.get("weight")
        key = f"{name}.weight" if name else "weight"
        if isinstance(weight, Int8Weight):
            _check_group_size(key, weight, group_size)
        elif id(weight) not in new:
            _check_weight(key, weight, owners)
            new[id(weight)] = weight
    for identity in list(new):  # Each float weight is let go before the next one is quantised.
        weight = new.pop(identity)
        _replace(owners[identity], _quantized(weight, group_size, dtype))
    state_dict.install_check(model)
    _tell_transformers(model)
    return model


def dequantize_(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Replace every INT8 weight of ``model`` by a float parameter; the inverse of :func:`quantize_`.

    Args:
        model: changed in place; without INT8 weights it stays as it is.
        dtype: of the float weights, float32, bfloat16 or float16; if not given, what each weight shows.

    Returns:
        ``model``. Its state dict holds ``X.weight`` again.
    """
    if dtype is not None:
        check_float_dtype("dtype", dtype)
    for places in _owners(model).values():
        module, _, name = places[0]
        weight = module._parameters[name]
        if isinstance(weight, Int8Weight):
            dense = weight.detach().dequantize(dtype)
            _replace(places, _parameter(dense, weight))
    for module in model.modules():
        state_dict.remove(module)
    _tell_transformers(model)
    return model


def _tell_transformers(model: nn.Module) -> None:
    """Where ``model`` is one of transformers': which layers are INT8, for its config and its loader."""
    if hasattr(model, "config") and hasattr(model, "save_pretrained") and "transformers" in sys.modules:
        try:
            from frugalore.integrations.transformers import describe
        except ImportError:  # Too old. It then refuses the saved folder, which the format record sees to.
            return
        describe(model)


#: Where a parameter sits: the module, its name in the model, the parameter's name in the module.
_Place = tuple[nn.Module, str, str]


def _owners(model: nn.Module) -> dict[int, list[_Place]]:
    owners: dict[int, list[_Place]] = {}
    for name, module in model.named_modules():
        for parameter_name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, name, parameter_name))
    return owners


def _default_targets(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    owners = _owners(model)

    def wanted(name: str, module: nn.Linear) -> bool:
        if module is head or name.rpartition(".")[2] == "lm_head":
            return False
        places = owners.get(id(module._parameters.get("weight")), [])
        return all(_is_linear_weight(place) for place in places)

    targets = [
        (name, module) for name, module in matching_linears(model, "all-linear") if wanted(name, module)
    ]
    if not targets:
        raise ValueError(
            "model: no nn.Linear besides the output head and tied embeddings; name target_modules"
        )
    return targets


def _is_linear_weight(place: _Place) -> bool:
    module, _, parameter_name = place
    return isinstance(module, nn.Linear) and parameter_name == "weight"


def _check_group_size(key: str, weight: Int8Weight, group_size: int) -> None:
    if weight.group_size != group_size:
        raise ValueError(
            f"group_size: {key} is INT8 already in groups of {weight.group_size}, got {group_size}; "
            "dequantize_ the model first"
        )


def _check_weight(key: str, weight: Tensor | None, owners: dict[int, list[_Place]]) -> None:
    if type(weight) is not nn.Parameter:
        kind = "none (parametrized?)" if weight is None else type(weight).__name__
        raise TypeError(f"{key}: an ordinary nn.Parameter expected, got {kind}")
    if weight.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{key}: float32, bfloat16 or float16 expected, got {weight.dtype}")
    if weight.is_meta:
        raise ValueError(f"{key}: is on the meta device and has no values to quantise; load them first")
    if weight._backward_hooks or weight._post_accumulate_grad_hooks:
        raise ValueError(
            f"{key}: has gradient hooks, which a new parameter would lose; register them afterwards"
        )
    for place in owners[id(weight)]:
        if not _is_linear_weight(place):
            module, name, parameter_name = place
            raise ValueError(
                f"{key}: shared with {name}.{parameter_name} of a {type(module).__name__}, which cannot be "
                "INT8; leave the layer out of target_modules or untie it"
            )
    if not bool(weight.detach().isfinite().all()):
        raise ValueError(f"{key}: has a NaN or infinite element")


def _quantized(weight: Tensor, group_size: int, dtype: torch.dtype | None) -> nn.Parameter:
    return _parameter(Int8Weight.quantize(weight.detach(), group_size, dtype), weight)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    parameter = nn.Parameter(value, requires_grad=like.requires_grad)
    if like.grad is not None:
        parameter.grad = like.grad.to(value.dtype)
    return parameter


def _replace(places: list[_Place], parameter: nn.Parameter) -> None:
    for module, _, parameter_name in places:
        module._parameters[parameter_name] = parameter
        if isinstance(parameter, Int8Weight):
            state_dict.install(module)
