"""The Gram matrix of rows (specification, within the tolerance of its sums): :mod:`frugalore.ops.gram`."""

from __future__ import annotations

from torch import Tensor


def gram(rows: Tensor) -> Tensor:
    return rows.double() @ rows.double().t()
