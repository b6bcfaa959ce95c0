"""The command group; each command is a file of its own."""

from __future__ import annotations

import click

from frugalore._build import build_info
from frugalore.cli.doctor import doctor
from frugalore.cli.pretrain import pretrain


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(build_info()["version"], prog_name="frugalore")
def frugalore() -> None:
    """Train language models in a fraction of the memory."""


frugalore.add_command(doctor)
frugalore.add_command(pretrain)
