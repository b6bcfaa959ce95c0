"""Which coordinates are inside the subspace (specification). See ``csrc/core/selection.h``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from frugalore.reference.philox import PURPOSE_SELECTION, philox4x32, random_words

#: Columns of a tile of "randk".
TILE = 256

_MASK = 0xFFFFFFFF


def select(n: int, k: int, *, seed: int, tensor_id: int, period: int) -> tuple[Tensor, Tensor]:
    """``k`` of ``0 .. n-1``: those with the smallest random words, the lower index first at equal words.

    Returns:
        ``below`` int32 ``[n + 1]``, how many of ``0 .. i-1`` are chosen, and ``chosen`` int32 ``[k]``,
        ascending.
    """
    words = random_words(n, seed, tensor_id, period, PURPOSE_SELECTION)
    chosen = torch.sort(torch.argsort(words, stable=True)[:k]).values
    return from_indices(chosen, n)


def from_indices(chosen: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """``below`` and ``chosen`` for these ascending indices."""
    below = torch.zeros(n + 1, dtype=torch.int32)
    below[chosen.long() + 1] = 1
    return below.cumsum(0, dtype=torch.int32), chosen.to(torch.int32)


class RandkTile(NamedTuple):
    """The bijection of one tile: element ``i`` has the rank ``ranks[i]`` and is inside if that is below
    ``chosen``."""

    ranks: Tensor
    chosen: int
    first_slot: int


def fraction_of(density: float) -> int:
    """``density`` in units of 2^-32."""
    return round(density * 2**32)


def randk_before(i: int, fraction: int) -> int:
    return i * fraction >> 32


def randk_tile(
    rows: int, columns: int, row: int, column: int, *, fraction: int, seed: int, tensor_id: int, period: int
) -> RandkTile:
    begin, length = row * columns + column, min(TILE, columns - column)
    ordinal = row * -(-columns // TILE) + column // TILE
    step = (period & 0x0FFFFFFF) | PURPOSE_SELECTION << 28
    counter = [torch.tensor([c]) for c in (ordinal & _MASK, ordinal >> 32, tensor_id, step)]
    key = [int(word) for word in philox4x32(counter, seed)]
    bits = 1
    while (1 << bits) < length:
        bits += 1
    mask, shift = (1 << bits) - 1, max(1, bits // 2)

    def mix(x: Tensor) -> Tensor:
        x = (x + key[0]) & mask
        for word in key[1:]:
            x = (x * ((word | 1) & mask)) & mask
            x = x ^ (x >> shift)
        return (x + (key[0] >> 16)) & mask

    ranks = mix(torch.arange(length))
    while bool((ranks >= length).any()):
        ranks = torch.where(ranks >= length, mix(ranks), ranks)
    first = randk_before(begin, fraction)
    return RandkTile(ranks, randk_before(begin + length, fraction) - first, first)


def randk_slots(rows: int, columns: int, *, density: float, seed: int, tensor_id: int, period: int) -> Tensor:
    """int64 ``[rows, columns]``: the slot of each element that is inside, -1 for the others."""
    fraction = fraction_of(density)
    slots = torch.full((rows, columns), -1, dtype=torch.int64)
    for row in range(rows):
        for column in range(0, columns, TILE):
            tile = randk_tile(
                rows, columns, row, column, fraction=fraction, seed=seed, tensor_id=tensor_id, period=period
            )
            inside = tile.ranks < tile.chosen
            piece = slots[row, column : column + TILE]
            piece[inside] = tile.first_slot + tile.ranks[inside]
    return slots
