"""``frugalore pretrain``: options on top of a configuration file or preset."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from frugalore.pretrain import checkpoint, config, optimizers
from frugalore.pretrain.config import DEVICES, DTYPES, MODELS, PRESETS, PretrainConfig
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
    return "; ".join(f"{name}: {entry.summary}" for name, entry in sorted(optimizers.REGISTRY.items())) + "."


def _config_options(command):
    """One option for each key of the configuration; None where it was not given."""
    options = [
        click.option("--model", type=click.Choice(list(MODELS)), help="Shape of the LLaMA."),
        click.option("--data", type=click.Path(), help="File or folder of text. [the standard library]"),
        click.option("--optimizer", type=click.Choice(sorted(optimizers.REGISTRY)), help=_optimizers_help()),
        click.option("--lr", type=float, help="Peak learning rate. [the optimizer's own]"),
        click.option("--weight-decay", type=float),
        click.option("--rank", type=int, help="Rank of the gradient's projection."),
        click.option("--update-proj-gap", type=int, help="Steps between refreshes of a subspace."),
        click.option("--scale", type=float, help="Factor of the projected part of an update."),
        click.option("--target-modules", type=_Modules(), help="Projected layers, such as attn,mlp."),
        click.option("--steps", type=int),
        click.option("--batch-size", type=int, help="Sequences a step."),
        click.option("--sequence-length", type=int, help="Bytes a sequence."),
        click.option("--warmup-steps", type=int),
        click.option("--min-lr-ratio", type=float),
        click.option("--max-norm", type=float, help="Clip the gradient's norm; 0: not."),
        click.option("--seed", type=int),
        click.option("--validate-every", type=int, help="Steps between validations."),
        click.option("--validation-batches", type=int),
        click.option("--save-every", type=int, help="Steps between checkpoints."),
        click.option("--device", type=click.Choice(DEVICES)),
        click.option("--dtype", type=click.Choice(DTYPES)),
    ]
    for option in reversed(options):
        command = option(command)
    return command


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
