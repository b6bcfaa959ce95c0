"""The entry point of the ``frugalore`` command.

The library needs torch alone; the command line needs the packages of ``frugalore[train]``. Where one of
them is missing, the user gets one line that says how to install them. ``frugalore doctor`` runs without.
"""

from __future__ import annotations

import sys

_EXTRAS = frozenset({"click", "matplotlib", "numpy", "rich", "safetensors", "tomli", "transformers"})


def main() -> None:
    """Run the command line."""
    try:
        if sys.argv[1:] == ["doctor"]:
            from frugalore.cli.doctor import examine

            examine()
            return
        from frugalore.cli.commands import frugalore

        frugalore()
    except KeyboardInterrupt:
        sys.exit(130)  # while importing; a run saves itself first
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        sys.exit(f"frugalore: {package} is not installed; pip install 'frugalore[train]' installs it")
