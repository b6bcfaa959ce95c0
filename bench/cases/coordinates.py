"""coordinates_project, coordinates_back_ and coordinates_back_update_, at a density of a quarter.

The peer is what FRUGAL's published code does in plain torch: it gathers and scatters lines by their indices.
The reference of "randk" makes each tile in Python, so it is timed at small sizes only.
"""

from __future__ import annotations

import torch

from cases import shapes
from frugalore import ops
from frugalore.reference import coordinates as reference
from frugalore.reference import int8
from harness import Calls, Case

DENSITY = 0.25
_NAMES = {"seed": 1, "tensor_id": 3, "period": 2}
_LARGEST_REFERENCE = 1 << 18  # elements of "randk"


def _selection(kind, shape, device) -> ops.Selection:
    if kind == "randk":
        return ops.Selection(kind, density=DENSITY, **_NAMES)
    if kind == "none":
        return ops.Selection(kind)
    n = shape[1] if kind == "columns" else shape[0]
    return ops.Selection(kind, *ops.select(n, round(n * DENSITY), **_NAMES, device=device))


def _count(kind, shape) -> int:
    """Elements inside."""
    share = {"none": 0.0, "columns": round(shape[1] * DENSITY) / shape[1], "rows": DENSITY, "randk": DENSITY}
    return int(shape[0] * shape[1] * share[kind])


def _reference(kind, shape, call):
    return call if kind != "randk" or shape[0] * shape[1] <= _LARGEST_REFERENCE else None


def _project(kind, shape, dtype):
    def setup(device, peers) -> Calls:
        grad, selection = shapes.normal(shape, device, dtype), _selection(kind, shape, device)
        others = {}
        if "torch" in peers and kind in ("columns", "rows"):
            chosen, dim = selection.chosen.long(), 1 if kind == "columns" else 0
            others["torch"] = lambda: grad.index_select(dim, chosen)
        return Calls(
            lambda: ops.coordinates_project(grad, selection),
            _reference(kind, shape, lambda: reference.coordinates_project(grad, selection)),
            others,
        )

    # What is inside, read and written.
    moved = 2 * _count(kind, shape) * dtype.itemsize
    return Case("coordinates_project", f"{shapes.name(shape)} {kind}", shapes.DTYPES[dtype], moved, setup)


def _back(kind, shape, dtype):
    def setup(device, peers) -> Calls:
        grad, selection = shapes.normal(shape, device, dtype), _selection(kind, shape, device)
        direction = shapes.normal(selection.state_shape(*shape), device)
        out = torch.empty(shape, device=device)
        others = {}
        if "torch" in peers and kind in ("columns", "rows"):
            chosen, dim = selection.chosen.long(), 1 if kind == "columns" else 0

            def scatter():
                torch.sign(grad, out=signs)
                out.copy_(signs).index_copy_(dim, chosen, direction)

            signs = torch.empty_like(grad)
            others["torch"] = scatter
        return Calls(
            lambda: ops.coordinates_back_(out, direction, grad, selection),
            _reference(kind, shape, lambda: reference.coordinates_back_(out, direction, grad, selection)),
            others,
        )

    # The gradient and a float32 direction read, the float32 update written.
    moved = shape[0] * shape[1] * (dtype.itemsize + 4) + 4 * _count(kind, shape)
    return Case("coordinates_back_", f"{shapes.name(shape)} {kind}", shapes.DTYPES[dtype], moved, setup)


def _back_update(kind, shape, dtype):
    def setup(device, peers) -> Calls:
        grad, selection = shapes.normal(shape, device, dtype), _selection(kind, shape, device)
        weight = ops.int8_quantize(shapes.normal(shape, device))
        direction = shapes.normal(selection.state_shape(*shape), device)
        options = {"alpha": -1.0, "weight_decay": 0.01, "seed": 1, "tensor_id": 3}
        step = ops.Step(shapes.device_lr(device), shapes.device_progress(device), **options)

        def plain():
            update = torch.empty(shape, device=device)
            reference.coordinates_back_(update, direction, grad, selection)
            int8.int8_stochastic_update_(*weight, update, lr=shapes.LR, progress=1, **options)

        return Calls(
            lambda: ops.coordinates_back_update_(weight, direction, grad, selection, step),
            _reference(kind, shape, plain),
        )

    # Gradient and direction read; codes, scales and zero-points of the weight read and written.
    moved = shape[0] * shape[1] * (dtype.itemsize + 2) + 4 * _count(kind, shape) + 10 * shapes.groups(shape)
    name = f"{shapes.name(shape)} {kind}"
    return Case("coordinates_back_update_", name, f"{shapes.DTYPES[dtype]} int8", moved, setup)


def cases(size: str) -> list[Case]:
    chosen = shapes.SMALL if size == "small" else (shapes.SMALL[1], shapes.ATTENTION, shapes.DOWN)
    found = []
    for shape in chosen:
        for kind in ("columns", "rows", "randk"):
            found += [_project(kind, shape, dtype) for dtype in (torch.float32, torch.bfloat16)]
        for kind in ("none", "columns", "rows", "randk"):
            found += [_back(kind, shape, dtype) for dtype in (torch.float32, torch.bfloat16)]
            found.append(_back_update(kind, shape, torch.bfloat16))
    return found
