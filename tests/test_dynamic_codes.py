"""The 8-bit codes that the AdamW kernels write, on every instruction set: where one code becomes the next."""

from __future__ import annotations

import math

import pytest
import torch

from frugalore import ops
from frugalore.reference import dynamic_map as reference

BLOCK = 256


def _in_blocks_with_a_one(x):
    """``x`` in blocks of 256 that begin with 1, so that a block's absmax is 1 and changes nothing."""
    blocks = -(-x.numel() // (BLOCK - 1))
    padded = torch.zeros(blocks * (BLOCK - 1))
    padded[: x.numel()] = x
    return torch.cat([torch.ones(blocks, 1), padded.view(blocks, -1)], dim=1).flatten()


def _codes_after_a_step(g):
    """Codes of both moments of one step with betas 0: m = g, v = g²."""
    count, blocks = g.numel(), -(-g.numel() // BLOCK)
    exp_avg, exp_avg_sq = (torch.zeros(count, dtype=torch.uint8) for _ in range(2))
    absmax, absmax_sq = torch.zeros(blocks), torch.zeros(blocks)
    record = torch.zeros(3, dtype=torch.int64), torch.ones(2, dtype=torch.float64)
    ops.adamw8bit_direction_(g.clone(), exp_avg, absmax, exp_avg_sq, absmax_sq, *record, betas=(0.0, 0.0))
    return exp_avg, exp_avg_sq


def _around(x, steps=3):
    bits = x.view(torch.int32)[:, None] + torch.arange(-steps, steps + 1, dtype=torch.int32)
    return bits.clamp(0, 0x3F800000).flatten().view(torch.float32)


def _midpoints(signed):
    levels = reference.dynamic_levels(signed).double()
    return ((levels[:-1] + levels[1:]) / 2).float()


def test_first_moments_around_every_midpoint(isa):
    decades = torch.tensor([10.0**k for k in range(-9, 1)])
    x = torch.cat([_around(_midpoints(True)), _around(decades), torch.tensor([1e-45, 1e-30])])
    g = _in_blocks_with_a_one(torch.cat([x, -x]))
    assert torch.equal(_codes_after_a_step(g)[0], reference.dynamic_quantize(g, True))


def test_second_moments_around_every_midpoint(isa):
    decades = torch.tensor([10.0**k for k in range(-9, 1)])
    g = _in_blocks_with_a_one(_around(torch.cat([_midpoints(False), decades]).sqrt()))
    assert torch.equal(_codes_after_a_step(g)[1], reference.dynamic_quantize(g * g, False))


@pytest.mark.parametrize("count", [*range(1, 70), 255, 256, 257, 287])
def test_blocks_of_any_length(isa, count, generator):
    g = torch.randn(count, generator=generator)
    first, second = _codes_after_a_step(g)
    for codes, x, signed in ((first, g, True), (second, g * g, False)):
        blocks = math.ceil(count / BLOCK)
        scaled = torch.cat(
            [part * (1 / part.abs().max()) for part in (x[i * BLOCK :][:BLOCK] for i in range(blocks))]
        )
        assert torch.equal(codes, reference.dynamic_quantize(scaled, signed))
