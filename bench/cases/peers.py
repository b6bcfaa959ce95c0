"""Optimizers of other packages as peers: one parameter with its gradient, one call of ``step()``."""

from __future__ import annotations

from collections.abc import Callable

import torch

_OPTIONS = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


def _torch(parameters) -> Callable:
    return torch.optim.AdamW(parameters, fused=True, **_OPTIONS).step


def _bitsandbytes(parameters) -> Callable | None:
    try:
        import bitsandbytes
    except ImportError:
        return None
    return bitsandbytes.optim.AdamW8bit(parameters, **_OPTIONS).step


def _torchao(parameters) -> Callable | None:
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        return None
    return AdamW8bit(parameters, **_OPTIONS).step


_MAKERS = {"torch": _torch, "bitsandbytes": _bitsandbytes, "torchao": _torchao}


def adamw_steps(names: tuple[str, ...], shapes, device, dtype) -> dict[str, Callable]:
    """``step`` of each named peer over parameters of its own; those that cannot be imported are left out."""
    steps = {}
    for name in names:
        parameters = []
        for shape in shapes:
            parameter = torch.nn.Parameter((torch.randn(shape, device=device) * 0.02).to(dtype))
            parameter.grad = (torch.randn(shape, device=device) * 0.01).to(dtype)
            parameters.append(parameter)
        step = _MAKERS[name](parameters)
        if step is not None:
            steps[name] = step
    return steps
