"""randomized_svd and subspace_iterate against the full SVD that GaLore takes at a refresh.

The reference is ``torch.linalg.svd``; the peer is ``torch.svd_lowrank`` with as many iterations. The matrix
has the decaying spectrum of a gradient: ``normal @ diag(1/k) @ normal`` and a little noise.
"""

from __future__ import annotations

import torch

from cases import shapes
from frugalore import ops
from harness import Calls, Case

_ITERATIONS, _OVERSAMPLE = 2, 8


def _gradient(shape, device):
    short = min(shape)
    decay = 1.0 / torch.arange(1, short + 1, device=device)
    left, right = torch.randn(shape[0], short, device=device), torch.randn(short, shape[1], device=device)
    return (left * decay) @ right * 1e-3 + shapes.normal(shape, device, std=1e-5)


def _case(op, shape, rank, moved, flops, setup, devices):
    label = f"{shapes.name(shape)} rank {rank}"
    return Case(op, label, "f32", moved, setup, flops=flops, devices=devices)


def _randomized(shape, rank, devices):
    width = min(rank + _OVERSAMPLE, *shape)

    def setup(device, peers) -> Calls:
        a = _gradient(shape, device)
        others = {"torch": lambda: torch.svd_lowrank(a, q=width, niter=_ITERATIONS)}
        return Calls(
            lambda: ops.randomized_svd(a, rank, n_iter=_ITERATIONS, oversample=_OVERSAMPLE),
            lambda: torch.linalg.svd(a, full_matrices=False),
            others if "torch" in peers else {},
        )

    # The matrix read once for the sketch, twice an iteration and once for the small matrix.
    passes = 2 + 2 * _ITERATIONS
    moved = passes * shape[0] * shape[1] * 4 + rank * (sum(shape) + 1) * 4
    flops = passes * 2 * shape[0] * shape[1] * width
    return _case("randomized_svd", shape, rank, moved, flops, setup, devices)


def _iterate(shape, rank, devices):
    def setup(device, peers) -> Calls:
        a = _gradient(shape, device)
        svd = ops.randomized_svd(a, rank)
        basis = (svd.vh if shape[0] >= shape[1] else svd.u.t()).contiguous()
        return Calls(
            lambda: ops.subspace_iterate(a, basis),
            lambda: torch.linalg.svd(a, full_matrices=False),
        )

    # The matrix read twice for the iteration and once to order the vectors; the basis read and written.
    moved = 3 * shape[0] * shape[1] * 4 + 2 * rank * min(shape) * 4
    flops = 3 * 2 * shape[0] * shape[1] * rank
    return _case("subspace_iterate", shape, rank, moved, flops, setup, devices)


def cases(size: str) -> list[Case]:
    both, card = ("cpu", "cuda"), ("cuda",)
    if size == "small":
        chosen = (((64, 256), 8, both),)
    else:
        chosen = (((1024, 1024), 128, both), (shapes.ATTENTION, 1024, card), (shapes.GATE, 1024, card))
    return [make(*arguments) for make in (_randomized, _iterate) for arguments in chosen]
