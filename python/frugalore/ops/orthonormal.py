"""Orthonormal rows by shifted Cholesky-QR: products and small triangles, no branch, no wait for the device.

Gradients are numerically low-rank, and products with their squares more so: plain Cholesky-QR in float32
fails on them. Here the Gram matrix and its factor are float64 and the factorisation is shifted (Fukaya,
Kannan, Nakatsukasa, Yamamoto & Yanagisawa, SIAM J. Sci. Comput. 42(1), 2020); a second pass removes what the
shift left, a third what rounding left.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from frugalore.ops.cholesky import cholesky_inverse
from frugalore.ops.gemm import matmul
from frugalore.ops.gram import gram
from frugalore.ops.sketch import rademacher_

#: Relative to the trace. A direction below the square root of it is damped by the first pass only.
_SHIFT = 1e-15

#: Rows are exact to about this part of their largest element; so much noise is added to them.
_ROUNDING = 2.0**-24


class OrthonormalRows(NamedTuple):
    """Rows that span what was given, and how much of each was new."""

    rows: Tensor  #: float32, orthonormal; the first k span the first k that were given
    residual: Tensor  #: float64: the length of each given row orthogonal to the rows before it


def orthonormal_rows(x: Tensor, passes: int = 3) -> OrthonormalRows:
    """Orthonormalise the rows of ``x`` in their order (the Q of a QR factorisation of ``xᵀ``, with a positive
    diagonal of R).

    Args:
        x: float32 ``[r, length]``, ``r <= length``, finite; overwritten. Of any scale, also row by row.
        passes: three give orthonormality to 1e-5 and better for any ``x``; one leaves a well-conditioned
            basis of the span, enough between two power iterations.

    A row that depends on the ones before it, or is zero, becomes some direction orthogonal to them: random
    signs at the level of float32's rounding are added to all rows, and they are what is left of such a row.
    """
    largest = torch.maximum(x.amax(dim=1, keepdim=True), -x.amin(dim=1, keepdim=True))
    is_zero = largest == 0
    noise = rademacher_(torch.empty_like(x), seed=0, tensor_id=0, period=0)
    # Reciprocals of subnormal numbers are infinite.
    largest.clamp_(min=2.0**-126)
    x = x.div_(largest).addcmul_(noise, torch.where(is_zero, 1.0, _ROUNDING))
    residual = None
    for number in range(passes):
        factor = cholesky_inverse(gram(x), _SHIFT if number == 0 else 0.0)
        if residual is None:
            lengths = factor.pivots.clamp(min=0).sqrt() * largest[:, 0]
            residual = torch.where(is_zero[:, 0], 0.0, lengths)
        x, noise = matmul(factor.inverse, x, out=noise), x
    return OrthonormalRows(x, residual)
