"""The command group; each command is a file of its own."""

from __future__ import annotations

import click

from frugalore._build import build_info
from frugalore.cli.doctor import examine
from frugalore.cli.pretrain import pretrain


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(build_info()["version"], prog_name="frugalore")
def frugalore() -> None:
    """Train language models in a fraction of the memory."""


@frugalore.command(short_help="Show the installation and check its kernels.")
def doctor() -> None:
    """Show the build, torch, packages and devices, and check the kernels on each device.

    Ends with status 1 if a kernel computes something else than its specification.
    """
    examine()


frugalore.add_command(pretrain)
