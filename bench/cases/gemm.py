"""gemm: csrc's float32 product on a CPU, at the shapes of a projection, a sketch and a back-projection.

The peers are ``torch.mm`` and numpy's product, the latter with the number of threads that its BLAS chooses
(``OPENBLAS_NUM_THREADS`` sets it). The reference is float64, so it is not timed.
"""

from __future__ import annotations

import torch

from cases import shapes
from frugalore.ops.gemm import own_gemm
from harness import Calls, Case


def _numpy(a, b, out):
    try:
        import numpy
    except ImportError:
        return {}
    left, right, target = a.numpy(), b.numpy(), out.numpy()
    return {"numpy": lambda: numpy.matmul(left, right, out=target)}


def _case(label, m, k, n, setup):
    return Case(
        "gemm",
        label,
        shapes.DTYPES[torch.float32],
        4 * (m * k + k * n + m * n),
        setup,
        flops=2 * m * k * n,
        devices=("cpu",),
    )


def _gemm(m, k, n, a_transposed=False, b_transposed=False):
    def setup(device, peers) -> Calls:
        a = shapes.normal((k, m), device).t() if a_transposed else shapes.normal((m, k), device)
        b = shapes.normal((n, k), device).t() if b_transposed else shapes.normal((k, n), device)
        out = torch.empty(m, n, device=device)
        others = {"torch": lambda: torch.mm(a, b, out=out)} if "torch" in peers else {}
        if "numpy" in peers:
            others |= _numpy(a, b, out)
        return Calls(lambda: own_gemm(a, b, out), peers=others)

    return _case(f"{m}x{k}{'t' * a_transposed} by {k}x{n}{'t' * b_transposed}", m, k, n, setup)


def cases(size: str) -> list[Case]:
    if size == "small":
        return [_gemm(64, 256, 8), _gemm(130, 70, 33, b_transposed=True)]
    return [
        _gemm(1024, 1024, 128, b_transposed=True),  # project, right
        _gemm(128, 1024, 2736),  # project, left
        _gemm(4096, 4096, 136),  # sketch of randomized_svd
        _gemm(4096, 4096, 136, a_transposed=True),  # its way back
        _gemm(4096, 4096, 1024, b_transposed=True),  # project at the rank of the 7B runs
        _gemm(512, 128, 1024),  # a panel of project_back_update_
        _gemm(47, 1024, 11008, a_transposed=True),
    ]
