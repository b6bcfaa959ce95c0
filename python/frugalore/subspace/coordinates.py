"""Which columns, rows or elements of a matrix are inside in a period (FRUGAL, arXiv 2411.07837)."""

from __future__ import annotations

import torch

from frugalore import ops
from frugalore.ops.projection import short_side
from frugalore.ops.selection import Selection


def selection_of(
    subspace: str,
    shape: tuple[int, int],
    density: float,
    seed: int,
    tensor_id: int,
    period: int,
    device: torch.device,
) -> Selection:
    """The coordinates of a matrix in a period: a pure function of its arguments.

    Args:
        subspace: "columns", "rows": ``int(density n)`` of them, each set equally likely; "randk":
            ``floor(density m n)`` elements, a fixed number in every 256; "randperm": ``round(density n)``
            columns or rows, whichever is the short side.
    """
    if subspace == "randk":
        if density in (0.0, 1.0):
            return Selection("all" if density else "none")
        return Selection("randk", density=density, seed=seed, tensor_id=tensor_id, period=period)
    if subspace == "randperm":
        subspace = "columns" if short_side(shape) == "right" else "rows"
        length = min(shape)
        count = round(length * density)
    else:
        length = shape[subspace == "columns"]
        count = int(length * density)
    if count in (0, length):
        return Selection("all" if count else "none")
    chosen = ops.select(length, count, seed=seed, tensor_id=tensor_id, period=period, device=device)
    return Selection(subspace, *chosen)
