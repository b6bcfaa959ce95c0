"""Which whole tensors are inside the subspace in a period, and which layer BAdam trains.

FRUGAL (arXiv 2411.07837) makes some of a group's tensors state-full and the others state-free, and moves on
after every period; BAdam (arXiv 2404.02827) trains one layer at a time. Everything here is a pure function of
the number of the period, 0, 1, 2, ...: there is nothing to save, and resuming or another rank cannot diverge.

The tensors of a group are numbered 0 ... n-1 as the group lists them. Each order but "random" is a circle on
which a period takes the next piece, where the period before stopped:

    ascending    0, 1, ..., n-1
    descending   n-1, n-2, ..., 0
    mirror       0, n-1, 1, n-2, ...: as many from each end; of an odd number the odd one comes from the end
                 whose turn it is, the front in period 0
    random       a new order in every period, by random words of the purpose "selection"

These are the published pieces, with one difference: published, "mirror" needs an even count and of an odd
number of tensors never takes the middle one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from frugalore.reference.philox import PURPOSE_SELECTION, random_words

ORDERS = ("random", "ascending", "descending", "mirror")
MODES = ("random", "ascending", "descending", "fixed")

_EMBEDDING = re.compile(r"embed[^.]*\.")
_LAYER = re.compile(r"(?:^|\.)\d+\.")


def block_count(n: int, density: float) -> int:
    """How many of ``n`` blocks are active: ``n * density``, rounded (halves to the even number)."""
    _check_density(density)
    return round(n * density)


def active_blocks(order: str, n: int, count: int, period: int, *, seed: int, tensor_id: int = 0) -> list[int]:
    """The ``count`` of ``n`` blocks that are active in a period.

    Args:
        order: "random", "ascending", "descending" or "mirror". count: 0 to ``n``, :func:`block_count`.
        period: 0 or more. seed, tensor_id: of the random stream, for "random".

    Returns:
        their indices, ascending.

    Raises:
        ValueError: an unknown order, or a number out of its range.
    """
    _check(order, n, period)
    if not 0 <= count <= n:
        raise ValueError(f"count: 0 to {n} expected (n = {n}), got {count}")
    if order == "random":
        return sorted(_shuffled(n, seed, tensor_id, period)[:count])
    circle = _circle(order, n)
    return sorted(circle[(period * count + i) % n] for i in range(count))


def active_blocks_by_bytes(
    order: str, sizes: Sequence[int], density: float, period: int, *, seed: int, tensor_id: int = 0
) -> list[int]:
    """The blocks that are active in a period if ``density`` is a share of the bytes rather than a count.

    Blocks are taken in the order, each at most once a period, as long as their sum stays within
    ``density * sum(sizes)`` (rounded to whole bytes). The first one is always taken, however large, unless
    ``density`` is 0. The next period begins with the block that did not fit; "random" begins anew.

    Args:
        sizes: bytes of each block, positive. The others are those of :func:`active_blocks`.

    Returns:
        their indices, ascending.

    Raises:
        ValueError: an unknown order, or a number out of its range.
    """
    n = len(sizes)
    _check(order, n, period)
    _check_density(density)
    if any(size < 1 for size in sizes):
        raise ValueError(f"sizes: positive integers expected, got {list(sizes)}")
    if not n or not density:
        return []
    budget = round(density * sum(sizes))

    def length(circle: list[int], start: int) -> int:
        taken = sizes[circle[start]]
        for count in range(1, n):
            taken += sizes[circle[(start + count) % n]]
            if taken > budget:
                return count
        return n

    if order == "random":
        shuffled = _shuffled(n, seed, tensor_id, period)
        return sorted(shuffled[: length(shuffled, 0)])
    circle = _circle(order, n)
    lengths = [length(circle, start) for start in range(n)]
    start = 0
    for _ in range(period):
        start = (start + lengths[start]) % n
    return sorted(circle[(start + i) % n] for i in range(lengths[start]))


def cycle_block(mode: str, n: int, period: int, *, start: int | None = None, seed: int = 0) -> int:
    """The one block that BAdam trains in a period.

    Args:
        mode: "ascending" and "descending" go round; "fixed" stays; "random" goes through a new permutation of
            the blocks in every ``n`` periods.
        n: how many blocks there are. period: 0 or more.
        start: the block of period 0. Default: the last one for "descending", any for "random", else block 0.
        seed: of the permutations.

    Raises:
        ValueError: an unknown mode, or a number out of its range.
    """
    if mode not in MODES:
        raise ValueError(f"mode: one of {', '.join(MODES)} expected, got {mode!r}")
    if n < 1:
        raise ValueError(f"n: one block or more expected, got {n}")
    if period < 0:
        raise ValueError(f"period: 0 or more expected, got {period}")
    if start is not None and not 0 <= start < n:
        raise ValueError(f"start: a block in [0, {n}) expected, got {start}")
    if mode == "random":
        order = _shuffled(n, seed, 0, period // n)
        if start is not None and period < n:
            order.remove(start)
            order.insert(0, start)
        return order[period % n]
    first = start if start is not None else n - 1 if mode == "descending" else 0
    return (first + {"ascending": 1, "descending": -1, "fixed": 0}[mode] * period) % n


def layer_blocks(
    names: Sequence[str],
    prefixes: Sequence[str] | None = None,
    include_embedding: bool = False,
    include_lm_head: bool = False,
) -> list[list[int]]:
    """A model's parameters as blocks of one layer each.

    A layer's parameters are those whose names agree up to their first number, as
    ``model.layers.10.`` in ``model.layers.10.mlp.experts.3.weight``. An embedding is a name without a number
    that has a part containing "embed" before its last one. The rest (final norm, head) is called the head, as
    published. Published, embeddings that are not a block of their own belong to it; here they do not.

    Args:
        names: of ``named_parameters()``.
        prefixes: one block for each, instead of layers: whole parts of names, anywhere in them
            (``"layers.1"`` is in ``model.layers.1.attn.weight``, not in ``model.layers.11.attn.weight``).
        include_embedding, include_lm_head: make blocks of the embeddings and of the head; without
            ``prefixes``.

    Returns:
        for each block the indices of its names, ascending. Layers and embeddings are in the order of their
        first names, the head is last. Names in no block are never trained.

    Raises:
        ValueError: there is no block, a prefix is in no name, or a name has two prefixes.
    """
    if prefixes is not None:
        return _blocks_of_prefixes(names, prefixes)
    blocks: dict[str, list[int]] = {}
    head = []
    for i, name in enumerate(names):
        if layer := _LAYER.search(name):
            blocks.setdefault(name[: layer.end()], []).append(i)
        elif embedding := _EMBEDDING.search(name):
            if include_embedding:
                blocks.setdefault(name[: embedding.end()], []).append(i)
        else:
            head.append(i)
    found = list(blocks.values())
    if include_lm_head and head:
        found.append(head)
    if not found:
        raise ValueError(f"names: numbered layers expected, got {_some(names)}")
    return found


def _blocks_of_prefixes(names: Sequence[str], prefixes: Sequence[str]) -> list[list[int]]:
    if isinstance(prefixes, str) or not prefixes:
        raise ValueError(f"prefixes: a list of prefixes expected, got {prefixes!r}")
    blocks: list[list[int]] = [[] for _ in prefixes]
    for i, name in enumerate(names):
        of = [j for j, prefix in enumerate(prefixes) if f".{prefix.strip('.')}." in f".{name}."]
        if len(of) > 1:
            raise ValueError(
                f"prefixes: {name} is in two blocks, {prefixes[of[0]]!r} and {prefixes[of[1]]!r}"
            )
        for j in of:
            blocks[j].append(i)
    for prefix, block in zip(prefixes, blocks, strict=True):
        if not block:
            raise ValueError(f"prefixes: {prefix!r} is in none of the names {_some(names)}")
    return blocks


def _circle(order: str, n: int) -> list[int]:
    if order == "mirror":
        return [i // 2 if i % 2 == 0 else n - 1 - i // 2 for i in range(n)]
    return list(range(n)) if order == "ascending" else list(range(n - 1, -1, -1))


def _shuffled(n: int, seed: int, tensor_id: int, number: int) -> list[int]:
    """0 ... n-1 by their random words, the lower one first where words are equal."""
    words = random_words(n, seed, tensor_id, number, PURPOSE_SELECTION)
    return torch.argsort(words, stable=True).tolist()


def _check(order: str, n: int, period: int) -> None:
    if order not in ORDERS:
        raise ValueError(f"block_order: one of {', '.join(ORDERS)} expected, got {order!r}")
    if n < 0:
        raise ValueError(f"n: 0 or more blocks expected, got {n}")
    if period < 0:
        raise ValueError(f"period: 0 or more expected, got {period}")


def _check_density(density: float) -> None:
    if not 0.0 <= density <= 1.0:
        raise ValueError(f"density: 0 to 1 expected, got {density}")


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])]) or "none"
