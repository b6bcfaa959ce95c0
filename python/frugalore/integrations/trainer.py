"""The optimizers of this library in transformers' ``Trainer``.

    from frugalore.integrations.transformers import FrugaloreCallback, trainer_optimizer

    args = TrainingArguments(..., learning_rate=1e-2, optim_args="rank=64, scale=0.1")
    trainer = Trainer(
        model, args, train_dataset=data,
        optimizer_cls_and_kwargs=trainer_optimizer("galore_adamw", ["attn", "mlp"], args=args),
        callbacks=[FrugaloreCallback()],
    )

``Trainer`` hands its plug-in a model and nothing else, so what ``TrainingArguments`` says reaches the
optimizer through ``args``.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn

import frugalore
from frugalore.optim import SubspaceOptimizer, param_groups, per_layer_updates
from frugalore.optim.frugal import FRUGAL_DEFAULTS
from frugalore.optim.galore import SUBSPACE_DEFAULTS
from frugalore.optim.param_groups import DEFAULT_TARGETS
from frugalore.subspace.blocks import layer_blocks

#: Names of the optimizers, in the spelling of transformers' ``optim``.
OPTIMIZERS = {
    "qgalore": "FusedQGaLore",
    "galore_adamw": "GaLoreAdamW",
    "galore_adamw_8bit": "GaLoreAdamW8bit",
    "galore_adafactor": "GaLoreAdafactor",
    "galore_sgdm": "GaLoreSGDM",
    "galore_lion": "GaLoreLion",
    "fira": "Fira",
    "frugal_adamw": "FrugalAdamW",
    "frugal_sgdm": "FrugalSGDM",
    "frugal_lion": "FrugalLion",
    "badam": "BAdam",
}
_ADAMW = ("qgalore", "galore_adamw", "galore_adamw_8bit", "fira", "frugal_adamw", "badam")


def _group_options(key: str) -> set[str]:
    """Options of an optimizer that belong to its groups in the subspace."""
    if key == "badam":
        return set()
    if key.startswith("frugal"):
        return set(FRUGAL_DEFAULTS)
    own = {"alpha", "fira_mode", "fira_limit"} if key == "fira" else set()
    return {"rank", *SUBSPACE_DEFAULTS, *own}


def trainer_optimizer(
    name: str,
    target_modules: str | Sequence[str] | None = None,
    *,
    args: transformers.TrainingArguments | None = None,
    optim_args: str | None = None,
    per_layer: bool = False,
    **options: Any,
) -> tuple[type, dict[str, Any]]:
    """The value of ``Trainer(optimizer_cls_and_kwargs=...)`` for an optimizer of this library.

    Two groups: the weights that ``target_modules`` names train in the subspace, the others whole. With a
    weight decay the others are two groups, because vectors (norms and biases) do not decay. The float weights
    of the model stay float; for INT8 weights call :func:`frugalore.quantize_` before ``Trainer``.

    Args:
        name: "qgalore", "galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_sgdm",
            "galore_lion", "fira", "frugal_adamw", "frugal_sgdm", "frugal_lion" or "badam". The last takes
            the layers as they are and has no ``target_modules``.
        target_modules: "all-linear", a regular expression, or a list of names, parts of names or regular
            expressions (:func:`frugalore.param_groups`); default: ``args.optim_target_modules``, or
            ``["attn", "mlp"]``.
        args: the learning rate and weight decay come from here, for AdamW the betas and eps too, and
            ``optim_args``.
        optim_args: more options as a string, "rank=64, scale=0.1".
        per_layer: update during backward and free each gradient (:func:`frugalore.per_layer_updates`), with
            the accumulation and the clipping norm of ``args``, which are then required. ``Trainer`` logs a
            gradient norm of 0, as it sees no gradients; :class:`FrugaloreCallback` has the true one.
        **options: of the optimizer (``lr``, ``betas``, ``state_bits``, ...) and of the group in the subspace
            (``rank``, ``update_proj_gap``, ``scale``, ``proj_type``, ...; ``density``, ``update_gap``,
            ``subspace``, ...). They override ``optim_args``, and those override ``args``.

    Raises:
        ValueError: an unknown name or option, or no learning rate. When ``Trainer`` builds the optimizer, as
            the optimizer itself does.
    """
    key = name.replace("-", "_")
    if key not in OPTIMIZERS:
        raise ValueError(f"name: one of {', '.join(OPTIMIZERS)} expected, got {name!r}")
    preset = getattr(frugalore, OPTIMIZERS[key])
    text = optim_args if optim_args is not None else getattr(args, "optim_args", None)
    given = parse_optim_args(text or "") | options
    of_group = _group_options(key)
    known = {*of_group, *inspect.signature(preset).parameters} - {"params", "options"}
    for option in given:
        if option not in known:
            close = difflib.get_close_matches(option, known, 1)
            hint = f"; {close[0]!r} perhaps" if close else ""
            raise ValueError(f"{option}: no option of {preset.__name__}{hint}")
    if args is not None:
        given = _from_arguments(key, args) | given
    if key == "galore_adafactor":  # as transformers does
        given = {"relative_step": "lr" not in given, "scale_parameter": "lr" not in given} | given
    if given.get("lr") is None and not given.get("relative_step"):
        raise ValueError("lr: a learning rate expected; pass lr=... or args=training_arguments")
    if per_layer and args is None:
        raise ValueError("args: the training arguments expected with per_layer, got None")
    if key == "badam" and target_modules:
        raise ValueError(f"target_modules: None expected with 'badam', got {target_modules!r}")
    target = target_modules or getattr(args, "optim_target_modules", None) or DEFAULT_TARGETS
    if key.startswith("frugal"):
        given.setdefault("density", FRUGAL_DEFAULTS["density"])
    rounds = {}
    if per_layer:
        rounds = {
            "accumulation_steps": args.gradient_accumulation_steps,
            "max_norm": args.max_grad_norm or None,
        }
    return _Factory, {
        "preset": preset,
        "target_modules": target,
        "options": {name: value for name, value in given.items() if name not in of_group},
        "group": {name: value for name, value in given.items() if name in of_group},
        "per_layer": rounds,
    }


class _Factory:
    """What ``Trainer`` calls twice: ``_Factory()(model, **kwargs)``."""

    def __call__(
        self,
        model: nn.Module,
        preset: type[SubspaceOptimizer],
        target_modules: str | Sequence[str],
        options: dict[str, Any],
        group: dict[str, Any],
        per_layer: dict[str, Any],
    ) -> SubspaceOptimizer:
        decays = bool(options.get("weight_decay"))
        if preset is frugalore.BAdam:
            groups = _layers(model, options) if decays else model.named_parameters()
        else:
            groups = param_groups(model, target_modules, **group)
            groups = _without_decay_of_vectors(groups) if decays else groups
        optimizer = preset(groups, **options)
        if per_layer:
            per_layer_updates(optimizer, **per_layer)
        return optimizer


def _without_decay_of_vectors(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    result = []
    for group in groups:
        if "rank" in group or "density" in group:
            result.append(group)
            continue
        matrices = [(name, p) for name, p in group["params"] if p.dim() > 1]
        vectors = [(name, p) for name, p in group["params"] if p.dim() <= 1]
        result += [{**group, "params": matrices}] if matrices else []
        result += [{**group, "params": vectors, "weight_decay": 0.0}] if vectors else []
    return result


def _layers(model: nn.Module, options: dict[str, Any]) -> Any:
    """BAdam's parameters, with the vectors of the layers in a group of their own that does not decay. The two
    groups take turns alike only if they have the same layers; otherwise all are one group, which decays."""
    named = list(model.named_parameters())
    if options.get("active_modules") or options.get("block_prefix_list"):
        return named
    blocks = {
        True: [(n, p) for n, p in named if p.dim() > 1],
        False: [(n, p) for n, p in named if p.dim() <= 1],
    }
    include = [options.get(name, False) for name in ("include_embedding", "include_lm_head")]
    try:
        counts = {len(layer_blocks([n for n, _ in part], None, *include)) for part in blocks.values()}
    except ValueError:  # one of the two has no layers
        return named
    if len(counts) > 1:
        return named
    return [
        {"params": blocks[True], "density": 1.0},
        {"params": blocks[False], "density": 1.0, "weight_decay": 0.0},
    ]


def _from_arguments(key: str, args: transformers.TrainingArguments) -> dict[str, Any]:
    found = {"lr": args.learning_rate, "weight_decay": args.weight_decay}
    if key in _ADAMW:
        found |= {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return found


def parse_optim_args(text: str) -> dict[str, Any]:
    """``"rank=64, scale=0.1, proj_type=left"`` as a dict of numbers, truth values, tuples and words.

    Raises:
        ValueError: an entry without ``=``.
    """
    result: dict[str, Any] = {}
    for entry in re.split(r",(?![^(\[]*[)\]])", text):  # no comma within brackets
        if not entry.strip():
            continue
        name, equals, value = entry.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"optim_args: 'name=value' expected, got {entry.strip()!r}")
        try:
            result[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            result[name.strip()] = value.strip()
    return result


class FrugaloreCallback(transformers.TrainerCallback):
    """Adds what the optimizer knows to every log: ``refreshes`` and ``skipped_updates`` so far,
    ``optimizer_state_mb`` and ``basis_mb``, on a card ``peak_memory_mb``, and with per-layer updates
    ``gradient_norm``. Waits for the device when it logs, and only then.
    """

    def on_log(self, args, state, control, logs=None, optimizer=None, **kwargs):
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        if not isinstance(optimizer, SubspaceOptimizer) or logs is None or "loss" not in logs:
            return
        entries = self._entries(optimizer)
        logs.update(entries)
        if state.log_history:
            state.log_history[-1].update(entries)

    @staticmethod
    def _entries(optimizer: SubspaceOptimizer) -> dict[str, float]:
        counted, size = optimizer.statistics().values(), optimizer.state_bytes()
        entries = {
            "refreshes": sum(entry.get("refreshes", 0) for entry in counted),
            "skipped_updates": sum(entry["skipped"] for entry in counted),
            "optimizer_state_mb": round((size["moments"] + size["records"]) / 2**20, 3),
            "basis_mb": round(size["basis"] / 2**20, 3),
        }
        per_layer = optimizer._per_layer
        if per_layer is not None and per_layer.gradient_norm is not None:
            entries["gradient_norm"] = float(per_layer.gradient_norm)
        if torch.cuda.is_available():
            entries["peak_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return entries
