"""gram: the Gram matrix of the rows of a basis, in float64. One triangle is counted: r (r + 1) n flops."""

from __future__ import annotations

import torch

from cases import shapes
from frugalore import ops
from frugalore.reference import gram as reference
from harness import Calls, Case


def _gram(r, n):
    def setup(device, peers) -> Calls:
        rows = shapes.normal((r, n), device)
        return Calls(lambda: ops.gram(rows), lambda: reference.gram(rows))

    moved = 4 * r * n + 8 * r * r
    return Case("gram", shapes.name((r, n)), "f32", moved, setup, r * (r + 1) * n, torch.float64)


def cases(size: str) -> list[Case]:
    if size == "small":
        return [_gram(8, 256), _gram(33, 1000)]
    return [_gram(136, 1024), _gram(128, 4096), _gram(1032, 4096), _gram(1032, 11008)]
