"""A check that several parts make of their options."""

from __future__ import annotations

from numbers import Integral
from typing import Any


def check_positive_integer(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}: a positive integer expected, got {value!r}")
