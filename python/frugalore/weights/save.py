"""``save_dequantized``: an ordinary float checkpoint of a model with INT8 weights."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from frugalore.weights.int8_weight import PARTS, Int8Weight, check_float_dtype

#: The files of a checkpoint's weights; those of an earlier save that the next one does not have are removed.
_WEIGHT_FILES = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")


def save_dequantized(
    model: nn.Module, folder: str | os.PathLike, dtype: torch.dtype | None = None, **options: Any
) -> None:
    """Write ``model`` to ``folder`` as a float checkpoint that needs no frugalore to load.

    For a transformers model, what ``save_pretrained`` of the float model would write: ``config.json`` without
    ``quantization_config``, safetensors, shards. Each shard's weights are dequantised when it is written, so
    the float copy, on the CPU, is never larger than a shard (``max_shard_size``, here 5 GB if not given). For
    another module, its state dict in ``model.safetensors``, for which the float copy is whole. The values are
    those of ``dequantize()``; the model stays as it is.

    All files are written to a temporary folder ``.writing-*`` inside ``folder`` first and then renamed, so an
    interrupted write leaves the files of an earlier save alone (a killed one also leaves its temporary
    folder). Other files, as a tokenizer's, stay; weight files of an earlier save that the new one does not
    replace are removed.

    Args:
        model: with or without INT8 weights.
        folder: made if need be.
        dtype: of every floating-point tensor in the checkpoint: float32, bfloat16 or float16; if not given,
            each has its own.
        options: passed to ``save_pretrained``, as ``max_shard_size="5GB"``; for transformers models only.

    Raises:
        ImportError: safetensors is missing (``pip install 'frugalore[transformers]'``). TypeError: another
        dtype, options for a module without ``save_pretrained``, or ``push_to_hub``. FileExistsError:
        ``folder`` is a file.
    """
    if dtype is not None:
        check_float_dtype("dtype", dtype)
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper adds a prefix to every key.
    is_transformers = hasattr(model, "save_pretrained") and hasattr(model, "config")
    if options and not is_transformers:
        raise TypeError(
            f"{', '.join(options)}: only for models with save_pretrained, got {type(model).__name__}"
        )
    if options.get("push_to_hub"):
        raise TypeError("push_to_hub: upload the folder after save_dequantized instead")
    save_file = _safetensors_save_file()
    with _replacing(Path(folder)) as temporary:
        if is_transformers:
            _save_pretrained(model, temporary, dtype, options)
        else:
            tensors = _distinct(float_state_dict(model, dtype))
            save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})


def float_state_dict(
    model: nn.Module, dtype: torch.dtype | None = None, defer: bool = False
) -> dict[str, Tensor]:
    """The state dict of the dequantised model, which stays as it is; ``dtype`` as in ``save_dequantized``.

    The dequantised weights are on the CPU. With ``defer`` those that are not shared are stand-ins, which
    become floats when they are used.
    """
    weights = {
        f"{name}.weight" if name else "weight": weight
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(weight := module._parameters.get("weight"), Int8Weight)
    }
    made: dict[Any, Tensor] = {}  # Shared weights stay shared.
    uses = Counter(id(weight) for weight in weights.values())
    parts = {f"{key}.{part}" for key in weights for part in PARTS}
    result = {}
    for key, value in model.state_dict().items():
        if key in weights:
            weight = weights[key]
            if id(weight) not in made:
                shown = dtype or weight.dtype
                # transformers compares the addresses of shared tensors to the last element.
                alone = uses[id(weight)] == 1
                made[id(weight)] = Deferred(weight, shown) if defer and alone else _on_cpu(weight, shown)
            result[key] = made[id(weight)]
        elif key not in parts:
            is_float = isinstance(value, Tensor) and value.is_floating_point()
            if is_float and dtype is not None and value.dtype != dtype:
                value = made.setdefault((value.data_ptr(), value.shape, value.stride()), value.to(dtype))
            result[key] = value
    return result


def _on_cpu(weight: Int8Weight, dtype: torch.dtype) -> Tensor:
    """The float tensor, on the CPU: a device full of training state has no room for a shard of floats."""
    return weight.detach().dequantize(dtype).cpu()


class Deferred(Tensor):
    """Stands for the float tensor of an INT8 weight, which is made anew by every operation that reads it.

    It has the size, dtype and an address of its own in untouched memory, so that code which splits a state
    dict into shards sees the float tensor; the operating system backs the memory with pages only if somebody
    writes there. Its elements may be read through torch alone; ``read`` tells whether they were.
    """

    @staticmethod
    def __new__(cls, weight: Int8Weight, dtype: torch.dtype) -> Deferred:
        return Tensor._make_subclass(cls, torch.empty(weight.shape, dtype=dtype))

    def __init__(self, weight: Int8Weight, dtype: torch.dtype) -> None:
        self.weight, self.read = weight, False

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in _LOOKS:
            args, kwargs = tree_map_only(Deferred, cls._dense, (args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    def _dense(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            dtype = self.dtype
        self.read = True
        return _on_cpu(self.weight, dtype)


#: What looks at a tensor without reading its elements.
_LOOKS = {
    Tensor.data_ptr,
    Tensor.dim,
    Tensor.element_size,
    Tensor.is_floating_point,
    Tensor.nelement,
    Tensor.numel,
    Tensor.size,
    Tensor.stride,
    Tensor.untyped_storage,
    *(getattr(Tensor, name).__get__ for name in ("device", "dtype", "layout", "nbytes", "shape", "is_meta")),
}


def _save_pretrained(model: nn.Module, folder: Path, dtype: torch.dtype | None, options: dict) -> None:
    state = float_state_dict(model, dtype, defer=True)
    deferred = {key: value for key, value in state.items() if isinstance(value, Deferred)}
    quantizer = model.__dict__.pop("hf_quantizer", None)  # It would save the INT8 state dict.
    try:
        model.save_pretrained(folder, state_dict=state, **{"max_shard_size": "5GB", **options})
    finally:
        if quantizer is not None:
            model.hf_quantizer = quantizer
    unread = [key for key, value in deferred.items() if not value.read]
    if unread:
        raise RuntimeError(f"this version of transformers wrote {unread[0]} past torch; nothing was saved")
    _edit_config(folder / "config.json", dtype)


def _edit_config(file: Path, dtype: torch.dtype | None) -> None:
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    if dtype is not None:
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = str(dtype).removeprefix("torch.")
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _distinct(tensors: dict[str, Any]) -> dict[str, Tensor]:
    """Without entries that are no tensors, and with copies of those that share memory (safetensors)."""
    seen: set[int] = set()
    result = {}
    for key, value in tensors.items():
        if isinstance(value, Tensor):
            address = value.untyped_storage().data_ptr()
            result[key] = value.clone() if address in seen else value
            result[key] = result[key].contiguous()
            seen.add(address)
    return result


def _safetensors_save_file() -> Any:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError(
            "save_dequantized needs safetensors: pip install 'frugalore[transformers]'"
        ) from error
    return save_file


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files replace those of ``folder`` at the end, if nothing was raised."""
    folder.mkdir(parents=True, exist_ok=True)
    # Inside the folder: on the same file system for certain, and writable if the folder is.
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as name:
        temporary = Path(name)
        yield temporary
        fresh = {file.name for file in temporary.iterdir()}
        stale = {file for pattern in _WEIGHT_FILES for file in folder.glob(pattern) if file.name not in fresh}
        for file in sorted(temporary.iterdir()):
            _sync(file)
        for file in sorted(temporary.iterdir()):
            os.replace(file, folder / file.name)
        for file in stale:
            file.unlink()


def _sync(file: Path) -> None:
    if file.is_file():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
