"""The optimizers that a run can name. This is the only list: the command line and the tests read it.

A builder gets the model on its device and the configuration, prepares the model where its method needs it
(INT8 weights, for one) and returns the optimizer. Imports are inside the builders, so that naming an
optimizer costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from frugalore._build import with_cuda
from frugalore.pretrain.config import PretrainConfig
from frugalore.pretrain.errors import ConfigError

Builder = Callable[[nn.Module, PretrainConfig], tuple[torch.optim.Optimizer, nn.Module]]


@dataclass(frozen=True)
class Entry:
    """One optimizer: how it is built, the learning rate it wants for the demo's model, what it is."""

    build: Builder
    lr: float
    summary: str


REGISTRY: dict[str, Entry] = {}


def register(name: str, *, lr: float, summary: str) -> Callable[[Builder], Builder]:
    """Offer a builder as ``--optimizer name``."""

    def add(build: Builder) -> Builder:
        REGISTRY[name] = Entry(build, lr, summary)
        return build

    return add


def entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        ConfigError: there is none; the message lists those that exist.
    """
    if name not in REGISTRY:
        raise ConfigError(f"optimizer: one of {', '.join(sorted(REGISTRY))} expected, got {name!r}")
    return REGISTRY[name]


@register("adamw", lr=5e-4, summary="torch.optim.AdamW: the full gradient, float state")
def _adamw(model: nn.Module, config: PretrainConfig):
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay
    )
    return optimizer, model


@register("qgalore", lr=1e-2, summary="FusedQGaLore: INT8 weights, packed INT4 basis, 8-bit AdamW")
def _qgalore(model: nn.Module, config: PretrainConfig):
    from frugalore import FusedQGaLore, quantize_

    _check_build(config)
    quantize_(model, config.target_modules)
    return _in_subspace(FusedQGaLore, model, config)


@register("galore_adamw", lr=1e-2, summary="GaLoreAdamW: float weights, float32 moments of the projection")
def _galore_adamw(model: nn.Module, config: PretrainConfig):
    from frugalore import GaLoreAdamW

    return _in_subspace(GaLoreAdamW, model, config)


@register("galore_adamw_8bit", lr=1e-2, summary="GaLoreAdamW8bit: float weights, 8-bit moments")
def _galore_adamw_8bit(model: nn.Module, config: PretrainConfig):
    from frugalore import GaLoreAdamW8bit

    return _in_subspace(GaLoreAdamW8bit, model, config)


@register("galore_adafactor", lr=3e-3, summary="GaLoreAdafactor: float weights, row and column statistics")
def _galore_adafactor(model: nn.Module, config: PretrainConfig):
    from frugalore import GaLoreAdafactor

    # The learning rate and its schedule are those of the run.
    manual = {"relative_step": False, "scale_parameter": False}
    return _in_subspace(GaLoreAdafactor, model, config, **manual)


@register("galore_sgdm", lr=1.0, summary="GaLoreSGDM: float weights, one float32 momentum of the projection")
def _galore_sgdm(model: nn.Module, config: PretrainConfig):
    from frugalore import GaLoreSGDM

    return _in_subspace(GaLoreSGDM, model, config)


@register("galore_lion", lr=3e-3, summary="GaLoreLion: float weights, the sign of one float32 momentum")
def _galore_lion(model: nn.Module, config: PretrainConfig):
    from frugalore import GaLoreLion

    return _in_subspace(GaLoreLion, model, config)


@register("fira", lr=5e-3, summary="Fira: GaLore, and the residual as Adam would scale it")
def _fira(model: nn.Module, config: PretrainConfig):
    from frugalore import Fira

    return _in_subspace(Fira, model, config)


@register("frugal_adamw", lr=1e-3, summary="FrugalAdamW: AdamW in a subspace, signSGD outside")
def _frugal_adamw(model: nn.Module, config: PretrainConfig):
    from frugalore import FrugalAdamW

    return _frugal(FrugalAdamW, model, config)


@register("q_frugal", lr=1e-3, summary="FrugalAdamW on INT8 weights, 8-bit moments")
def _q_frugal(model: nn.Module, config: PretrainConfig):
    from frugalore import FrugalAdamW, quantize_

    _check_build(config)
    quantize_(model, config.target_modules)
    return _frugal(FrugalAdamW, model, config, state_bits=8)


@register("frugal_sgdm", lr=1e-3, summary="FrugalSGDM: SGD with momentum in a subspace, signSGD outside")
def _frugal_sgdm(model: nn.Module, config: PretrainConfig):
    from frugalore import FrugalSGDM

    return _frugal(FrugalSGDM, model, config)


@register("frugal_lion", lr=1e-3, summary="FrugalLion: Lion in a subspace, signSGD outside")
def _frugal_lion(model: nn.Module, config: PretrainConfig):
    from frugalore import FrugalLion

    return _frugal(FrugalLion, model, config)


@register("badam", lr=1e-3, summary="BAdam: AdamW on one layer at a time; embeddings, norms and head always")
def _badam(model: nn.Module, config: PretrainConfig):
    from frugalore import BAdam

    _check_build(config)
    optimizer = BAdam(
        model.named_parameters(),
        config.lr,
        weight_decay=config.weight_decay,
        switch_block_every=config.update_proj_gap,
        active_modules=("embed", "norm", "lm_head"),
        seed=config.seed,
    )
    return optimizer, model


def _frugal(preset: type, model: nn.Module, config: PretrainConfig, **options):
    """A FRUGAL preset over the groups that the configuration names."""
    from frugalore import param_groups

    _check_build(config)
    groups = param_groups(
        model,
        config.target_modules,
        density=config.density,
        update_gap=config.update_proj_gap,
        subspace=config.subspace,
        inactive_update_rule=config.inactive_update_rule,
        inactive_lr_scale=config.inactive_lr_scale,
    )
    own = {"lr": config.lr, "weight_decay": config.weight_decay, "seed": config.seed}
    return preset(groups, **own, **options), model


def _in_subspace(preset: type, model: nn.Module, config: PretrainConfig, **options):
    """A preset over the groups that the configuration names."""
    from frugalore import param_groups

    _check_build(config)
    groups = param_groups(
        model,
        config.target_modules,
        rank=config.rank,
        update_proj_gap=config.update_proj_gap,
        scale=config.scale,
    )
    own = {"lr": config.lr, "weight_decay": config.weight_decay, "seed": config.seed}
    return preset(groups, **own, **options), model


def _check_build(config: PretrainConfig) -> None:
    if config.device == "cuda" and not with_cuda():
        raise ConfigError("device: cuda asked for, but this build of frugalore has no CUDA kernels")
