"""The inverse Cholesky factor of a shifted Gram matrix: rows become orthonormal by one small product.

``cholesky_inverse(gram(x), shift).inverse @ x`` has orthonormal rows that span those of ``x``, the first k of
them those of the first k. Where ``x`` is ill-conditioned or rank-deficient one pass falls short of that, and
three do it: shifted Cholesky-QR (Fukaya, Kannan, Nakatsukasa, Yamamoto & Yanagisawa, SIAM J. Sci. Comput.
42(1), 2020). All of it is products and small triangles, and nothing waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from frugalore import _C
from frugalore.ops._checks import check_matrix
from frugalore.ops._registry import define


class CholeskyInverse(NamedTuple):
    """``L⁻¹`` of ``gram + shift trace(gram) I = L Lᵀ``, and what each row adds."""

    inverse: Tensor  #: [r, r] float32, lower triangular, zeros above
    pivots: Tensor  #: [r] float64: the energy of row j orthogonal to the rows before it


def _cholesky_inverse(gram: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    size = gram.shape[0]
    inverse = gram.new_empty((size, size), dtype=torch.float32)
    pivots = gram.new_empty(size)
    workspace = gram.new_empty(_C.cholesky_workspace(size) if gram.is_cuda else 0)
    _C.cholesky_inverse(gram, shift, inverse, pivots, workspace)
    return inverse, pivots


_cholesky_inverse_op = define(
    "cholesky_inverse(Tensor gram, float shift) -> (Tensor, Tensor)",
    _cholesky_inverse,
    lambda gram, shift: (gram.new_empty(gram.shape, dtype=torch.float32), gram.new_empty(gram.shape[:1])),
)


@torch.no_grad()
def cholesky_inverse(gram: Tensor, shift: float) -> CholeskyInverse:
    """The inverse of the Cholesky factor of ``gram + shift trace(gram) I``.

    Args:
        gram: ``[r, r]`` float64, contiguous, positive semidefinite; the lower triangle is read.
        shift: added to the diagonal, relative to the trace; finite and not negative. Against rounding in the
            rows themselves choose it near the square of their relative error.

    Returns:
        :class:`CholeskyInverse`. ``pivots[j]`` is the diagonal of the Schur complement before the shift;
        rounding may leave it slightly negative. The inverse is computed in float64, then rounded. Repeatable,
        and independent of the number of threads.

        The inverse is always finite. A shifted pivot that is not above its rounding error,
        2^-52 r gram[j, j] + 2^-104 trace, is replaced by that and the column below it by zeros. A trace that
        is not positive gives the identity and the diagonal as pivots; an element (or trace, or shift times
        trace) that is not finite the identity and pivots NaN.

    Raises:
        TypeError: another dtype. ValueError: a shape, stride or shift that does not fit.
    """
    check_matrix("gram", gram, None)
    if gram.dtype != torch.float64:
        raise TypeError(f"gram: dtype float64 expected, got {gram.dtype}")
    if gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram: a square matrix expected, got shape {tuple(gram.shape)}")
    return CholeskyInverse(*_cholesky_inverse_op(gram, shift))
