"""Fixtures that every test file shares."""

from __future__ import annotations

import os

import pytest
import torch

import frugalore
from frugalore._build import with_cuda


def _cuda_missing() -> str | None:
    if not with_cuda():
        return "this build has no CUDA kernels"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request) -> torch.device:
    """The test runs once per backend; without a card the CUDA half is skipped, with the reason."""
    if request.param == "cuda":
        missing = _cuda_missing()
        if missing and os.environ.get("FRUGALORE_REQUIRE_CUDA") == "1":
            pytest.fail(f"FRUGALORE_REQUIRE_CUDA=1, but {missing}")
        if missing:
            pytest.skip(missing)
    return torch.device(request.param)


def _isas() -> list[str]:
    present = []
    before = frugalore._C.active_isa()
    for name in ("baseline", "avx2", "avx512"):
        try:
            frugalore._C.force_isa(name)
        except ValueError:
            continue
        present.append(name)
    frugalore._C.force_isa(before)
    return present


@pytest.fixture(params=_isas())
def isa(request):
    """Runs the test once per CPU instruction set of this build and machine, and restores the choice."""
    before = frugalore._C.active_isa()
    frugalore._C.force_isa(request.param)
    yield request.param
    frugalore._C.force_isa(before)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
