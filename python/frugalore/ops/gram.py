"""The Gram matrix of the rows of a basis, for its Cholesky factor (:mod:`frugalore.ops.cholesky`).

Float32 rows whose lengths or directions span more than 1e4 have a Gram matrix that float32 cannot hold:
squaring doubles the digits needed. In float64 it holds them, and the products of floats are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frugalore import _C
from frugalore.ops._checks import check_matrix
from frugalore.ops._registry import define


def _gram(rows: Tensor) -> Tensor:
    r, n = rows.shape
    out = rows.new_empty((r, r), dtype=torch.float64)
    chunks = _C.gram_chunks(r, n) if rows.is_cuda else 0
    _C.gram(rows, out, out.new_empty(chunks * r * r))
    return out


_gram_op = define(
    "gram(Tensor rows) -> Tensor",
    _gram,
    lambda rows: rows.new_empty((rows.shape[0], rows.shape[0]), dtype=torch.float64),
)


@torch.no_grad()
def gram(rows: Tensor) -> Tensor:
    """The inner products of the rows of a matrix, ``rows @ rows.T``, in float64.

    Args:
        rows: ``[r, n]`` float32 with contiguous rows (any distance apart).

    Returns:
        ``[r, r]`` float64, symmetric to the bit. The order of the sums is fixed (``csrc/core/gram.h``), so
        instruction sets, thread counts and devices give the same bits. NaN and infinity propagate; n = 0
        gives zeros.

    Raises:
        TypeError: another dtype. ValueError: not a matrix, or rows that are not contiguous.
    """
    check_matrix("rows", rows, None)
    if rows.dtype != torch.float32:
        raise TypeError(f"rows: dtype float32 expected, got {rows.dtype}")
    if rows.numel() > 0 and rows.shape[1] > 1 and rows.stride(1) != 1:
        raise ValueError(
            f"rows: contiguous rows expected, got strides {rows.stride()} for shape {tuple(rows.shape)}"
        )
    return _gram_op(rows)
