"""Subspaces of the leading singular vectors: randomised SVD, and warm-started subspace iteration.

Halko, Martinsson & Tropp, "Finding structure with randomness", arXiv 0909.4061: algorithms 4.4 (randomised
subspace iteration) and 5.1 (direct SVD). Gradients are numerically low-rank, so a factorisation must survive
rank deficiency: Householder QR does, plain Cholesky-QR in float32 does not.

Input of any scale. Nothing here waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from frugalore.ops._checks import check_matrix, check_same_device
from frugalore.ops._options import seed_bits
from frugalore.ops._registry import define
from frugalore.ops.gemm import matmul
from frugalore.ops.projection import _check_side
from frugalore.ops.sketch import rademacher_


class SVD(NamedTuple):
    """``a ~ u @ diag(s) @ vh``."""

    u: Tensor  #: [m, rank], orthonormal columns
    s: Tensor  #: [rank], descending
    vh: Tensor  #: [rank, n], orthonormal rows


def _check_rank(rank: int, shape: tuple[int, ...]) -> None:
    if not 0 < rank <= min(shape):
        raise ValueError(f"rank: 1 to {min(shape)} expected for shape {tuple(shape)}, got {rank}")


def largest_magnitude(a: Tensor) -> Tensor:
    """max|a| as a float32 scalar on a's device; NaN if a has one.

    torch's infinity norm says the same, at a fiftieth of the speed on a CPU.
    """
    low, high = torch.aminmax(a)
    return torch.maximum(-low, high).float()


class _Scaled:
    """``a / max|a|`` as a factor of products with thin matrices: no copy of ``a`` is made.

    It stands for zeros where ``a`` is zero or has an element that is not finite. Half of the scaling (a
    square root) comes before a product and half after, so neither end of float32's range is reached.
    """

    def __init__(self, a: Tensor):
        self.largest = largest_magnitude(a)
        self._a = a.float()
        self._unusable = ~self.largest.isfinite()
        divisor = self.largest.clamp(min=torch.finfo(torch.float32).tiny).masked_fill(self._unusable, 1.0)
        self._root = divisor.rsqrt()

    def times(self, x: Tensor) -> Tensor:
        return self._product(self._a, x)

    def transposed_times(self, x: Tensor) -> Tensor:
        return self._product(self._a.t(), x)

    def _product(self, a: Tensor, x: Tensor) -> Tensor:
        return matmul(a, x * self._root).mul_(self._root).masked_fill_(self._unusable, 0.0)


def _orthonormal(y: Tensor) -> Tensor:
    return torch.linalg.qr(y).Q


def _fix_signs(vectors: Tensor) -> Tensor:
    """+1 or -1 for each row, so that its entry of largest magnitude becomes positive: an SVD leaves the sign
    open, and one convention makes results comparable."""
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0)


def _randomized_svd(
    a: Tensor, rank: int, n_iter: int, oversample: int, seed: int, tensor_id: int, period: int
) -> tuple[Tensor, Tensor, Tensor]:
    tall = _Scaled(a if a.shape[0] >= a.shape[1] else a.t())  # [long, short]
    short = min(a.shape)
    width = min(rank + oversample, short)
    sketch = rademacher_(
        a.new_empty((short, width), dtype=torch.float32), seed=seed, tensor_id=tensor_id, period=period
    )
    q = _orthonormal(tall.times(sketch))  # [long, width]
    for _ in range(n_iter):
        q = _orthonormal(tall.times(_orthonormal(tall.transposed_times(q))))
    # Rayleigh-Ritz: the SVD of the small matrix Qᵀ A through its Gram matrix in float64.
    b = tall.transposed_times(q).double()  # [short, width]
    values, vectors = torch.linalg.eigh(b.t() @ b)  # ascending
    s = values.clamp(min=0).sqrt().flip(0)[:rank]
    vectors = vectors.flip(1)[:, :rank]
    left = (q.double() @ vectors).float()  # [long, rank]
    # Orthonormal also where s vanishes, which division by s would not be.
    right, triangle = torch.linalg.qr(b @ vectors)
    right = (right * torch.where(triangle.diagonal() < 0, -1.0, 1.0)).float()  # [short, rank]
    signs = _fix_signs(right.t())
    left, right = left * signs.t(), right * signs.t()
    u, v = (left, right) if a.shape[0] >= a.shape[1] else (right, left)
    return u.contiguous(), s.float() * tall.largest, v.t().contiguous()


def _randomized_svd_empty(a, rank, n_iter, oversample, seed, tensor_id, period):
    def empty(*shape):
        return a.new_empty(shape, dtype=torch.float32)

    return empty(a.shape[0], rank), empty(rank), empty(rank, a.shape[1])


_randomized_svd_op = define(
    "randomized_svd(Tensor a, int rank, int n_iter, int oversample, int seed, int tensor_id, int period) "
    "-> (Tensor, Tensor, Tensor)",
    _randomized_svd,
    _randomized_svd_empty,
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
        a: ``[m, n]`` float32, bfloat16 or float16; computed in float32. A matrix with a NaN or infinite
            element gives the vectors of a zero matrix and singular values NaN.
        rank: 1 to min(m, n).
        n_iter: passes ``A Aᵀ`` over the sketch. On gradients one captures at least 0.998 of the energy that
            the exact SVD captures; on Gaussian noise, the worst case, two capture about 0.9.
        oversample: columns of the sketch beyond ``rank``.
        seed, tensor_id, period: of the sketch's random signs; the result is a function of them and of ``a``.

    Returns:
        :class:`SVD` in float32. Signs: the entry of largest magnitude of each vector on the short side is
        positive. Singular values below about 1e-7 of the largest are not resolved.
    """
    check_matrix("a", a)
    _check_rank(rank, a.shape)
    if n_iter < 0 or oversample < 0:
        raise ValueError(f"n_iter and oversample: zero or more expected, got {n_iter} and {oversample}")
    return SVD(*_randomized_svd_op(a, rank, n_iter, oversample, seed_bits(seed), tensor_id, period))


def _subspace_iterate(a: Tensor, basis: Tensor, side: str, n_iter: int) -> Tensor:
    tall = _Scaled(a if side == "right" else a.t())  # basis vectors live on its columns' side
    q = basis.float().t()  # [length, rank]
    for _ in range(n_iter):
        q = _orthonormal(tall.transposed_times(tall.times(q)))
    # Rayleigh-Ritz orders the vectors: within the subspace they become the singular ones.
    image = tall.times(q).double()
    _, vectors = torch.linalg.eigh(image.t() @ image)
    rows = (q.double() @ vectors.flip(1)).float().t()
    along_old = (rows * basis.float()).sum(dim=1, keepdim=True)
    return (rows * torch.where(along_old < 0, -1.0, 1.0)).contiguous()


_subspace_iterate_op = define(
    "subspace_iterate(Tensor a, Tensor basis, str side, int n_iter) -> Tensor",
    _subspace_iterate,
    lambda a, basis, side, n_iter: basis.new_empty(basis.shape, dtype=torch.float32),
)


@torch.no_grad()
def subspace_iterate(a: Tensor, basis: Tensor, n_iter: int = 1, *, side: str | None = None) -> Tensor:
    """Turn an old basis towards the leading singular vectors of ``a``: the warm start of a refresh.

    Args:
        a: ``[m, n]`` float32, bfloat16 or float16. One with a NaN or infinite element counts as zeros.
        basis: ``[rank, n]`` (right) or ``[rank, m]`` (left), float; it need not be orthonormal.
        n_iter: passes ``AᵀA`` over the basis, at least 1.
        side: "right" or "left"; default: the short side of ``a``.

    Returns:
        float32 ``[rank, length]``, orthonormal rows, ordered by singular value; each points to the same side
        as the row of the old basis that it replaces.
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
    return _subspace_iterate_op(a, basis, side, n_iter)
