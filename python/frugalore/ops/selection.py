"""Which coordinates of a matrix are inside the subspace (FRUGAL, arXiv 2411.07837, section 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from frugalore.ops._options import seed_bits

#: The order of ``SelectionKind`` in ``csrc/core/selection.h``.
KINDS = ("none", "all", "columns", "rows", "randk")


class Selection(NamedTuple):
    """The elements of a matrix ``[rows, columns]`` that are inside, and where their state is.

        ==========  ==========================  ==============================================
        ``kind``    inside                      state
        ==========  ==========================  ==============================================
        none, all   no element, every element   nothing; ``[rows, columns]``
        columns     the columns ``chosen``      ``[rows, k]``, columns in ascending order
        rows        the rows ``chosen``         ``[k, columns]``, rows in ascending order
        randk       single elements, a fixed    ``[floor(rows columns density)]``, in the order
                    number in every 256         of ``csrc/core/selection.h``
        ==========  ==========================  ==============================================

    Attributes:
        below: int32 ``[length + 1]``, how many of ``0 .. i-1`` are chosen; for columns and rows.
        chosen: int32 ``[k]``, ascending; for columns and rows. Both on the device of the matrix, from
            :func:`frugalore.ops.select` or :meth:`of`.
        density, seed, tensor_id, period: name the elements of "randk", which are drawn wherever they are
            needed.
    """

    kind: str
    below: Tensor | None = None
    chosen: Tensor | None = None
    density: float = 0.0
    seed: int = 0
    tensor_id: int = 0
    period: int = 0

    @classmethod
    def of(cls, kind: str, chosen: Tensor, length: int) -> Selection:
        """Columns or rows by their indices, in any order.

        Args:
            kind: "columns" or "rows". chosen: integers in ``[0, length)``, each once. length: how many
                columns or rows the matrix has.

        Raises:
            ValueError: another kind, or an index that is out of range or there twice.
        """
        if kind not in ("columns", "rows"):
            raise ValueError(f"kind: 'columns' or 'rows' expected, got {kind!r}")
        ordered = chosen.flatten().sort().values
        if ordered.numel() and not 0 <= int(ordered[0]) <= int(ordered[-1]) < length:
            raise ValueError(
                f"chosen: indices in [0, {length}) expected, got {int(ordered[0])} to {int(ordered[-1])}"
            )
        if bool((ordered[1:] == ordered[:-1]).any()):
            raise ValueError(f"chosen: each index once expected, got {ordered.tolist()}")
        marks = torch.zeros(length + 1, dtype=torch.int32, device=chosen.device)
        marks[ordered.long() + 1] = 1
        return cls(kind, marks.cumsum(0, dtype=torch.int32), ordered.to(torch.int32))

    def state_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """The shape of one state tensor of a matrix ``[rows, columns]``."""
        if self.kind in ("none", "all"):
            return (rows, columns) if self.kind == "all" else (0,)
        if self.kind == "randk":
            return (rows * columns * round(self.density * 2**32) >> 32,)
        k = self.chosen.numel()
        return (rows, k) if self.kind == "columns" else (k, columns)

    def arguments(self) -> tuple:
        """As the bindings take it."""
        if self.kind not in KINDS:
            raise ValueError(f"selection.kind: one of {', '.join(KINDS)} expected, got {self.kind!r}")
        kind = KINDS.index(self.kind)
        return (
            kind,
            self.below,
            self.chosen,
            self.density,
            seed_bits(self.seed),
            self.tensor_id,
            self.period,
        )
