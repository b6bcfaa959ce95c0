"""What a switch does to moments that belong to chosen coordinates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frugalore import ops
from frugalore.ops.selection import Selection


class CoordinateTurn:
    """From the coordinates of one period to those of the next: where both have an element its moments stay,
    elsewhere they are zero (the re-projection ``P_new P_oldᵀ`` of FRUGAL's algorithm 1; with coordinates its
    factors are zeros and ones).

    It goes through a dense float32 copy of one moment at a time.
    """

    def __init__(self, old: Selection, new: Selection, shape: tuple[int, int]):
        self._old, self._new, self._shape = old, new, shape

    @staticmethod
    def changes(old: Selection, new: Selection) -> bool:
        """Whether the two may hold other elements."""
        return not (old.kind == new.kind == "all")

    def first_moment(self, m: Tensor) -> Tensor:
        return self._carried(m)

    def second_moment(self, v: Tensor) -> Tensor:
        return self._carried(v)

    def _carried(self, x: Tensor) -> Tensor:
        x = x.view(self._old.state_shape(*self._shape))
        if self._old.kind == "all":
            return ops.coordinates_project(x, self._new)
        dense = torch.empty(self._shape, dtype=torch.float32, device=x.device)
        ops.coordinates_back_(dense, x, None, self._old, outside="none")
        return dense if self._new.kind == "all" else ops.coordinates_project(dense, self._new)

    @staticmethod
    def replace_(state: dict[str, Any], fresh: dict[str, Tensor]) -> None:
        """Put the fresh tensors into the state; their shapes may be others."""
        state.update(fresh)
