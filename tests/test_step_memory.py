"""What a step allocates: one row panel, and what is of low rank."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import step_memory
from frugalore.ops.projection import PANEL_BYTES

NEVER = step_memory.NEVER


def test_workspace_counts_what_is_there_at_one_time():
    def step():
        for _ in range(3):
            a = torch.ones(1 << 18)
            del a
        b = torch.ones(1 << 18)
        return b.add_(1)

    assert 1 << 20 <= step_memory.workspace(step) < (1 << 20) + 4096


@pytest.mark.parametrize(("m", "n"), [(2048, 1024), (1024, 3000)])
def test_an_ordinary_step_needs_a_panel_and_low_rank_tensors(m, n):
    rank = 64
    peak = step_memory.workspace(step_memory.ours(m, n, rank, NEVER))
    low_rank = 2 * rank * (m + n)  # R and the dense basis in bfloat16
    assert low_rank < peak <= PANEL_BYTES["cpu"] + 2 * low_rank + (64 << 10)
    assert peak < 2 * m * n  # less than the layer in bfloat16, at any size
