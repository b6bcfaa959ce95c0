"""``frugalore pretrain``: options on top of a configuration file or preset."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from frugalore.pretrain import checkpoint, config, optimizers
from frugalore.pretrain.config import (
    DEVICES,
    DTYPES,
    INACTIVE_UPDATE_RULES,
    MODELS,
    PRESETS,
    SUBSPACES,
    PretrainConfig,
)
from frugalore.pretrain.errors import ConfigError, PretrainError
from frugalore.pretrain.run import pretrain as run


class _Modules(click.ParamType):
    """``attn,mlp`` is a list of parts of names; without a comma, one; all-linear is itself."""

    name = "names"

    def convert(self, value, param, ctx):
        if value in ("all-linear", "all_linear"):
            return value
        return [part.strip() for part in value.split(",")]


def _optimizers_help() -> str:
    described = (f"{name}: {entry.summary}" for name, entry in sorted(optimizers.REGISTRY.items()))
    return f"{'; '.join(described)}. [{PretrainConfig.optimizer}]"


def _config_options(command):
    """One option for each key of the configuration; None where it was not given."""
    options = [
        click.option("--model", type=click.Choice(list(MODELS)), help="Shape; a file can hold one. [demo]"),
        click.option("--data", type=click.Path(), help="File or folder of text. [the standard library]"),
        click.option("--optimizer", type=click.Choice(sorted(optimizers.REGISTRY)), help=_optimizers_help()),
        click.option("--lr", type=float, help="Peak learning rate. [the optimizer's own]"),
        _number("weight_decay", float, "Decoupled decay per unit of learning rate."),
        _number("rank", int, "Rank of the gradient's projection."),
        _number("update_proj_gap", int, "Steps between refreshes of a subspace."),
        _number("scale", float, "Factor of the projected part of an update."),
        _number("density", float, "Share of FRUGAL's subspace; 0: signSGD."),
        click.option("--subspace", type=click.Choice(SUBSPACES), help="FRUGAL's. [columns]"),
        click.option(
            "--inactive-update-rule",
            type=click.Choice(INACTIVE_UPDATE_RULES),
            help="FRUGAL's rule outside of the subspace. [sign_sgd]",
        ),
        _number("inactive_lr_scale", float, "Factor of the learning rate there."),
        click.option("--target-modules", type=_Modules(), help="Projected layers. [attn,mlp]"),
        _number("steps", int, "Updates in all."),
        _number("batch_size", int, "Sequences a step."),
        _number("sequence_length", int, "Bytes a sequence."),
        _number("warmup_steps", int, "The learning rate rises over these."),
        _number("min_lr_ratio", float, "The cosine ends at this part of the peak."),
        _number("max_norm", float, "Clip the gradient's norm; 0: not."),
        _number("seed", int, "Of weights, batches and rounding."),
        _number("validate_every", int, "Steps between validations."),
        _number("validation_batches", int, "Batches a validation."),
        _number("save_every", int, "Steps between checkpoints."),
        click.option("--device", type=click.Choice(DEVICES), help="auto: CUDA where it is usable. [auto]"),
        click.option("--dtype", type=click.Choice(DTYPES), help="Of weights that are not INT8. [float32]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _number(key: str, kind: type, text: str):
    default = getattr(PretrainConfig, key)
    return click.option(f"--{key.replace('_', '-')}", type=kind, help=f"{text} [{default:g}]")


@click.command(name="pretrain")
@click.option(
    "--config", "source", metavar="FILE|PRESET", help=f"JSON or TOML file, or one of: {', '.join(PRESETS)}."
)
@_config_options
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option("--stop-after", type=int, help="Save and end at this step; --resume continues.")
def pretrain(
    source: str | None, out: Path, resume: bool, overwrite: bool, stop_after: int | None, **options
) -> None:
    """Train a LLaMA on text, byte level.

    Options given here override the configuration. With --resume and without --config, the configuration is
    the saved one.
    """
    try:
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite contradict each other")
        if stop_after is not None and stop_after < 1:
            raise ConfigError(f"--stop-after: at least 1 expected, got {stop_after}")
        chosen = _configuration(source, out, resume, options)
        console = Console(soft_wrap=True)
        run(chosen, out, resume=resume, overwrite=overwrite, stop_after=stop_after, console=console)
    except PretrainError as error:
        raise click.ClickException(str(error)) from error


def _configuration(source: str | None, out: Path, resume: bool, options: dict) -> PretrainConfig:
    if source is not None:
        values = config.load(source)
    elif resume:
        values = checkpoint.read_manifest(out).config.to_dict()
    else:
        values = {}
    given = {key: value for key, value in options.items() if value is not None}
    return config.from_dict({**values, **given}, source or "config")
