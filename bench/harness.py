"""Timing of ops against a copy, the plain-torch reference and peers, all in one run.

A case declares the bytes that the op's definition moves (each input read once, each output written once;
a tensor updated in place counts twice) and, for ops with matrix products, its floating-point operations.

    GB/s         bytes / median time
    of copy      time of a copy that moves as many bytes / time of the op, median over the rounds
    of roofline  max(bytes / largest copy's GB/s, flops / matrix product's FLOP/s) / median time
    x reference  time of the reference / time of the op, median over the rounds (above 1: the op is faster)

One round times every contender once, so drift of the machine cancels in the ratios. Every call of a
contender takes the next of several buffer sets, which together exceed the last-level cache, so operands
come from memory as they do in training. A CUDA sample is a batch of calls between two events on the
current stream, enqueued while the device is kept busy: launch gaps of the host are not in it, and
``call_us`` says what a call costs the host.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

PEERS = ("torch", "bitsandbytes", "torchao", "numpy")
_MIB = 1 << 20
_MAX_SETS = 256
_SLOW, _VERY_SLOW = 1.0, 10.0  # seconds a call


@dataclass
class Calls:
    """The contenders over one set of buffers; each callable is one call of the op.

    ``state_bytes`` is for optimizer steps: called after the timing, it gives the bytes of optimizer state of
    "frugalore" and of each peer.
    """

    ours: Callable[[], object]
    reference: Callable[[], object] | None = None
    peers: dict[str, Callable[[], object]] = field(default_factory=dict)
    state_bytes: Callable[[], dict[str, int]] | None = None


@dataclass(frozen=True)
class Case:
    """One row of the table.

    ``setup(device, peers)`` makes a fresh set of buffers and returns its :class:`Calls`; ``peers`` are the
    names wanted, and those that cannot be imported are left out. ``flops`` and ``flops_dtype`` are for ops
    with matrix products; ``devices`` leaves out a device on which the case would take too long.
    """

    op: str
    shape: str
    dtype: str
    bytes: int
    setup: Callable[[torch.device, tuple[str, ...]], Calls]
    flops: int = 0
    flops_dtype: torch.dtype = torch.float32
    devices: tuple[str, ...] = ("cpu", "cuda")


def without_reference(case: Case) -> Case:
    """The same case, but its reference is not timed; at the largest shapes that takes most of a run."""
    setup = case.setup
    return replace(case, setup=lambda *where: replace(setup(*where), reference=None))


def quantile(samples: list[float], q: float) -> float:
    """Linear interpolation between order statistics."""
    ordered = sorted(samples)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


class _CpuClock:
    batch_seconds = 2e-4

    def sample(self, calls: Iterable[Callable[[], object]], _: float) -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        return time.perf_counter() - start

    def synchronize(self) -> None:
        pass


class _CudaClock:
    batch_seconds = 2e-4

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)
        # Hopper's top clock; a slower card only waits a little longer.
        self._cycles_per_second = 2.0e9

    def sample(self, calls: Iterable[Callable[[], object]], enqueue_seconds: float) -> float:
        # The device spins while the host enqueues, at most 50 ms.
        torch.cuda._sleep(int(min(1.5 * enqueue_seconds + 2e-5, 0.05) * self._cycles_per_second))
        self._start.record()
        for call in calls:
            call()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) * 1e-3

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)


class Harness:
    """Measures cases on one device.

    Args:
        device: where the buffers live.
        peers: which of :data:`PEERS` to time where a case has them.
        seconds: measuring time a case aims at; it never lowers the rounds below ``minimum_rounds``.
        cold_bytes: the buffer sets of a contender together hold at least this much; by default twice the
            L2 of a card, and twice the CPU's last-level cache up to 256 MiB.
    """

    minimum_rounds = 10
    maximum_rounds = 50

    def __init__(
        self,
        device: torch.device,
        *,
        peers: tuple[str, ...] = (),
        seconds: float = 2.0,
        cold_bytes: int | None = None,
        peak_copy_bytes: int | None = None,
    ) -> None:
        self.device, self.peers, self.seconds = device, peers, seconds
        self._cuda = device.type == "cuda"
        self.cold_bytes = 2 * last_level_cache(device) if cold_bytes is None else cold_bytes
        self._clock = _CudaClock(device) if self._cuda else _CpuClock()
        self._peak_flops: dict[torch.dtype, float] = {}
        self.left_out: list[str] = []
        self.peak_copy = self._measure_peak_copy(peak_copy_bytes or (4096 if self._cuda else 512) * _MIB)

    def measure(self, case: Case) -> dict[str, object]:
        """Times of one case, as the measured fields of :class:`table.Row`.

        ``left_out`` then names the contenders that could not run, and why.
        """
        self.left_out = []
        # In the worst case every byte is counted twice, read and written in place.
        sets = max(1, min(_MAX_SETS, math.ceil(2 * self.cold_bytes / max(case.bytes, 1))))
        calls = [case.setup(self.device, self.peers) for _ in range(sets)]
        contenders = {"frugalore": [c.ours for c in calls], "copy": self._copies(case.bytes, sets)}
        if calls[0].reference is not None:
            contenders["reference"] = [c.reference for c in calls]
        for peer in calls[0].peers:
            contenders[peer] = [c.peers[peer] for c in calls]
        samples, rounds, host = self._interleave(contenders)
        states = calls[0].state_bytes() if calls[0].state_bytes else {}

        times = {name: statistics.median(values) for name, values in samples.items()}
        ours, peak_flops = times["frugalore"], None
        floor = case.bytes / self.peak_copy
        if case.flops:
            peak_flops = self._peak_matmul(case.flops_dtype)
            floor = max(floor, case.flops / peak_flops)
        result = {
            "rounds": rounds,
            "buffer_sets": sets,
            "median_us": ours * 1e6,
            "p20_us": quantile(samples["frugalore"], 0.2) * 1e6,
            "p80_us": quantile(samples["frugalore"], 0.8) * 1e6,
            "call_us": host["frugalore"] * 1e6 if self._cuda else None,
            "gb_s": case.bytes / ours * 1e-9,
            "copy_gb_s": case.bytes / times["copy"] * 1e-9,
            "share_of_copy": _paired_ratio(samples, "copy"),
            "peak_copy_gb_s": self.peak_copy * 1e-9,
            "peak_tflop_s": peak_flops and peak_flops * 1e-12,
            "share_of_roofline": floor / ours,
            "state_bytes": states.get("frugalore"),
        }
        for name in PEERS:
            result[f"{name}_state_bytes"] = states.get(name)
        for name in ("reference", *PEERS):
            result[f"{name}_us"] = times[name] * 1e6 if name in times else None
            result[f"ratio_{name}"] = _paired_ratio(samples, name) if name in times else None
        return result

    def _interleave(self, contenders: dict[str, list[Callable]]):
        """Samples per contender (seconds a call), rounds of the first, host seconds a call."""
        estimates, host, turn = {}, {}, dict.fromkeys(contenders, 0)
        for name, calls in list(contenders.items()):
            try:
                estimates[name], host[name] = self._warm_up(calls)
            except Exception as error:
                if name in ("frugalore", "copy"):
                    raise
                # A reference or a peer that does not run here costs its column, not the row.
                del contenders[name]
                why = (str(error).splitlines() or [""])[0]
                self.left_out.append(f"{name}: {type(error).__name__}: {why}")
        batches = {
            name: max(1, min(64, math.ceil(self._clock.batch_seconds / max(seconds, 1e-7))))
            for name, seconds in estimates.items()
        }
        a_round = sum(estimates[name] * batches[name] for name in contenders)
        rounds = max(self.minimum_rounds, min(self.maximum_rounds, int(self.seconds / max(a_round, 1e-7))))
        limits = {
            name: 1 if seconds > _VERY_SLOW else 3 if seconds > _SLOW else rounds
            for name, seconds in estimates.items()
        }
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        names = list(contenders)
        for index in range(rounds):
            for name in names if index % 2 == 0 else reversed(names):
                if index >= limits[name]:
                    continue
                calls, batch, first = contenders[name], batches[name], turn[name]
                picked = [calls[(first + i) % len(calls)] for i in range(batch)]
                turn[name] = (first + batch) % len(calls)
                samples[name].append(self._clock.sample(picked, host[name] * batch) / batch)
        return samples, limits["frugalore"], host

    def _warm_up(self, calls: list[Callable]) -> tuple[float, float]:
        """Seconds and host seconds a call, after every buffer set was called once.

        That first call pays for the allocator, lazy module loading, and the peers' state and compilation.
        """
        first = time.perf_counter()
        calls[0]()
        self._clock.synchronize()
        seconds = time.perf_counter() - first
        for call in calls[1:]:
            call()
        self._clock.synchronize()
        repeats = 1 if seconds > _SLOW else 3
        start = time.perf_counter()
        for _ in range(repeats):
            calls[0]()
        host = (time.perf_counter() - start) / repeats
        self._clock.synchronize()
        return (time.perf_counter() - start) / repeats, host

    def _copies(self, moved: int, sets: int) -> list[Callable]:
        size = max(1, moved // 2)

        def copy() -> Callable:
            source = torch.empty(size, dtype=torch.uint8, device=self.device).random_()
            target = torch.empty_like(source)
            return lambda: target.copy_(source)

        return [copy() for _ in range(sets)]

    def _measure_peak_copy(self, size: int) -> float:
        samples, _, _ = self._interleave({"frugalore": self._copies(2 * size, 1)})
        return 2 * size / statistics.median(samples["frugalore"])

    def _peak_matmul(self, dtype: torch.dtype) -> float:
        if dtype not in self._peak_flops:
            n = 8192 if self._cuda else 1024
            a, b = (torch.randn(n, n, device=self.device, dtype=dtype) for _ in range(2))
            out = torch.empty_like(a)
            samples, _, _ = self._interleave({"frugalore": [lambda: torch.mm(a, b, out=out)]})
            self._peak_flops[dtype] = 2 * n**3 / statistics.median(samples["frugalore"])
        return self._peak_flops[dtype]


def _paired_ratio(samples: dict[str, list[float]], name: str) -> float:
    return statistics.median(
        other / ours for other, ours in zip(samples[name], samples["frugalore"], strict=False)
    )


def last_level_cache(device: torch.device) -> int:
    """Bytes of the last cache before memory; a CPU's is capped at 128 MiB (servers share theirs)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * unit)
    return min(max(sizes) or 32 * _MIB, 128 * _MIB)
