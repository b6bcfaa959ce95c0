"""How a refreshed subspace is compared with the one before it."""

from __future__ import annotations

import pytest
import torch

from frugalore.subspace import SvdSubspace

OVERLAP = {"similarity": "overlap"}


def _basis(rank, length, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(length, length, generator=generator)).Q[:rank]


@pytest.mark.parametrize("rank", [4, 32, 96])
def test_overlap_is_one_for_the_same_subspace_whatever_signs_and_order(rank):
    old = _basis(rank, 128, 0)
    rotation = _basis(rank, rank, 1)
    for new in (old, -old, old.flip(0), rotation @ old):
        assert SvdSubspace._similarity(new, old, {}, OVERLAP).item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("rank", [16, 64, 112])
def test_overlap_is_about_zero_for_unrelated_subspaces_of_any_rank(rank):
    values = [
        SvdSubspace._similarity(_basis(rank, 128, s), _basis(rank, 128, s + 50), {}, OVERLAP)
        for s in range(8)
    ]
    assert abs(torch.stack(values).mean().item()) < 0.05


def test_overlap_of_the_whole_space_is_one():
    assert SvdSubspace._similarity(_basis(8, 8, 0), _basis(8, 8, 1), {}, OVERLAP).item() == 1.0


def test_the_published_cosine_reads_a_flipped_sign_as_a_new_subspace():
    old = _basis(4, 32, 0)
    state, published = {"first_vector": old[0]}, {"similarity": "first_vector"}
    assert SvdSubspace._similarity(old, old, state, published).item() == pytest.approx(1.0)
    assert SvdSubspace._similarity(-old, old, state, published).item() == pytest.approx(-1.0)
