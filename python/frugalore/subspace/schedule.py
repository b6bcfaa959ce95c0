"""When a parameter's subspace is refreshed.

Q-GaLore's layer-adaptive schedule (arXiv 2407.08296, section 3.3, as its code does it), for call 0, 1, 2, ...
of a parameter:

    refresh if there is no basis yet, or call % gap == offset % gap
    after each refresh but the first: append the similarity of the new basis to the old one to a queue of the
    last `queue_size`; once it is full and its mean is at least `cos_threshold`: gap = int(gap * gamma_proj)

The gap never shrinks and the queue is kept after it grew. With ``cos_threshold=None`` the gap is fixed, which
is GaLore's schedule. Published, all parameters refresh in the same step (offset 0), and that step stalls.
With ``stagger`` each has an offset of its own below the first gap; the first basis is still made at call 0,
so the first gap is shorter, never longer.

The similarity is made on the device and read at the parameter's next call, an iteration later, so a refresh
does not stall the host. No later, because it also tells whether that call has to try again.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from frugalore.subspace.options import check_positive_integer

#: A basis that keeps less than this share of the one before it (chance taken out) is turned by more than one
#: power iteration at the next refresh.
STABLE_SIMILARITY = 0.5

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def spread_offset(ordinal: int, gap: int) -> int:
    """An offset in ``[0, gap)``. Multiples of the golden ratio, modulo 1, are spread evenly however many
    there are, so the number of parameters need not be known, and one added later changes no other's."""
    return int(ordinal * _GOLDEN_RATIO % 1.0 * gap)


class PendingScalar:
    """One number on its way from the device: copied to pinned memory, read when it is needed."""

    def __init__(self, value: Tensor):
        if value.device.type == "cuda":
            self._host = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._host.copy_(value, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(value.device))
        else:
            self._host, self._arrived = value, None

    def read(self) -> float:
        """Waits only if the copy has not arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return float(self._host)


class RefreshSchedule:
    """Decides the refreshes of one optimizer's parameters.

    What it knows of a parameter lives in that parameter's state, as plain numbers: ``calls``, ``gap``,
    ``offset``, ``similarity`` (of the last refresh), ``similarities`` (the queue), ``refreshes``,
    ``refresh_again`` (the last one met a gradient that gives no basis).

    Group options: ``update_proj_gap``, ``stagger``, ``cos_threshold``, ``gamma_proj``, ``queue_size``.
    """

    def __init__(self, gap_option: str = "update_proj_gap") -> None:
        """Args: gap_option: the group option that holds the first gap."""
        self._gap_option = gap_option
        self._pending: dict[int, tuple[dict[str, Any], dict[str, Any], PendingScalar]] = {}

    def layout_options(self) -> tuple[str, ...]:
        """The first gap and the offset are part of the state from the first call on."""
        return (self._gap_option, "stagger")

    def check_options(self, group: dict[str, Any]) -> None:
        for name in (self._gap_option, "queue_size"):
            check_positive_integer(name, group[name])
        threshold = group["cos_threshold"]
        if threshold is not None and not (isinstance(threshold, Real) and math.isfinite(threshold)):
            raise ValueError(f"cos_threshold: a number or None expected, got {threshold!r}")
        if not isinstance(group["stagger"], bool):
            raise ValueError(f"stagger: True or False expected, got {group['stagger']!r}")
        if not isinstance(group["gamma_proj"], Real) or not 1.0 <= group["gamma_proj"] < math.inf:
            raise ValueError(f"gamma_proj: 1 or more expected, got {group['gamma_proj']!r}")

    def initial_state(self, group: dict[str, Any], ordinal: int) -> dict[str, Any]:
        """Args: ordinal: of the parameter in its optimizer."""
        gap = int(group[self._gap_option])
        return {
            "calls": 0,
            "gap": gap,
            "offset": spread_offset(ordinal, gap) if group["stagger"] else 0,
            "similarity": 1.0,
            "similarities": [],
            "refreshes": 0,
            "refresh_again": False,
        }

    def due(self, state: dict[str, Any], group: dict[str, Any]) -> bool:
        """Whether the call that is about to happen starts with a refresh."""
        self._settle(state)
        if state["refreshes"] == 0 or state["refresh_again"]:
            return True
        return (state["calls"] - state["offset"]) % state["gap"] == 0

    @staticmethod
    def power_iterations(state: dict[str, Any]) -> int:
        """How far a refresh turns the basis: further where the subspace moved much at the last one."""
        return 1 if state["similarity"] >= STABLE_SIMILARITY else 2

    def failed(self, state: dict[str, Any]) -> bool:
        """Whether the last refresh met a gradient that gives no basis."""
        self._settle(state)
        return state["refresh_again"]

    def refreshed(self, state: dict[str, Any], group: dict[str, Any], similarity: Tensor) -> None:
        """Record a refresh. ``similarity``: a scalar on the device, NaN if the gradient gave no basis."""
        self._settle(state)
        state["refresh_again"] = False
        state["refreshes"] += 1
        self._pending[id(state)] = (state, group, PendingScalar(similarity))
        if similarity.device.type != "cuda":
            self._settle(state)

    def settle_all(self) -> None:
        """Read everything that is still on its way; before a checkpoint."""
        for state, _, _ in list(self._pending.values()):
            self._settle(state)

    def forget(self) -> None:
        """Drop what is on its way; when other state is loaded."""
        self._pending.clear()

    def _settle(self, state: dict[str, Any]) -> None:
        waiting = self._pending.pop(id(state), None)
        if waiting is None:
            return
        _, group, scalar = waiting
        similarity = scalar.read()
        if math.isnan(similarity):  # the old basis was kept: try again at the next call
            state["refresh_again"] = True
            state["refreshes"] -= 1
            return
        state["similarity"] = similarity
        threshold = group["cos_threshold"]
        if threshold is None or state["refreshes"] < 2:
            return
        queue = state["similarities"]
        queue.append(similarity)
        del queue[: -int(group["queue_size"])]
        if len(queue) == group["queue_size"] and sum(queue) / len(queue) >= threshold:
            state["gap"] = int(state["gap"] * group["gamma_proj"])
