"""The matrix product (specification, within the tolerance of its sums). See :mod:`frugalore.ops.gemm`."""

from __future__ import annotations

from torch import Tensor


def gemm(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    product = (a.double() @ b.double()).to(a.dtype)
    return product if out is None else out.copy_(product)
