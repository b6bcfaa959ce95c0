"""randomized_svd and subspace_iterate."""

from __future__ import annotations

import pytest
import torch

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
    for _ in range(12):
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


def test_opcheck(generator):
    a = torch.randn(12, 7, generator=generator)
    # Fake tensors run the same QR and eigh, whose strides differ from the fake kernel's in no promised way.
    torch.library.opcheck(torch.ops.frugalore.randomized_svd.default, (a, 3, 1, 2, 0, 0, 0))
    basis = torch.linalg.qr(torch.randn(7, 3, generator=generator)).Q.t().contiguous()
    torch.library.opcheck(torch.ops.frugalore.subspace_iterate.default, (a, basis, "right", 1))
