"""cholesky_inverse: r^3 / 3 flops for the factor and as many for its inverse, all in float64.

The peer is torch's factor and triangular solve, without the handling of singular matrices.
"""

from __future__ import annotations

import torch

from cases import shapes
from frugalore import ops
from harness import Calls, Case

_SHIFT = 1e-12


def _case(r):
    def setup(device, peers) -> Calls:
        gram = ops.gram(shapes.normal((r, 2 * r), device))
        identity = torch.eye(r, dtype=torch.float64, device=device)

        def torch_inverse():
            lower, _ = torch.linalg.cholesky_ex(gram + _SHIFT * gram.trace() * identity)
            return torch.linalg.solve_triangular(lower, identity, upper=False).float(), lower.diagonal() ** 2

        others = {"torch": torch_inverse} if "torch" in peers else {}
        return Calls(lambda: ops.cholesky_inverse(gram, _SHIFT), peers=others)

    moved = 8 * r * r + 4 * r * r + 8 * r
    return Case("cholesky_inverse", shapes.name((r, r)), "f64", moved, setup, 2 * r**3 // 3, torch.float64)


def cases(size: str) -> list[Case]:
    return [_case(r) for r in ((8, 70) if size == "small" else (136, 264, 520, 1032))]
