"""cholesky_inverse: the inverse factor of a shifted Gram matrix, and the orthonormal rows that it makes."""

from __future__ import annotations

import math

import pytest
import torch

from frugalore import _C, ops
from frugalore.reference import cholesky as reference

EPS = torch.finfo(torch.float32).eps
SIZES = [1, 2, 23, 24, 31, 32, 33, 48, 49, 64, 97, 130, 260]  # around the blocks and strips of every backend


def _gram(size, generator, decay=0.0):
    """A Gram matrix of random directions; its condition number is about 10^(2 decay)."""
    rows = torch.randn(size, 2 * size + 3, generator=generator, dtype=torch.float64)
    if decay:
        rows = torch.linalg.qr(rows.t()).Q.t()
        mix = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
        rows = mix @ (rows * torch.logspace(0, -decay, size, dtype=torch.float64)[:, None])
    return rows @ rows.t()


def _check_shape(result, size):
    assert result.inverse.shape == (size, size) and result.inverse.dtype == torch.float32
    assert result.pivots.shape == (size,) and result.pivots.dtype == torch.float64
    assert result.inverse.isfinite().all() and not result.inverse.triu(1).any()


@pytest.mark.parametrize("shift", [0.0, 1e-3])
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_torch(size, shift, device, generator):
    """To 1e-10 before the rounding to float32."""
    gram = _gram(size, generator)
    result = ops.cholesky_inverse(gram.to(device), shift)
    _check_shape(result, size)
    added = shift * gram.trace()
    identity = torch.eye(size, dtype=torch.float64)
    lower = torch.linalg.cholesky(gram + added * identity)
    exact = torch.linalg.solve_triangular(lower, identity, upper=False)
    error = (result.inverse.cpu().double() - exact).abs()
    assert (error <= EPS / 2 * exact.abs() + 1e-10 * exact.abs().max()).all()
    torch.testing.assert_close(
        result.pivots.cpu(), lower.diagonal() ** 2 - added, rtol=1e-10, atol=1e-10 * gram.trace().item()
    )


@pytest.mark.parametrize("size", [5, 49, 130])
def test_every_instruction_set_agrees_with_the_reference(size, isa, generator):
    gram = _gram(size, generator)
    result, expected = ops.cholesky_inverse(gram, 1e-12), reference.cholesky_inverse(gram, 1e-12)
    torch.testing.assert_close(result.inverse, expected[0], rtol=2 * EPS, atol=1e-10)
    torch.testing.assert_close(result.pivots, expected[1], rtol=1e-10, atol=1e-10)


def test_ill_conditioned_stays_backward_stable(device, generator):
    """Condition number 1e12: L Lᵀ reproduces the matrix, which an explicit inverse of a block would spoil."""
    gram = _gram(130, generator, decay=6.0)
    result = ops.cholesky_inverse(gram.to(device), 1e-14)
    inverse = result.inverse.cpu().double()
    error = inverse @ gram @ inverse.t() - torch.eye(130, dtype=torch.float64)
    # What rounding the inverse to float32 allows, and what the shift took from the last directions.
    assert error[:20, :20].abs().max() < 1e-5 and error.abs().max() < 0.2


def test_thread_count_does_not_matter(isa, generator):
    gram, threads = _gram(330, generator), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.cholesky_inverse(gram, 1e-13)
        for count in (2, 5):
            torch.set_num_threads(count)
            for a, b in zip(ops.cholesky_inverse(gram, 1e-13), one, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1.0, 1e10, 1e20])
def test_scale_of_the_rows(scale, device, generator):
    rows = torch.randn(70, 200, generator=generator)
    scaled = ops.cholesky_inverse(ops.gram((rows * scale).to(device)), 1e-14)
    plain = ops.cholesky_inverse(ops.gram(rows.to(device)), 1e-14)
    torch.testing.assert_close(scaled.inverse * scale, plain.inverse, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scaled.pivots / scale**2, plain.pivots, rtol=1e-4, atol=1e-6)


def test_rows_of_very_different_length(device, generator):
    """Without a shift the factorisation does not care how long each row is."""
    rows = torch.randn(60, 100, generator=generator) * torch.logspace(0, -12, 60)[:, None]
    rows = rows.to(device)
    result = ops.cholesky_inverse(ops.gram(rows), 0.0)
    product = result.inverse @ rows
    torch.testing.assert_close(product @ product.t(), torch.eye(60, device=device), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shift", [0.0, 1e-15])
@pytest.mark.parametrize("rank", [1, 3, 40])
def test_rank_deficient(rank, shift, device, generator):
    """Finite, and the rows that add nothing do not spoil the others."""
    left = torch.randn(130, rank, generator=generator)
    rows = (left @ torch.randn(rank, 300, generator=generator)).to(device)
    result = ops.cholesky_inverse(ops.gram(rows), shift)
    _check_shape(result, 130)
    product = (result.inverse @ rows)[:rank]
    torch.testing.assert_close(product @ product.t(), torch.eye(rank, device=device), rtol=0, atol=2e-3)
    assert (result.pivots[:rank] > 0).all()
    # The rest is the float32 rounding of the rows.
    assert result.pivots[rank:].abs().max() < 1e-11 * ops.gram(rows).trace()


def test_exactly_singular(device, generator):
    """Copies of one row, and rows of zeros."""
    rows = torch.randn(1, 40, generator=generator).repeat(100, 1)
    rows[::3] = 0.0
    result = ops.cholesky_inverse(ops.gram(rows.to(device)), 0.0)
    _check_shape(result, 100)
    product = result.inverse.cpu() @ rows
    assert (product.norm(dim=1) < 1.001).all() and abs(product[1].norm().item() - 1) < 1e-6


@pytest.mark.parametrize("rank", [7, 60])
def test_three_passes_make_rows_orthonormal(rank, device, generator):
    """Shifted Cholesky-QR of rows that span many orders of magnitude or are numerically dependent."""
    left = torch.randn(60, rank, generator=generator) * torch.logspace(0, -6, rank)
    rows = (left @ torch.randn(rank, 500, generator=generator)).to(device)
    rows = rows + 1e-7 * torch.randn(60, 500, generator=generator).to(device)
    for _ in range(3):
        rows = ops.cholesky_inverse(ops.gram(rows), 1e-14).inverse @ rows
    torch.testing.assert_close(rows @ rows.t(), torch.eye(60, device=device), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 33, 100])
def test_zeros_give_the_identity(size, device):
    result = ops.cholesky_inverse(torch.zeros(size, size, dtype=torch.float64, device=device), 1e-12)
    assert torch.equal(result.inverse.cpu(), torch.eye(size)) and not result.pivots.any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (99, 99), (60, 2)], ids=str)
def test_not_finite_gives_the_identity_and_pivots_nan(place, value, device, generator):
    gram = _gram(100, generator)
    gram[place] = value
    result = ops.cholesky_inverse(gram.to(device), 1e-12)
    assert torch.equal(result.inverse.cpu(), torch.eye(100)) and result.pivots.isnan().all()


@pytest.mark.parametrize("shift", [0.0, 1e-12])
def test_an_indefinite_matrix_gives_something_finite(shift, device, generator):
    gram = torch.randn(150, 150, generator=generator, dtype=torch.float64)
    gram.diagonal().abs_()
    _check_shape(ops.cholesky_inverse(gram.to(device), shift), 150)
    gram.fill_diagonal_(1e-300)
    _check_shape(ops.cholesky_inverse(gram.to(device), shift), 150)


def test_the_upper_triangle_is_not_read(device, generator):
    gram = _gram(70, generator)
    spoilt = gram.tril() + torch.full_like(gram, math.nan).triu(1).nan_to_num(nan=7.0)
    for a, b in zip(
        ops.cholesky_inverse(spoilt.to(device), 0.0),
        ops.cholesky_inverse(gram.to(device), 0.0),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_empty(device):
    _check_shape(ops.cholesky_inverse(torch.empty(0, 0, dtype=torch.float64, device=device), 0.0), 0)


GRAM = torch.eye(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("gram", "shift", "error", "message"),
    [
        ([[1.0]], 0.0, TypeError, "gram: a tensor expected, got list"),
        (GRAM[0], 0.0, ValueError, r"gram: a matrix expected, got shape \(3,\)"),
        (GRAM.float(), 0.0, TypeError, "gram: dtype float64 expected, got torch.float32"),
        (GRAM[:2], 0.0, ValueError, r"gram: a square matrix expected, got shape \(2, 3\)"),
        (torch.eye(6).double()[::2, ::2], 0.0, ValueError, "gram: a contiguous tensor expected"),
        (GRAM, -1e-9, ValueError, "shift: a finite number >= 0 expected, got -1e-09"),
        (GRAM, math.nan, ValueError, "shift: a finite number >= 0 expected, got nan"),
        (GRAM, math.inf, ValueError, "shift: a finite number >= 0 expected, got inf"),
    ],
    ids=str,
)
def test_bad_input_is_refused(gram, shift, error, message):
    with pytest.raises(error, match=message):
        ops.cholesky_inverse(gram, shift)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gram": GRAM.float()}, TypeError, "gram: dtype float64 expected, got float32"),
        ({"gram": GRAM[:2]}, ValueError, r"gram: a square matrix expected, got shape \(2, 3\)"),
        ({"inverse": GRAM.clone()}, TypeError, "inverse: dtype float32 expected, got float64"),
        ({"inverse": torch.ones(2, 3)}, ValueError, r"inverse: shape \(3, 3\) expected, got \(2, 3\)"),
        ({"pivots": torch.ones(2).double()}, ValueError, "pivots: .*3.* expected, got"),
        ({"pivots": torch.ones(3)}, TypeError, "pivots: dtype float64 expected, got float32"),
        ({"pivots": GRAM[0]}, ValueError, "pivots: memory of its own expected"),
        ({"workspace": GRAM[0].clone()}, ValueError, "workspace: .*0.* expected, got"),
    ],
    ids=str,
)
def test_bad_input_of_the_kernel_is_refused(change, error, message):
    good = {"gram": GRAM, "shift": 0.0, "inverse": torch.full((3, 3), 7.0)}
    good |= {"pivots": torch.full((3,), 7.0).double(), "workspace": torch.empty(0).double()}
    with pytest.raises(error, match=message):
        _C.cholesky_inverse(*(good | change).values())
    assert (good["inverse"] == 7).all() and (good["pivots"] == 7).all()


def test_opcheck(generator):
    torch.library.opcheck(torch.ops.frugalore.cholesky_inverse.default, (_gram(5, generator), 1e-12))
