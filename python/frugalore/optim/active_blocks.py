"""Which parameters of a group are active where its subspaces are blocks (FRUGAL, BAdam)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from frugalore.optim import checks
from frugalore.subspace.blocks import (
    active_blocks,
    active_blocks_by_bytes,
    block_count,
    cycle_block,
    layer_blocks,
)
from frugalore.subspace.options import check_positive_integer

#: Orders in which blocks take their turns. The first four are FRUGAL's, "shuffle" and "fixed" BAdam's.
BLOCK_ORDERS = ("random", "ascending", "descending", "mirror", "shuffle", "fixed")
_CYCLES = {"shuffle": "random", "fixed": "fixed"}  # and their names in cycle_block


class ActiveBlocks:
    """The blocks of the groups of one optimizer, and whose turn it is.

    Group options: ``blocks``, "parameters" (each its own block) or "layers" (by name, see
    :func:`frugalore.subspace.blocks.layer_blocks`; parameters of no layer are never active);
    ``block_order``; ``block_budget``, "count" (``round(density n)`` blocks) or "bytes" (as many as hold
    ``density`` of the state's bytes); ``active_blocks``, a number of blocks instead of ``density``;
    ``start_block``, the first one's index (None: the order's own); ``freeze_inactive``.
    """

    #: Options that decide whose state there is in a period, and so cannot change later.
    LAYOUT_OPTIONS = (
        "blocks",
        "block_prefixes",
        "include_embedding",
        "include_lm_head",
        "block_order",
        "block_budget",
        "active_blocks",
        "start_block",
        "freeze_inactive",
    )

    def __init__(self) -> None:
        self._blocks: dict[Tensor, list[list[Tensor]]] = {}  # by the group's first parameter
        self._names: dict[Tensor, str] = {}
        self._active: dict[Tensor, tuple[tuple[int, float, int], set[Tensor]]] = {}
        self._visited: set[Tensor] = set()  # in this period
        self._warned: set[Tensor] = set()

    @staticmethod
    def check_options(group: dict[str, Any]) -> None:
        checks.check_choice("block_order", group["block_order"], BLOCK_ORDERS)
        checks.check_choice("block_budget", group["block_budget"], ("count", "bytes"))
        checks.check_choice("blocks", group["blocks"], ("parameters", "layers"))
        if group["moments_at_refresh"] == "keep":
            raise ValueError(
                "moments_at_refresh: 'reset' or 'rotate' expected with blocks, whose inactive parameters "
                "have no moments, got 'keep'"
            )
        if group["active_blocks"] is not None:
            check_positive_integer("active_blocks", group["active_blocks"])
        if group["block_order"] in _CYCLES and group["active_blocks"] != 1:
            raise ValueError(
                f"active_blocks: 1 expected with block_order {group['block_order']!r}, got "
                f"{group['active_blocks']!r}"
            )
        start = group["start_block"]
        if start is not None and (isinstance(start, bool) or not isinstance(start, int) or start < 0):
            raise ValueError(f"start_block: zero or more, or None, expected, got {start!r}")
        if start is not None and (group["active_blocks"] != 1 or group["block_order"] == "mirror"):
            raise ValueError(
                "start_block: goes with active_blocks=1 and another order than 'mirror', got active_blocks="
                f"{group['active_blocks']!r} and block_order={group['block_order']!r}"
            )

    def joined(self, group: dict[str, Any], names: list[str]) -> None:
        params = group["params"]
        self._names.update(zip(params, names, strict=True))
        if group["blocks"] == "parameters":
            blocks = [[p] for p in params]
        else:
            options = {
                name: group[name] for name in ("block_prefixes", "include_embedding", "include_lm_head")
            }
            blocks = [[params[i] for i in block] for block in layer_blocks(names, *options.values())]
            if group["block_prefixes"] is not None:
                group["block_prefixes"] = list(group["block_prefixes"])  # a state has a list, too
        for name in ("active_blocks", "start_block"):
            most = len(blocks) - (name == "start_block")
            if group[name] is not None and group[name] > most:
                raise ValueError(
                    f"{name}: at most {most} expected, as there are {len(blocks)} blocks, got {group[name]}"
                )
        self._blocks[params[0]] = blocks

    def forget(self) -> None:
        self._active.clear()
        self._visited.clear()

    def of(self, group: dict[str, Any]) -> list[list[Tensor]]:
        """All blocks of a group, in its order of parameters."""
        return self._blocks[group["params"][0]]

    def active(self, group: dict[str, Any], period: int, density: float, ordinal: int) -> set[Tensor]:
        """The parameters of the active blocks. ``ordinal``: names the group's random numbers."""
        first = group["params"][0]
        key = (period, density, group["seed"])
        if first not in self._active or self._active[first][0] != key:
            blocks = self.of(group)
            chosen = self._choose(group, blocks, period, density, ordinal)
            self._active[first] = key, {p for index in chosen for p in blocks[index]}
        return self._active[first][1]

    @staticmethod
    def _choose(
        group: dict[str, Any], blocks: list[list[Tensor]], period: int, density: float, ordinal: int
    ) -> list[int]:
        order, seed, n = group["block_order"], group["seed"], len(blocks)
        if group["active_blocks"] == 1 and (order in _CYCLES or group["start_block"] is not None):
            mode = _CYCLES.get(order, order)
            return [cycle_block(mode, n, period, start=group["start_block"], seed=seed)]
        if group["block_budget"] == "bytes":
            sizes = [sum(max(1, p.numel()) for p in block) for block in blocks]
            return active_blocks_by_bytes(order, sizes, density, period, seed=seed, tensor_id=ordinal)
        count = group["active_blocks"] or block_count(n, density)
        return active_blocks(order, n, count, period, seed=seed, tensor_id=ordinal)

    # ---- blocks without gradients -------------------------------------------------------------------

    def visited(self, p: Tensor) -> None:
        """A parameter moved in this period."""
        self._visited.add(p)

    def warn_of_unvisited(self, group: dict[str, Any], active: set[Tensor]) -> None:
        """At the end of a period: warn, once for each, of active blocks that never had a gradient."""
        for block in self.of(group):
            if block[0] not in active or block[0] in self._warned or self._visited.intersection(block):
                continue
            self._warned.add(block[0])
            more = f" and {len(block) - 1} more" if len(block) > 1 else ""
            checks.warn(
                f"{self._names[block[0]]}{more}: active for {group['update_gap']} steps and never had a "
                "gradient; its turn was lost"
            )
        self._visited.difference_update(group["params"])
