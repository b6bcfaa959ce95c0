"""A matrix of any float dtype and any scale as a factor of products with thin float32 matrices."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from frugalore.ops.gemm import matmul

#: Bytes of the float32 copy of a panel of a bfloat16 or float16 matrix.
PANEL_BYTES = 1 << 24


def largest_magnitude(a: Tensor) -> Tensor:
    """max|a| as a float32 scalar on a's device; NaN if a has one.

    torch's infinity norm says the same, at a fiftieth of the speed on a CPU.
    """
    low, high = torch.aminmax(a)
    return torch.maximum(-low, high).float()


def float32_panels(a: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """``(begin, end, rows begin to end in float32)`` of a matrix; float32 itself is one panel, not copied."""
    m, n = a.shape
    step = m if a.dtype == torch.float32 else PANEL_BYTES // (4 * max(1, n))
    for begin in range(0, m, max(1, step)):
        end = min(begin + max(1, step), m)
        yield begin, end, a[begin:end].float()


class Scaled:
    """``a / max|a|``, of which no copy is made: bfloat16 and float16 become float32 in panels of rows.

    It stands for zeros where ``a`` is zero or has an element that is not finite. The divisor is at least
    2^-126, the smallest with a normal reciprocal; half of the scaling (a square root) comes before a product
    and half after, so neither end of float32's range is reached.
    """

    def __init__(self, a: Tensor):
        largest = largest_magnitude(a)
        self.unusable = ~largest.isfinite()
        self._a = a
        divisor = largest.clamp(min=torch.finfo(torch.float32).tiny)
        self._root = divisor.masked_fill(self.unusable, 1.0).rsqrt()
        #: The divisor, which singular values are multiplied by; NaN where ``a`` is not finite.
        self.scale = divisor.masked_fill(self.unusable, torch.nan)

    @property
    def shape(self) -> torch.Size:
        return self._a.shape

    def rows_times(self, x: Tensor) -> Tensor:
        """``x a`` for x ``[r, m]``: ``[r, n]``."""
        x = x * self._root
        total = None
        for begin, end, panel in float32_panels(self._a):
            part = matmul(x[:, begin:end], panel)
            total = part if total is None else total.add_(part)
        return self._finish(total)

    def rows_times_transposed(self, x: Tensor) -> Tensor:
        """``x aᵀ`` for x ``[r, n]``: ``[r, m]``."""
        x = x * self._root
        out = x.new_empty((x.shape[0], self._a.shape[0]))
        for begin, end, panel in float32_panels(self._a):
            matmul(x, panel.t(), out=out[:, begin:end])
        return self._finish(out)

    def _finish(self, product: Tensor) -> Tensor:
        return product.mul_(self._root).masked_fill_(self.unusable, 0.0)
