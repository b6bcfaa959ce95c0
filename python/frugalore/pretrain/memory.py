"""Bytes: what a run's tensors take, and what AdamW and GaLore would take for the same shapes.

Computed columns, in float32 (4 bytes), for every trainable parameter of N elements:

    AdamW    weights 4 N     gradients 4 N     state 8 N                        basis 0
    GaLore   weights 4 N     gradients 4 N     state 8 r max(m, n)              basis 4 r min(m, n)

where GaLore's state and basis are those of a target matrix m x n with r = min(rank, m, n) (arXiv 2403.03507,
table 1); its other parameters are AdamW's.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

FLOAT = 4


@dataclass(frozen=True)
class Bytes:
    """What one way of training keeps, in bytes."""

    weights: int = 0
    gradients: int = 0
    state: int = 0  #: of the optimizer, without the basis
    basis: int = 0  #: of the gradient's subspace

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.state + self.basis

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(**{key: value + getattr(other, key) for key, value in asdict(self).items()})


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of the data, of every inner tensor for a subclass such as an INT8 weight."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(tensor_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def gradient_bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(tensor_bytes(p.grad) for p in parameters if p.grad is not None)


def measured(model: nn.Module, optimizer: torch.optim.Optimizer, gradients: int) -> Bytes:
    """From the tensors that are there. State whose key starts with ``basis`` is the basis."""
    basis = state = 0
    for entries in optimizer.state.values():
        for key, value in entries.items():
            size = _nested_bytes(value)
            if str(key).startswith("basis"):
                basis += size
            else:
                state += size
    return Bytes(sum(tensor_bytes(p) for p in model.parameters()), gradients, state, basis)


def _nested_bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return tensor_bytes(value)
    if isinstance(value, (list, tuple)):
        return sum(_nested_bytes(item) for item in value)
    if isinstance(value, dict):
        return sum(_nested_bytes(item) for item in value.values())
    return 0


def adamw_bytes(shapes: Sequence[tuple[int, ...]]) -> Bytes:
    """AdamW in float32, by the formula in the module's docstring."""
    elements = sum(_elements(shape) for shape in shapes)
    return Bytes(FLOAT * elements, FLOAT * elements, 2 * FLOAT * elements)


def galore_bytes(targets: Sequence[tuple[int, int]], others: Sequence[tuple[int, ...]], rank: int) -> Bytes:
    """GaLore with AdamW in float32, by the formula in the module's docstring."""
    total = adamw_bytes(others)
    for m, n in targets:
        r = min(rank, m, n)
        total += Bytes(FLOAT * m * n, FLOAT * m * n, 2 * FLOAT * r * max(m, n), FLOAT * r * min(m, n))
    return total


def resident() -> int:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak_resident() -> int:
    """The most that :func:`resident` has been."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def usage(device: torch.device) -> dict[str, int]:
    """What the process holds now and held at most, in bytes, on the device that trains."""
    if device.type == "cuda":
        return {
            "memory": torch.cuda.memory_allocated(device),
            "peak_memory": torch.cuda.max_memory_allocated(device),
        }
    now = resident()  # the kernel keeps the two in different counters, so the peak can lag a little
    return {"memory": now, "peak_memory": max(now, peak_resident())}


def _elements(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
