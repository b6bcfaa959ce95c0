"""INT8 weights in transformers: ``save_pretrained`` and ``from_pretrained``.

(The optimizers in ``Trainer``, :func:`trainer_optimizer`, are imported from here too; they live in
:mod:`frugalore.integrations.trainer`.)

Importing this module registers the quantisation method ``frugalore_int8`` with transformers, so that
``from_pretrained`` reads the folders that ``save_pretrained`` of a quantised model wrote, and quantises a
float checkpoint where it is told to::

    import frugalore.integrations.transformers as frugalore_hf

    model = AutoModelForCausalLM.from_pretrained(folder)  # INT8, as saved
    model = AutoModelForCausalLM.from_pretrained(
        float_folder, quantization_config=frugalore_hf.FrugaloreInt8Config()
    )

A process that has not imported it cannot load such a folder: transformers warns of an unknown method and
raises a size mismatch, because the file holds the format record where a float model expects its weight.

transformers >= 5 is needed; its loader is given the three parts of a weight as buffers, which become one
``Int8Weight`` once they are filled.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from frugalore.integrations.trainer import FrugaloreCallback, trainer_optimizer
from frugalore.weights import state_dict
from frugalore.weights.int8_weight import PARTS, Int8Weight, check_part
from frugalore.weights.quantize import dequantize_, quantize_
from frugalore.weights.state_dict import check_record, check_scale

__all__ = [
    "QUANT_METHOD",
    "FrugaloreCallback",
    "FrugaloreInt8Config",
    "FrugaloreInt8Quantizer",
    "trainer_optimizer",
]

#: The ``quant_method`` in ``config.json``.
QUANT_METHOD = "frugalore_int8"

if int(transformers.__version__.split(".")[0]) < 5:
    raise ImportError(
        f"frugalore.integrations.transformers needs transformers >= 5, found {transformers.__version__}"
    )


@register_quantization_config(QUANT_METHOD)
class FrugaloreInt8Config(QuantizationConfigMixin):
    """What ``config.json`` says about INT8 weights, and how ``from_pretrained`` quantises a float checkpoint.

    Args:
        group_size: as in :func:`frugalore.quantize_`, for quantising a float checkpoint.
        target_modules: as in :func:`frugalore.quantize_`, for quantising a float checkpoint.
        modules: group size by name of every linear layer that *is* INT8; ``quantize_`` sets it.
    """

    def __init__(
        self,
        group_size: int = 256,
        target_modules: str | Iterable[str] | None = None,
        modules: dict[str, int] | None = None,
        **unknown: Any,
    ) -> None:
        unknown.pop("quant_method", None)
        if unknown:
            raise ValueError(f"quantization_config: unknown entries {sorted(unknown)}; is frugalore too old?")
        if not isinstance(group_size, int) or group_size <= 0:
            raise ValueError(f"group_size: a positive integer expected, got {group_size!r}")
        self.quant_method = QUANT_METHOD
        self.group_size = group_size
        self.target_modules = (
            target_modules
            if target_modules is None or isinstance(target_modules, str)
            else list(target_modules)
        )
        self.modules = dict(modules or {})

    def get(self, key: str, default: Any = None) -> Any:
        """As a dictionary's: transformers calls it where ``from_pretrained`` is given a config."""
        return getattr(self, key, default)


@register_quantizer(QUANT_METHOD)
class FrugaloreInt8Quantizer(HfQuantizer):
    """Loads and saves models with INT8 weights; ``from_pretrained`` finds it by ``quant_method``."""

    requires_calibration = False

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Tells ``Trainer`` that the INT8 weights themselves train, without adapters."""
        return True

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[None, dict]:
        # save_pretrained asks before it writes config.json: layers may have been quantised since.
        self.quantization_config.modules = int8_modules(model)
        return None, {}

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        if not self.pre_quantized:
            return
        modules = self.quantization_config.modules
        linears = {name: _linear(model, name) for name in modules}
        records = {
            f"{spelling}.weight": group_size
            for name, group_size in modules.items()
            for spelling in _spellings(model, name)
        }
        _check_files(checkpoint_files or [], records)
        parts: dict[int, _Parts] = {}
        for name, linear in linears.items():
            weight = linear._parameters.pop("weight", None)
            if weight is not None:  # A layer registered under two names comes twice.
                linear.weight = parts.setdefault(id(weight), _Parts(weight, modules[name]))
        # Checked above; transformers has no place for them.
        ignored = [rf"^{re.escape(key)}$" for key in records]
        present = model._keys_to_ignore_on_load_unexpected
        present = (
            [] if present is None else present
        )  # A set or a list, as the version of transformers has it.
        model._keys_to_ignore_on_load_unexpected = type(present)([*present, *ignored])

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if self.pre_quantized:
            _parts_to_weights(model)
        else:
            config = self.quantization_config
            quantize_(model, config.target_modules, config.group_size)
        describe(model)
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        return dequantize_(model, dtype)


def describe(model: nn.Module) -> None:
    """Tell transformers which layers of ``model`` are INT8, or that none is: what ``quantize_`` calls.

    ``config.quantization_config`` makes ``save_pretrained`` say so in ``config.json``; ``hf_quantizer`` lets
    ``Trainer`` train the weights. The config of a quantisation method other than this one is left alone.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        return
    modules = int8_modules(model)
    quantizer = model.hf_quantizer if hasattr(model, "hf_quantizer") else None
    config = getattr(model.config, "quantization_config", None)
    if not isinstance(quantizer, FrugaloreInt8Quantizer | None):
        return
    if not isinstance(config, FrugaloreInt8Config | None):
        return
    if modules:
        config = copy.copy(config or FrugaloreInt8Config(group_size=next(iter(modules.values()))))
        config.modules = modules
        quantizer = quantizer or FrugaloreInt8Quantizer(config, pre_quantized=True)
        quantizer.quantization_config = model.config.quantization_config = config
        model.hf_quantizer, model.quantization_method = quantizer, QUANT_METHOD
        # True would forbid half() and float(), which INT8 weights follow like any other.
        model.is_quantized = False
    elif quantizer is not None or config is not None:
        HfQuantizer.remove_quantization_config(quantizer, model)


def int8_modules(model: nn.Module) -> dict[str, int]:
    """Group size by name of every module whose ``weight`` is INT8."""
    weights = (
        (name, module._parameters.get("weight"))
        for name, module in model.named_modules(remove_duplicate=False)
    )
    return {name: weight.group_size for name, weight in weights if isinstance(weight, Int8Weight)}


class _Parts(nn.Module):
    """Stands as ``linear.weight`` while transformers loads ``X.weight.codes``, ``.scale`` and ``.zero``."""

    # A missing part is an error here, not a weight for transformers to initialise.
    _is_hf_initialized = True

    def __init__(self, weight: Tensor, group_size: int) -> None:
        super().__init__()
        self.shape, self.group_size, self.dtype = tuple(weight.shape), group_size, weight.dtype
        groups = (weight.shape[0], -(-weight.shape[1] // group_size))
        self.register_buffer("codes", torch.empty(weight.shape, dtype=torch.uint8, device=weight.device))
        self.register_buffer("scale", torch.empty(groups, dtype=torch.float32, device=weight.device))
        self.register_buffer("zero", torch.empty(groups, dtype=torch.uint8, device=weight.device))


def _spellings(model: nn.Module, name: str) -> tuple[str, ...]:
    """What a module may be called: the folder may hold the base model and ``model`` have a head, or not."""
    prefix = f"{model.base_model_prefix}."
    return name, name.removeprefix(prefix), prefix + name


def _linear(model: nn.Module, name: str) -> nn.Linear:
    for spelling in _spellings(model, name):
        try:
            module = model.get_submodule(spelling)
        except AttributeError:
            continue
        if isinstance(module, nn.Linear):
            return module
    raise ValueError(f"quantization_config.modules: {name} is no nn.Linear of {type(model).__name__}")


def _check_files(files: list[str], group_sizes: dict[str, int]) -> None:
    """Raise unless each of the safetensors ``files`` has format records where ``group_sizes`` has a key."""
    for file in files:
        if not str(file).endswith(".safetensors"):
            continue
        with safe_open(file, framework="pt") as tensors:
            for key in group_sizes.keys() & set(tensors.keys()):
                if len(tensors.get_slice(key).get_shape()) != 1:
                    raise ValueError(
                        f"{key}: {file} holds a float weight, but quantization_config in config.json says "
                        "INT8; delete that entry to load floats (a model that shares its config object with "
                        "one that was quantised saves such a folder)"
                    )
                check_record(tensors.get_tensor(key), key, group_sizes[key])


def _parts_to_weights(model: nn.Module) -> None:
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, _Parts)]
    missing = [
        f"{name}.{part}"
        for name, module in found
        for part in PARTS
        if not getattr(getattr(module, part), "_is_hf_initialized", False)
    ]
    if missing:
        raise ValueError(f"the checkpoint lacks {', '.join(missing)}, which its config.json promises")
    for name, parts in found:
        for part in PARTS:  # Early 5.x lets a quantised model have parts of any shape.
            check_part(part, getattr(parts, part), f"{name}.{part}", parts.shape, parts.group_size)
        check_scale(parts.scale, f"{name}.scale")
    weights: dict[int, nn.Parameter] = {}
    for linear in list(model.modules()):
        parts = linear._modules.get("weight")
        if isinstance(parts, _Parts):
            if id(parts) not in weights:
                value = Int8Weight(parts.codes, parts.scale, parts.zero, parts.group_size, parts.dtype)
                weights[id(parts)] = nn.Parameter(value)
            del linear._modules["weight"]
            linear.register_parameter("weight", weights[id(parts)])
            state_dict.install(linear)
    state_dict.install_check(model)
