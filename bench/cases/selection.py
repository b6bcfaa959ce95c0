"""select: a choice of columns or rows. The peer of the reference's sort is torch.randperm."""

from __future__ import annotations

import torch

from cases import shapes
from frugalore import ops
from frugalore.reference import selection as reference
from harness import Calls, Case


def _select(n: int, density: float):
    k = round(n * density)
    options = {"seed": 1, "tensor_id": 3, "period": 2}

    def permutation(device):
        below = torch.zeros(n + 1, dtype=torch.int32, device=device)

        def call():
            chosen = torch.randperm(n, device=device)[:k].sort().values
            below.zero_()[chosen + 1] = 1
            return below.cumsum(0, dtype=torch.int32), chosen.to(torch.int32)

        return call

    def setup(device, peers) -> Calls:
        return Calls(
            lambda: ops.select(n, k, **options, device=device),
            lambda: reference.select(n, k, **options),
            {"torch": permutation(device)} if "torch" in peers else {},
        )

    # below and chosen written.
    return Case("select", f"{k} of {n}", "i32", 4 * (n + 1 + k), setup)


def cases(size: str) -> list[Case]:
    lengths = [shape[1] for shape in shapes.SMALL]
    if size == "full":
        # The columns of a 7B model, and a length that fills the caches.
        lengths += [4096, 11008, 1 << 22]
    return [_select(n, 0.25) for n in lengths]
