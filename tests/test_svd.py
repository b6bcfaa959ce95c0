"""randomized_svd, truncated_svd and subspace_iterate."""

from __future__ import annotations

import pytest
import torch

import frugalore.ops.scaled
from frugalore import ops


def _low_rank(m, n, rank, generator, decay=0.7):
    """A matrix whose singular values fall by `decay` each, with exactly `rank` of them."""
    u = torch.linalg.qr(torch.randn(m, rank, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(n, rank, generator=generator)).Q
    return u @ torch.diag(decay ** torch.arange(rank)) @ v.t()


def _orthonormality(rows):
    return (rows @ rows.t() - torch.eye(rows.shape[0], device=rows.device)).abs().max().item()


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (50, 50), (1, 9), (9, 1)], ids=str)
def test_randomized_svd_finds_the_leading_triplets(shape, device, generator):
    rank = min(8, *shape)
    a = _low_rank(*shape, min(12, *shape), generator).to(device)
    u, s, vh = ops.randomized_svd(a, rank)
    exact = torch.linalg.svdvals(a)[:rank]
    assert torch.allclose(s, exact, rtol=1e-3, atol=1e-6)
    assert _orthonormality(u.t()) < 1e-5 and _orthonormality(vh) < 1e-5
    best = exact.square().sum() / a.square().sum()
    assert (u.t() @ a).square().sum() / a.square().sum() >= 0.999 * best
    assert (a @ vh.t()).square().sum() / a.square().sum() >= 0.999 * best
    assert torch.allclose(u.t() @ a, s[:, None] * vh, atol=2e-3)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_scale_gives_the_same_subspace(scale, dtype, device, generator):
    a = _low_rank(48, 32, 10, generator).to(dtype)
    expected = ops.randomized_svd(a.to(device), 4)
    result = ops.randomized_svd((a * scale).to(device), 4)
    assert torch.allclose(result.vh.abs(), expected.vh.abs(), atol=2e-2)
    assert torch.allclose(result.s / scale, expected.s, rtol=1e-2)


def test_zeros_and_rank_deficiency_give_an_orthonormal_basis(device, generator):
    for a in (torch.zeros(30, 20), torch.ones(30, 20), _low_rank(30, 20, 2, generator)):
        svd = ops.randomized_svd(a.to(device), 6)
        assert svd.s.isfinite().all()
        assert _orthonormality(svd.vh) < 1e-5 and _orthonormality(svd.u.t()) < 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_non_finite_matrix_gives_finite_vectors(bad, device, generator):
    a = torch.randn(30, 20, generator=generator)
    a[3, 4] = bad
    svd = ops.randomized_svd(a.to(device), 6)
    assert _orthonormality(svd.vh) < 1e-5 and _orthonormality(svd.u.t()) < 1e-5
    assert svd.s.isnan().all()
    assert _orthonormality(ops.subspace_iterate(a.to(device), svd.vh)) < 1e-5


def test_the_sketch_is_a_function_of_its_key(generator):
    a = torch.randn(40, 30, generator=generator)
    assert torch.equal(ops.randomized_svd(a, 4, seed=1).vh, ops.randomized_svd(a, 4, seed=1).vh)
    assert not torch.equal(ops.randomized_svd(a, 4, seed=1).vh, ops.randomized_svd(a, 4, seed=2).vh)


@pytest.mark.parametrize("side", ["right", "left"])
def test_subspace_iterate_converges_and_keeps_order(side, device, generator):
    a = _low_rank(60, 44, 20, generator, decay=0.8).to(device)
    length = a.shape[1] if side == "right" else a.shape[0]
    basis = torch.linalg.qr(torch.randn(length, 6, generator=generator)).Q.t().to(device)
    for _ in range(30):
        basis = ops.subspace_iterate(a, basis, side=side)
    u, _, vh = torch.linalg.svd(a, full_matrices=False)
    exact = (vh if side == "right" else u.t())[:6]
    assert _orthonormality(basis) < 1e-5
    assert (basis * exact).sum(1).abs().min() > 0.999


def test_subspace_iterate_keeps_the_direction_of_each_vector(generator):
    a = _low_rank(30, 20, 8, generator)
    basis = ops.randomized_svd(a, 4).vh
    flipped = basis * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    assert torch.allclose(ops.subspace_iterate(a, flipped), flipped, atol=1e-4)
    assert torch.allclose(ops.subspace_iterate(-a, flipped), flipped, atol=1e-4)


# ---- any matrix -----------------------------------------------------------------------------------------


def _matrices(generator):
    """Matrices that have broken factorisations, by name."""
    graded = _low_rank(60, 40, 40, generator, decay=0.5)  # singular values down to 1e-12
    one_column = torch.zeros(60, 40)
    one_column[:, 7] = torch.randn(60, generator=generator)
    repeated = torch.randn(3, 40, generator=generator).repeat(20, 1)
    return {
        "graded": graded,
        "graded rows": torch.randn(60, 40, generator=generator)
        * 10.0 ** -torch.arange(60)[:, None].clamp(max=30),
        "one column": one_column,
        "repeated rows": repeated,
        "ones": torch.ones(60, 40),
        "zeros": torch.zeros(60, 40),
        "subnormal": torch.randn(60, 40, generator=generator) * 1e-42,
        "huge": torch.randn(60, 40, generator=generator) * 1e37,
        "identity": torch.eye(60, 40),
        "bfloat16": graded.bfloat16(),
        "float16": torch.randn(60, 40, generator=generator).half(),
        "not contiguous": torch.randn(40, 60, generator=generator).t(),
        "nan": graded.clone().index_fill_(0, torch.tensor(3), torch.nan),
    }


_NAMES = list(_matrices(torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("rank", [1, 8, 40])
def test_bases_are_orthonormal_whatever_the_matrix(name, rank, wide, device, generator):
    a = _matrices(generator)[name].to(device)
    a = a.t() if wide else a
    old = torch.linalg.qr(torch.randn(40, rank, generator=generator)).Q.t().contiguous().to(device)
    short = "left" if wide else "right"
    for svd in (ops.randomized_svd(a, rank), ops.truncated_svd(a, rank)):
        assert _orthonormality(svd.vh) < 1e-5 and _orthonormality(svd.u.t()) < 1e-5
        assert bool(svd.s.isnan().all() if name == "nan" else svd.s.isfinite().all())
    assert _orthonormality(ops.subspace_iterate(a, old, side=short)) < 1e-5
    assert _orthonormality(ops.subspace_iterate(a, old, 2, side=short)) < 1e-5


@pytest.mark.parametrize("name", [n for n in _NAMES if n != "nan"])
def test_truncated_svd_is_exact(name, device, generator):
    a = _matrices(generator)[name].to(device)
    exact = torch.linalg.svd(a.double(), full_matrices=False)
    u, s, vh = ops.truncated_svd(a, 12)
    largest = exact.S[0].clamp(min=1e-300)
    assert (s - exact.S[:12]).abs().max() <= 1e-6 * largest + 2e-45  # float32's smallest number: 1.4e-45
    left = exact.S[12:].square().sum().sqrt()
    error = (a.double() - (u.double() * s) @ vh.double()).norm()
    assert error <= left + 3e-6 * largest


@pytest.mark.parametrize("n_iter", [1, 2])
def test_gaussian_noise_gives_what_theory_says(n_iter, generator):
    """Halko, Martinsson & Tropp, theorem 10.6 and corollary 10.10: E ||A - QQᵀA|| <= C^(1/(2q+1)) s_{k+1}."""
    a = torch.randn(256, 192, generator=generator)
    u = ops.randomized_svd(a, 32, n_iter, 0).u
    exact = torch.linalg.svdvals(a)
    k = 24  # the target rank; 8 more oversample it
    constant = 1 + (k / 7) ** 0.5 + 2.718 * 32**0.5 / 8 * (192 - k) ** 0.5
    error = torch.linalg.matrix_norm(a - u @ (u.t() @ a), 2)
    assert error <= constant ** (1 / (2 * n_iter + 1)) * exact[k]
    assert u.shape[1] == 32 and error >= exact[32] * 0.999  # nor can it be better than the best


def test_bfloat16_is_multiplied_in_float32(generator, monkeypatch):
    a = torch.randn(300, 200, generator=generator).bfloat16()
    whole = ops.randomized_svd(a.float(), 16)
    monkeypatch.setattr(frugalore.ops.scaled, "PANEL_BYTES", 4 * 200 * 64)  # panels of 64 rows
    for svd, vectors in ((ops.randomized_svd(a, 16), "vh"), (ops.randomized_svd(a.t(), 16), "u")):
        assert torch.allclose(svd.s, whole.s, rtol=1e-3)
        rows = svd.vh if vectors == "vh" else svd.u.t()
        kept = (rows @ whole.vh.t()).square().sum() / 16
        assert kept > 0.999


def test_extra_rows_compete_for_a_place(generator):
    """A direction orthogonal to the whole old basis is found through one of the random rows."""
    a = _low_rank(80, 60, 10, generator, decay=0.9)
    basis = ops.truncated_svd(a, 6).vh
    u, _, vh = torch.linalg.svd(a, full_matrices=True)
    right = vh[-1]
    changed = a + 5.0 * torch.outer(u[:, -1], right)  # a new direction, orthogonal to all that a has
    alone = ops.subspace_iterate(changed, basis)
    assert (alone @ right).norm() < 0.1
    fresh = torch.randn(4, 60, generator=generator) / 60**0.5
    found = ops.subspace_iterate(changed, torch.cat([basis, fresh]), rank=6)
    assert found.shape == (6, 60) and (found @ right).norm() > 0.99


class TestBadInput:
    def test_rank(self):
        for rank in (0, -1, 4):
            with pytest.raises(ValueError, match=f"rank: 1 to 3 expected for shape .* got {rank}"):
                ops.randomized_svd(torch.zeros(3, 5), rank)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.complex64], ids=str)
    def test_dtypes(self, dtype):
        with pytest.raises(TypeError, match=f"a: dtype float32, bfloat16 or float16 expected, got {dtype}"):
            ops.randomized_svd(torch.zeros(5, 3, dtype=dtype), 1)
        with pytest.raises(TypeError, match=f"basis: dtype .* expected, got {dtype}"):
            ops.subspace_iterate(torch.zeros(5, 3), torch.zeros(2, 3, dtype=dtype))

    def test_devices(self):
        with pytest.raises(ValueError, match="basis: device cpu expected, got meta"):
            ops.subspace_iterate(torch.zeros(5, 3), torch.zeros(2, 3, device="meta"))

    def test_shapes(self):
        with pytest.raises(ValueError, match="a: a matrix expected"):
            ops.randomized_svd(torch.zeros(3), 1)
        with pytest.raises(ValueError, match="basis: shape"):
            ops.subspace_iterate(torch.zeros(5, 3), torch.zeros(2, 5))
        with pytest.raises(ValueError, match="at most 3 rows"):
            ops.subspace_iterate(torch.zeros(5, 3), torch.zeros(4, 3))
        with pytest.raises(ValueError, match="side: 'right' or 'left' expected, got 'top'"):
            ops.subspace_iterate(torch.zeros(5, 3), torch.zeros(2, 3), side="top")
        with pytest.raises(ValueError, match="n_iter"):
            ops.subspace_iterate(torch.zeros(5, 3), torch.zeros(2, 3), n_iter=0)
        with pytest.raises(ValueError, match="rank: 1 to 2 expected for the basis, got 3"):
            ops.subspace_iterate(torch.zeros(5, 3), torch.zeros(2, 3), rank=3)
        with pytest.raises(ValueError, match=r"rank: 1 to 3 expected for shape \(5, 3\), got 4"):
            ops.truncated_svd(torch.zeros(5, 3), 4)


def test_opcheck(generator):
    a = torch.randn(12, 7, generator=generator)
    # Fake tensors run the same QR and eigh, whose strides differ from the fake kernel's in no promised way.
    torch.library.opcheck(torch.ops.frugalore.randomized_svd.default, (a, 3, 1, 2, 0, 0, 0))
    basis = torch.linalg.qr(torch.randn(7, 3, generator=generator)).Q.t().contiguous()
    torch.library.opcheck(torch.ops.frugalore.subspace_iterate.default, (a, basis, "right", 1, 3))
    torch.library.opcheck(torch.ops.frugalore.truncated_svd.default, (a, 3))
