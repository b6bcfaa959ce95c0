"""split_step_: FRUGAL's step in one pass, at density .25, by columns, rows, single elements and blocks."""

from __future__ import annotations

import torch

from cases import shapes
from cases.adamw import progress_of
from cases.shapes import LR
from frugalore import ops
from frugalore.ops import Selection
from frugalore.reference import selection as selections
from frugalore.reference import split as reference
from harness import Calls, Case

DENSITY = 0.25
BLOCKS = 4  # parameters of a block-wise call; one of them is inside
OUTSIDE = 0.5  # its learning rate relative to that inside


def _lines(kind: str, length: int, device) -> Selection:
    below, chosen = selections.select(length, round(DENSITY * length), seed=1, tensor_id=0, period=0)
    return Selection(kind, below.to(device), chosen.to(device))


def _selections(kind: str, shape, device) -> list[Selection]:
    if kind == "blocks":
        return [Selection("all"), *[Selection("none")] * (BLOCKS - 1)]
    if kind == "randk":
        return [Selection(kind, density=DENSITY, seed=1)]
    return [_lines(kind, shape[1] if kind == "columns" else shape[0], device)]


def _step(rule, kind, outside, shape, dtype, rounding):
    count = BLOCKS if kind == "blocks" else 1

    def setup(device, peers) -> Calls:
        chosen = _selections(kind, shape, device)
        params = [shapes.normal(shape, device, dtype) for _ in chosen]
        grads = [shapes.normal(shape, device, dtype) for _ in chosen]
        states = [s.state_shape(*shape) for s in chosen]
        lists = 2 if rule == "adamw" else 1
        moments = tuple([torch.zeros(state, device=device) for state in states] for _ in range(lists))
        progress, powers = progress_of(count, device)
        operands = (params, grads, chosen, moments, progress, powers if rule == "adamw" else None)
        options = {"rule": rule, "outside": outside, "outside_scale": OUTSIDE, "betas": (0.9, 0.99)}
        options |= {"weight_decay": 0.01, "seed": 1, "rounding": rounding}
        lr = shapes.device_lr(device)
        return Calls(
            lambda: ops.split_step_(*operands, lr=lr, **options),
            lambda: reference.split_step_(*operands, lr=LR, **options),
        )

    # The parameter read and written, the gradient read, the state of what is inside read and written.
    state = DENSITY * (16 if rule == "adamw" else 8)
    moved = int(count * shape[0] * shape[1] * (3 * dtype.itemsize + state))
    name = shapes.name(shape) if count == 1 else f"{count} x {shapes.name(shape)}"
    label = f"{rule} {kind} {outside} {shapes.DTYPES[dtype]} {rounding}"
    return Case("split_step_", name, label, moved, setup)


def cases(size: str) -> list[Case]:
    matrices = shapes.SMALL if size == "small" else (shapes.SMALL[1], shapes.ATTENTION)
    found = []
    for shape in matrices:
        for dtype, rounding in ((torch.float32, "nearest"), (torch.bfloat16, "stochastic")):
            kinds = ("columns", "rows", "randk", "blocks")
            found += [_step("adamw", kind, "sign", shape, dtype, rounding) for kind in kinds]
        found += [
            _step(rule, "columns", "sign", shape, torch.float32, "nearest") for rule in ("sgdm", "lion")
        ]
    return found
