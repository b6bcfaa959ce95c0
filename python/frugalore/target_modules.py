"""Which linear layers a name pattern means, by the rules of transformers' ``optim_target_modules``.

* ``"all-linear"`` or ``"all_linear"``: every ``nn.Linear``;
* another string: a regular expression that must match the whole module name;
* a list of strings: an entry matches if it is the module's name, or a part of it, or a regular expression
  for the whole of it.

Names are those of ``model.named_modules()``; only ``nn.Linear`` and its subclasses count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

_NAMES_SHOWN = 8


def matching_linears(
    model: nn.Module, target_modules: str | Iterable[str] = "all-linear"
) -> list[tuple[str, nn.Linear]]:
    """The linear layers of ``model`` that ``target_modules`` names.

    Args:
        model: searched through ``named_modules()``, so a module registered twice is found once. Layers that
            share a parameter are each found.
        target_modules: ``"all-linear"``, a regular expression, or a list of names, parts of names and regular
            expressions.

    Returns:
        ``(name, module)`` pairs in the order of ``named_modules()``.

    Raises:
        TypeError: ``target_modules`` is neither a string nor strings. ValueError: a regular expression is
        malformed, or no linear layer matches; the message gives the patterns and some of the names there are.
    """
    patterns = _checked(target_modules)
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found = [(name, module) for name, module in linears if _matches(patterns, name)]
    if not found:
        others = [
            (name, module)
            for name, module in model.named_modules()
            if name and not isinstance(module, nn.Linear) and _matches(patterns, name)
        ]
        matched = f" but {_names(others)}, which cannot be projected" if others else ""
        raise ValueError(
            f"target_modules: {target_modules!r} matches no nn.Linear{matched}; {_describe(linears)}"
        )
    return found


def _checked(target_modules: str | Iterable[str]) -> str | list[str]:
    if isinstance(target_modules, str):
        return target_modules
    if not isinstance(target_modules, Iterable):
        kind = type(target_modules).__name__
        raise TypeError(f"target_modules: a string or a list of strings expected, got {kind}")
    patterns = list(target_modules)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"target_modules: a string or a list of strings expected, got an entry {pattern!r} of type "
                f"{type(pattern).__name__}"
            )
        if not pattern:
            raise ValueError("target_modules: an empty entry is a part of every name; use 'all-linear'")
    return patterns


def _matches(patterns: str | list[str], name: str) -> bool:
    if isinstance(patterns, str):
        return patterns.replace("_", "-") == "all-linear" or _fullmatch(patterns, name)
    if name in patterns or any(pattern in name for pattern in patterns):
        return True
    return any(_fullmatch(pattern, name) for pattern in patterns)


def _fullmatch(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"target_modules: {pattern!r} is not a regular expression: {error}") from error


def _describe(linears: list[tuple[str, nn.Linear]]) -> str:
    if not linears:
        return "the model has none"
    return f"the model has {_names(linears)}"


def _names(modules: list[tuple[str, nn.Module]]) -> str:
    shown = ", ".join(
        repr(name) if isinstance(module, nn.Linear) else f"{name!r} ({type(module).__name__})"
        for name, module in modules[:_NAMES_SHOWN]
    )
    return shown + (f" and {len(modules) - _NAMES_SHOWN} more" if len(modules) > _NAMES_SHOWN else "")
