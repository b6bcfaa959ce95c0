"""sgdm_step_, lion_step_ and their directions. The peer of the first is torch's fused SGD."""

from __future__ import annotations

import torch

from cases import shapes
from cases.shapes import LR
from frugalore import ops
from frugalore.reference import momentum as reference
from harness import Calls, Case


def _fused_sgd(params, grads):
    params = [torch.nn.Parameter(p.clone()) for p in params]
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    return torch.optim.SGD(params, lr=LR, momentum=0.9, fused=True).step


def _step(rule, shape, dtype, rounding):
    def setup(device, peers) -> Calls:
        params, grads = [shapes.normal(shape, device, dtype)], [shapes.normal(shape, device, dtype)]
        momenta = [torch.zeros_like(p, dtype=torch.float32) for p in params]
        progress = [torch.zeros(3, dtype=torch.int64, device=device)]
        operands, name = (params, grads, momenta, progress), f"{rule}_step_"
        options = {"weight_decay": 0.01, "seed": 1, "rounding": rounding}
        lr = shapes.device_lr(device)
        others = {"torch": _fused_sgd(params, grads)} if "torch" in peers and rule == "sgdm" else {}
        return Calls(
            lambda: getattr(ops, name)(*operands, lr=lr, **options),
            lambda: getattr(reference, name)(*operands, lr=LR, **options),
            others,
        )

    # Parameter and buffer read and written, the gradient read.
    moved = shape[0] * shape[1] * (3 * dtype.itemsize + 8)
    label = f"{shapes.DTYPES[dtype]} {rounding}"
    return Case(f"{rule}_step_", shapes.name(shape), label, moved, setup)


def _direction(rule, shape):
    def setup(device, peers) -> Calls:
        r = shapes.normal(shape, device)
        operands = (r, torch.zeros_like(r), torch.zeros(3, dtype=torch.int64, device=device))
        name = f"{rule}_direction_"
        return Calls(
            lambda: getattr(ops, name)(*operands),
            lambda: getattr(reference, name)(*operands),
        )

    # R and the buffer, read and written.
    return Case(f"{rule}_direction_", shapes.name(shape), "f32", shape[0] * shape[1] * 16, setup)


def cases(size: str) -> list[Case]:
    found = []
    for rule in ("sgdm", "lion"):
        for dtype, rounding in ((torch.float32, "nearest"), (torch.bfloat16, "stochastic")):
            found += [_step(rule, shape, dtype, rounding) for shape in shapes.matrices(size)]
        chosen = shapes.SMALL if size == "small" else ((1024, 4096), (1024, 11008))
        found += [_direction(rule, shape) for shape in chosen]
    return found
