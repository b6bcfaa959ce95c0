"""bench/: the harness measures what it says, and every declared case runs."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import cases  # noqa: E402
import harness  # noqa: E402
from cases import shapes  # noqa: E402
from frugalore import ops  # noqa: E402

CPU = torch.device("cpu")


def _harness(**options) -> harness.Harness:
    return harness.Harness(CPU, seconds=0.0, peak_copy_bytes=1 << 20, **options)


def _run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(BENCH / "run.py"), *arguments], capture_output=True, text=True, timeout=300
    )


def test_a_small_run_finishes_and_its_csv_parses(tmp_path):
    done = _run(
        "--sizes", "small", "--ops", "int4", "--threads", "1", "--out", str(tmp_path), "--commit", "abc"
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "ops.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(cases.load("int4", "small"))
    for row in rows:
        assert row["family"] == "int4" and row["commit"] == "abc" and row["threads"] == "1"
        assert row["torch"] == torch.__version__
        assert int(row["rounds"]) >= 10
        assert 0 < float(row["p20_us"]) <= float(row["median_us"]) <= float(row["p80_us"])
        assert float(row["gb_s"]) == pytest.approx(
            int(row["bytes"]) / float(row["median_us"]) * 1e-3, rel=1e-3
        )
        assert float(row["share_of_copy"]) > 0 and float(row["ratio_reference"]) > 0
        assert row["op"] in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ops", "int5"), "unknown family 'int5'"),
        (("--peers", "someone"), "unknown peer 'someone'"),
        (("--threads", "0"), "--threads: a positive number expected, got 0"),
    ],
)
def test_a_bad_option_is_named(arguments, message):
    done = _run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("family", cases.FAMILIES)
def test_every_case_runs_and_full_sizes_hold_the_7b_shapes(family, device):
    torch.manual_seed(0)
    for case in cases.load(family, "small"):
        if device.type not in case.devices:
            continue
        calls = case.setup(device, ())
        calls.ours()
        if calls.reference is not None:
            calls.reference()
        assert case.bytes > 0
    declared = cases.load(family, "full")
    names = [(case.op, case.shape, case.dtype) for case in declared]
    assert len(set(names)) == len(names)
    assert max(case.bytes for case in declared) > 4096 * 1024 * 2


def test_bytes_are_those_of_the_operands():
    declared = {(c.op, c.shape, c.dtype): c.bytes for c in cases.load("int4", "small")}
    x = torch.randn(130, 1000)
    moved = declared["int4_quantize", "130x1000", "f32"]
    assert moved == x.nbytes + sum(t.nbytes for t in ops.int4_quantize(x))
    assert moved == 130 * 1000 * 4 + 130 * 500 + 130 * 4 * 5
    assert shapes.groups((130, 1000)) == 130 * 4


def test_ratios_are_of_times():
    def setup(device, peers):
        return harness.Calls(lambda: time.sleep(0.002), lambda: time.sleep(0.008))

    measured = _harness(cold_bytes=0).measure(harness.Case("op", "1", "f32", 1000, setup))
    assert 2.5 < measured["ratio_reference"] < 5
    assert measured["median_us"] == pytest.approx(2000, rel=0.5)
    assert measured["gb_s"] == pytest.approx(1000 / measured["median_us"] * 1e-3)
    assert measured["rounds"] == 10 and measured["ratio_torch"] is None


def test_a_reference_that_fails_costs_its_column_only():
    def setup(device, peers):
        def fails():
            raise RuntimeError("tensors on two devices\nmore")

        return harness.Calls(lambda: time.sleep(1e-4), fails, {"torch": lambda: time.sleep(1e-4)})

    bench = _harness(cold_bytes=0)
    measured = bench.measure(harness.Case("op", "1", "f32", 1000, setup))
    assert bench.left_out == ["reference: RuntimeError: tensors on two devices"]
    assert measured["ratio_reference"] is None and measured["ratio_torch"] > 0


def test_calls_rotate_over_buffers_larger_than_the_cache():
    used: dict[int, int] = {}

    def setup(device, peers):
        index = len(used)
        used[index] = 0

        def call():
            used[index] += 1
            time.sleep(2e-5)

        return harness.Calls(call)

    measured = _harness(cold_bytes=1 << 20).measure(harness.Case("op", "1", "f32", 256 << 10, setup))
    assert measured["buffer_sets"] == len(used) == 8
    assert min(used.values()) >= 2
    assert max(list(used.values())[1:]) - min(used.values()) <= 1


def test_floor_of_a_matrix_product():
    def setup(device, peers):
        return harness.Calls(lambda: time.sleep(0.01))

    measured = _harness(cold_bytes=0).measure(harness.Case("op", "1", "f32", 8, setup, flops=10**6))
    peak = measured["peak_tflop_s"] * 1e12
    assert measured["share_of_roofline"] == pytest.approx(
        1e6 / peak / (measured["median_us"] * 1e-6), rel=0.01
    )


def test_quantile():
    assert harness.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert harness.quantile([0.0, 10.0], 0.2) == pytest.approx(2.0)
    assert harness.quantile([4.0], 0.8) == 4.0
