"""The cases of each op family, one file a family, named as in csrc and in ``frugalore.ops``.

A file's ``cases(size)`` returns its list of :class:`harness.Case`; ``size`` is ``small`` or ``full``.
"""

from __future__ import annotations

import importlib

FAMILIES = (
    "int4",
    "int8",
    "weight",
    "adamw",
    "adamw8bit",
    "momentum",
    "residual",
    "split",
    "sketch",
    "gemm",
    "gram",
    "cholesky",
    "selection",
    "coordinates",
    "projection",
    "step",
    "svd",
)


def load(family: str, size: str):
    """The cases of one family."""
    return importlib.import_module(f"cases.{family}").cases(size)
