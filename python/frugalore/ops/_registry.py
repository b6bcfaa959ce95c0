"""Registration of the ops with torch.

``define`` and ``impl`` rather than ``@custom_op``: the latter adds about 10 us to every call. One Python
function serves the CPU and the CUDA key, because the binding chooses the backend by the tensors' device.
The fake kernel gives shapes and dtypes only; with it ``torch.compile``, fake tensors and ``opcheck`` work.
It also serves meta tensors. A call that mixes them with real ones would end there and write nothing, so it is
refused. No op here is differentiable.

Ops registered so do not bump the version counter of what they write. Every public wrapper that writes a
tensor which autograd may hold calls :func:`mark_written`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

_LIBRARY = torch.library.Library("frugalore", "DEF")


def define(schema: str, implementation: Callable, fake: Callable) -> Callable:
    """Register ``frugalore::<schema>`` and return the callable op."""
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, implementation, key)
    op = getattr(torch.ops.frugalore, name).default
    names = [argument.name for argument in op._schema.arguments]

    def on_one_device(*arguments, **named):
        _check_one_device((*zip(names, arguments, strict=False), *named.items()))
        return fake(*arguments, **named)

    torch.library.register_fake(f"frugalore::{name}", on_one_device, lib=_LIBRARY)
    return op


def _check_one_device(arguments: Iterable[tuple[str, object]]) -> None:
    first = None
    for name, argument in arguments:
        for tensor in argument if isinstance(argument, (list, tuple)) else (argument,):
            if not isinstance(tensor, torch.Tensor):
                continue
            first = first or (name, tensor.device)
            if tensor.device != first[1]:
                expected = f"the device of {first[0]}, {first[1]}"
                raise ValueError(f"{name}: {expected}, expected, got {tensor.device}")


def no_outputs(*args, **kwargs) -> None:
    """The fake kernel of an op that only writes into its arguments."""


def mark_written(tensors: Iterable[torch.Tensor]) -> None:
    """Tell autograd that these tensors changed, so that a backward through a stale value raises."""
    torch.autograd.graph.increment_version(tuple(tensors))
