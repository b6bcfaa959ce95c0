"""The 8-bit dynamic maps: their values, and the mapping of a float to the nearest code."""

from __future__ import annotations

import pytest
import torch

from frugalore import _C
from frugalore.reference import dynamic_map as reference

SIGNS = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


def _codes(x, signed):
    codes = torch.empty(x.numel(), dtype=torch.uint8)
    _C.dynamic_map_codes(x, codes, signed)
    return codes


def _with_neighbours(x):
    """Each float with the two below and the two above it."""
    bits = x.view(torch.int32)[:, None] + torch.arange(-2, 3, dtype=torch.int32)
    return bits.clamp(0, 0x3F800000).flatten().view(torch.float32)


@SIGNS
def test_values_equal_the_specification(signed):
    values = torch.tensor(_C.dynamic_map_values(signed))
    assert torch.equal(values, reference.dynamic_map(signed))
    assert (values.diff() > 0).all()
    assert values[127 if signed else 0] == 0.0 and values[255] == 1.0


@SIGNS
def test_values_of_bitsandbytes(signed):
    functional = pytest.importorskip("bitsandbytes.functional")
    theirs = functional.create_dynamic_map(signed=signed)
    torch.testing.assert_close(reference.dynamic_map(signed), theirs.float(), rtol=4e-7, atol=1e-12)


@SIGNS
def test_nearest_code_where_it_changes(signed):
    levels = reference.dynamic_levels(signed)
    midpoints = ((levels[:-1].double() + levels[1:].double()) / 2).float()
    cells = torch.arange(0, 0x3F81, dtype=torch.int32).bitwise_left_shift(16).view(torch.float32)
    x = torch.cat([_with_neighbours(midpoints), _with_neighbours(cells), _with_neighbours(levels)])
    if signed:
        x = torch.cat([x, -x])
    assert torch.equal(_codes(x, signed), reference.dynamic_quantize(x, signed))


@SIGNS
def test_nearest_code_of_random_values(signed, generator):
    x = torch.rand(1_000_000, generator=generator) * 2.0 ** (-24 * torch.rand(1_000_000, generator=generator))
    if signed:
        x *= torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
    codes = _codes(x, signed)
    assert torch.equal(codes, reference.dynamic_quantize(x, signed))
    # Nearest by brute force, without the midpoints that specification and kernel have in common.
    values, some = reference.dynamic_map(signed).double(), x[:20_000].double()
    error = (values[codes[:20_000].long()] - some).abs()
    assert torch.equal(error, (values - some[:, None]).abs().amin(1))


@SIGNS
def test_every_value_maps_to_its_own_code(signed):
    assert torch.equal(_codes(reference.dynamic_map(signed), signed), torch.arange(256, dtype=torch.uint8))


def test_ties_go_to_the_smaller_magnitude():
    tie = reference.dynamic_levels(False)[1:2] / 2  # half-way between 0 and the first level: exact
    assert _codes(tie, False).item() == 0
    assert _codes(torch.nextafter(tie, torch.ones(1)), False).item() == 1
    first = reference.dynamic_levels(True)[1:2]
    assert _codes(torch.cat([first / 2, -first / 2]), True).tolist() == [127, 127]


def test_values_outside_of_the_map_stay_in_bounds():
    x = torch.tensor([2.0, 1e38, torch.inf, torch.nan, -1.0, -torch.inf, -0.0, 1e-45])
    assert _codes(x, True).tolist() == [255, 255, 255, 255, 0, 0, 127, 127]
