"""Which coordinates of a matrix are inside the subspace (FRUGAL, arXiv 2411.07837, section 4)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from frugalore import _C
from frugalore.ops._options import seed_bits
from frugalore.ops._registry import define, no_outputs

#: The order of ``SelectionKind`` in ``csrc/core/selection.h``.
KINDS = ("none", "all", "columns", "rows", "randk")

_select_op = define(
    "select_(Tensor(a!) below, Tensor(b!) chosen, int seed, int tensor_id, int period) -> ()",
    _C.select,
    no_outputs,
)


@torch.no_grad()
def select(
    n: int,
    k: int,
    *,
    seed: int,
    tensor_id: int,
    period: int,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Choose ``k`` of ``0 .. n-1`` at random, each set of ``k`` with the same probability.

    Chosen are the indices with the ``k`` smallest words of the random stream, the lower index first where
    words are equal. So every device and every rank makes the same choice, and there is no state to keep.

    Args:
        n: how many columns or rows there are, 0 to 2^31 - 2. k: 0 to ``n``.
        seed, tensor_id: name the random stream; -2^63 to 2^64 - 1, and 0 ... 2^32 - 1.
        period: the number of the choice, modulo 2^28.
        device: where the result is made.

    Returns:
        ``below`` int32 ``[n + 1]``, how many of ``0 .. i-1`` are chosen, and ``chosen`` int32 ``[k]``,
        ascending: the fields of a :class:`Selection` of columns or rows.

    Raises:
        ValueError: a number out of range.
    """
    if not 0 <= n < 2**31 - 1:
        raise ValueError(f"n: 0 to 2^31 - 2 expected, got {n}")
    if not 0 <= k <= n:
        raise ValueError(f"k: 0 to n = {n} expected, got {k}")
    below = torch.empty(n + 1, dtype=torch.int32, device=device)
    chosen = torch.empty(k, dtype=torch.int32, device=device)
    _select_op(below, chosen, seed_bits(seed), tensor_id, period)
    return below, chosen


def matrix_shape(shape: torch.Size | tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a parameter as a matrix: the first dimension by the others; a vector is one row."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


class Selection(NamedTuple):
    """The elements of a matrix ``[rows, columns]`` that are inside, and where their state is.

        ==========  ==========================  ==============================================
        ``kind``    inside                      state
        ==========  ==========================  ==============================================
        none, all   no element, every element   nothing; ``[rows, columns]``
        columns     the columns ``chosen``      ``[rows, k]``, columns in ascending order
        rows        the rows ``chosen``         ``[k, columns]``, rows in ascending order
        randk       single elements, a fixed    ``[floor(rows columns density)]``, in the order
                    number in every 256 of a    of ``csrc/core/selection.h``
                    row
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

    def arguments(self, name: str = "selection") -> tuple:
        """As the bindings take it; ``name`` leads the messages.

        Raises:
            ValueError: another kind, lines without their tensors, or a density outside of [0, 1].
        """
        if self.kind not in KINDS:
            raise ValueError(f"{name}.kind: one of {', '.join(KINDS)} expected, got {self.kind!r}")
        if self.kind in ("columns", "rows") and (self.below is None or self.chosen is None):
            raise ValueError(f"{name}: below and chosen expected for {self.kind}, got none")
        if self.kind == "randk" and not 0.0 <= self.density <= 1.0:
            raise ValueError(f"{name}.density: a number in [0, 1] expected, got {self.density}")
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
