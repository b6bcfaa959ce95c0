"""The measurements of bench/update_arrives.py, at a small size."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[1] / "bench" / "update_arrives.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("update_arrives", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("at_extremes", [False, True])
def test_realised_fraction(bench, at_extremes):
    ours, error = bench.realised_fraction(bench.OURS, 1e-4, 256, 2, at_extremes)
    assert abs(ours - 1.0) < max(0.02, 4 * error) < 0.1
    published, _ = bench.realised_fraction(bench.PUBLISHED, 1e-5, 256, 2, at_extremes)
    assert published < 0.5


def test_zero_update(bench):
    assert bench.changed_by_zero_update(bench.OURS, 64) == 0.0
    assert bench.changed_by_zero_update(bench.PUBLISHED, 64) > 0.0


def test_range(bench):
    assert 0.9 < bench.range_after_random_steps(bench.OURS, 8, 50) < 1.1


def test_table_has_a_line_for_each_method_and_place(bench):
    text = bench.table(rows=8, trials=1, steps=2)
    assert text.count("| frugalore,") == 2 and text.count("| published, bfloat16,") == 2
    assert "nan" not in text
