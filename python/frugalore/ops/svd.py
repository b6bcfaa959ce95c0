"""Subspaces of the leading singular vectors: randomised and truncated SVD, warm-started subspace iteration.

Halko, Martinsson & Tropp, "Finding structure with randomness", arXiv 0909.4061: algorithms 4.4 (randomised
subspace iteration) and 5.1 (direct SVD). Vectors are kept as rows, as a basis is stored.

Input of any scale; bfloat16 and float16 are multiplied in float32. Nothing here waits for the device, except
for ``torch.linalg.eigh`` on a card.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from frugalore.ops._checks import check_matrix, check_same_device
from frugalore.ops._options import seed_bits
from frugalore.ops._registry import define
from frugalore.ops.gemm import matmul
from frugalore.ops.gram import gram
from frugalore.ops.orthonormal import orthonormal_rows
from frugalore.ops.projection import _check_side
from frugalore.ops.scaled import Scaled
from frugalore.ops.sketch import rademacher_


class SVD(NamedTuple):
    """``a ~ u @ diag(s) @ vh``."""

    u: Tensor  #: [m, rank], orthonormal columns
    s: Tensor  #: [rank], descending
    vh: Tensor  #: [rank, n], orthonormal rows


def _check_rank(rank: int, shape: tuple[int, ...]) -> None:
    if not 0 < rank <= min(shape):
        raise ValueError(f"rank: 1 to {min(shape)} expected for shape {tuple(shape)}, got {rank}")


def _leading(square: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Of a symmetric matrix the leading eigenvalues, descending, and their vectors as rows. float64."""
    values, vectors = torch.linalg.eigh(square)
    return values.flip(0)[:rank], vectors.flip(1)[:, :rank].t()


def _fixed_signs(vectors: Tensor) -> Tensor:
    """+1 or -1 for each row, so that its entry of largest magnitude becomes positive: an SVD leaves the sign
    open, and one convention makes results comparable."""
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0)


def _as_svd(tall: bool, long: Tensor, short: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From vectors as rows on the long and on the short side to u, s, vh with the signs of the convention."""
    signs = _fixed_signs(short)
    long, short = long * signs, short * signs
    u, vh = (long, short) if tall else (short, long)
    return u.t().contiguous(), s, vh.contiguous()


def _svd_empty(a: Tensor, rank: int, *_) -> tuple[Tensor, Tensor, Tensor]:
    def empty(*shape):
        return a.new_empty(shape, dtype=torch.float32)

    return empty(a.shape[0], rank), empty(rank), empty(rank, a.shape[1])


# ---- randomised -----------------------------------------------------------------------------------------


def _randomized_svd(
    a: Tensor, rank: int, n_iter: int, oversample: int, seed: int, tensor_id: int, period: int
) -> tuple[Tensor, Tensor, Tensor]:
    is_tall = a.shape[0] >= a.shape[1]
    scaled = Scaled(a)
    to_long, to_short = scaled.rows_times_transposed, scaled.rows_times
    if not is_tall:
        to_long, to_short = to_short, to_long
    short = min(a.shape)
    width = min(rank + oversample, short)
    sketch = a.new_empty((width, short), dtype=torch.float32)
    long_rows = to_long(rademacher_(sketch, seed=seed, tensor_id=tensor_id, period=period))
    for _ in range(n_iter):
        short_rows = orthonormal_rows(to_short(orthonormal_rows(long_rows, 1).rows), 1).rows
        long_rows = to_long(short_rows)
    long_rows = orthonormal_rows(long_rows).rows
    # Rayleigh-Ritz: the SVD of the small matrix Q A through its Gram matrix in float64.
    b = to_short(long_rows)  # [width, short]
    values, mix = _leading(gram(b), rank)
    s = values.clamp(min=0).sqrt().float() * scaled.scale
    mix = mix.float()
    return _as_svd(is_tall, matmul(mix, long_rows), orthonormal_rows(matmul(mix, b)).rows, s)


_randomized_svd_op = define(
    "randomized_svd(Tensor a, int rank, int n_iter, int oversample, int seed, int tensor_id, int period) "
    "-> (Tensor, Tensor, Tensor)",
    _randomized_svd,
    _svd_empty,
)


@torch.no_grad()
def randomized_svd(
    a: Tensor,
    rank: int,
    n_iter: int = 2,
    oversample: int = 8,
    *,
    seed: int = 0,
    tensor_id: int = 0,
    period: int = 0,
) -> SVD:
    """The leading ``rank`` singular triplets, by a random sketch and ``n_iter`` power iterations.

    Args:
        a: ``[m, n]`` float32, bfloat16 or float16; multiplied in float32. A matrix with a NaN or infinite
            element gives the vectors of a zero matrix and singular values NaN.
        rank: 1 to min(m, n).
        n_iter: passes ``A Aᵀ`` over the sketch. On gradients one captures at least 0.998 of the energy that
            the exact SVD captures; on Gaussian noise, the worst case, two capture about 0.9.
        oversample: columns of the sketch beyond ``rank``.
        seed, tensor_id, period: of the sketch's random signs; the result is a function of them and of ``a``.

    Returns:
        :class:`SVD` in float32. Signs: the entry of largest magnitude of each vector on the short side is
        positive. Singular values below about 1e-7 of the largest are not resolved; their vectors are still
        orthonormal.
    """
    check_matrix("a", a)
    _check_rank(rank, a.shape)
    if n_iter < 0 or oversample < 0:
        raise ValueError(f"n_iter and oversample: zero or more expected, got {n_iter} and {oversample}")
    return SVD(*_randomized_svd_op(a, rank, n_iter, oversample, seed_bits(seed), tensor_id, period))


# ---- truncated ------------------------------------------------------------------------------------------


def _truncated_svd(a: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    is_tall = a.shape[0] >= a.shape[1]
    scaled = Scaled(a)
    # Rows of the short side; the products of float32 numbers are exact in the float64 Gram matrix.
    rows = (a.t() if is_tall else a).float().contiguous()
    square = gram(rows).div_(scaled.scale.double().square()).masked_fill_(scaled.unusable, 0.0)
    values, vectors = _leading(square, rank)
    short = vectors.float()
    to_long = scaled.rows_times_transposed if is_tall else scaled.rows_times
    long = orthonormal_rows(to_long(short)).rows
    s = (values.clamp(min=0).sqrt() * scaled.scale).float()
    return _as_svd(is_tall, long, orthonormal_rows(short).rows, s)


_truncated_svd_op = define(
    "truncated_svd(Tensor a, int rank) -> (Tensor, Tensor, Tensor)", _truncated_svd, _svd_empty
)


@torch.no_grad()
def truncated_svd(a: Tensor, rank: int) -> SVD:
    """The leading ``rank`` singular triplets, exact to the working precision of float32.

    Method: the eigenvectors of the short side's Gram matrix, made and decomposed in float64. The products in
    it are exact, so squaring costs nothing down to 1e-8 of the largest singular value, below what float32
    holds.

    Args:
        a: as in :func:`randomized_svd`.
        rank: 1 to min(m, n).

    Returns:
        :class:`SVD` in float32, signs as in :func:`randomized_svd`. Singular values are right to 1e-6 of the
        largest one; vectors are orthonormal, and those of values below 1e-7 of it are arbitrary.
    """
    check_matrix("a", a)
    _check_rank(rank, a.shape)
    return SVD(*_truncated_svd_op(a, rank))


# ---- warm start -----------------------------------------------------------------------------------------


def _subspace_iterate(a: Tensor, basis: Tensor, side: str, n_iter: int, rank: int) -> Tensor:
    scaled = Scaled(a)
    forth, back = scaled.rows_times_transposed, scaled.rows_times
    if side == "left":
        forth, back = back, forth
    start = basis.float()
    rows = start
    for number in range(n_iter):
        begin = rows
        rows, residual = orthonormal_rows(back(forth(begin)), 3 if number == n_iter - 1 else 1)
    # The last pass AᵀA took row q to y; x is the new direction of y. sqrt(energy of x under AᵀA) is what the
    # power method says: <x, AᵀA q> / <x, q>. The rows of the greatest energy stay, in their order.
    along = (rows * begin).sum(dim=1)
    if rank < rows.shape[0]:
        energy = residual / along.abs().double().clamp(min=1e-3)
        kept = energy.topk(rank).indices.sort().values
        rows, start = rows[kept], start[kept]
    signs = torch.where((rows * start).sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    return rows * signs


_subspace_iterate_op = define(
    "subspace_iterate(Tensor a, Tensor basis, str side, int n_iter, int rank) -> Tensor",
    _subspace_iterate,
    lambda a, basis, side, n_iter, rank: basis.new_empty((rank, basis.shape[1]), dtype=torch.float32),
)


@torch.no_grad()
def subspace_iterate(
    a: Tensor, basis: Tensor, n_iter: int = 1, *, side: str | None = None, rank: int | None = None
) -> Tensor:
    """Turn an old basis towards the leading singular vectors of ``a``: the warm start of a refresh.

    Ordered QR iteration, ``Q <- qr(AᵀA Q)``, without an eigenproblem: the span of the first k rows follows
    the leading k singular vectors, for every k at once, so repeated refreshes converge to the vectors
    themselves in their order.

    Args:
        a: ``[m, n]`` float32, bfloat16 or float16. One with a NaN or infinite element counts as zeros.
        basis: ``[rows, n]`` (right) or ``[rows, m]`` (left), float; it need not be orthonormal.
        n_iter: passes ``AᵀA`` over the basis, at least 1.
        side: "right" or "left"; default: the short side of ``a``.
        rank: how many rows to keep, those of the greatest energy; default: all. The rest of the basis, random
            directions at its end, say, then competes for a place.

    Returns:
        float32 ``[rank, length]``, orthonormal rows; each points to the same side as the row of the old basis
        that it comes from.
    """
    check_matrix("a", a)
    check_matrix("basis", basis)
    side = side or ("right" if a.shape[0] >= a.shape[1] else "left")
    _check_side(side)
    length = a.shape[1] if side == "right" else a.shape[0]
    if basis.shape[1] != length:
        raise ValueError(
            f"basis: shape ('rank', {length}) expected for a {tuple(a.shape)} and side {side!r}, "
            f"got {tuple(basis.shape)}"
        )
    check_same_device("basis", basis, a.device)
    if basis.shape[0] > length:
        raise ValueError(f"basis: at most {length} rows expected, got {basis.shape[0]}")
    if n_iter < 1:
        raise ValueError(f"n_iter: one or more expected, got {n_iter}")
    rank = basis.shape[0] if rank is None else rank
    if not 0 < rank <= basis.shape[0]:
        raise ValueError(f"rank: 1 to {basis.shape[0]} expected for the basis, got {rank}")
    return _subspace_iterate_op(a, basis, side, n_iter, rank)
