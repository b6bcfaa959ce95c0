"""bench/gpu_check.py: its judgement, and that a machine without a card is refused clearly."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import gpu_check  # noqa: E402
import gpu_report  # noqa: E402
import gpu_tests  # noqa: E402


def _without_a_card(results: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "bench/gpu_check.py"), "--results", str(results), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


@pytest.mark.parametrize("stage", ["build", "test", "sanitize", "bench"])
def test_no_card_is_refused_without_a_traceback(stage, tmp_path):
    done = _without_a_card(tmp_path, "--stage", stage, "--commit", "abc")
    assert done.returncode == 1
    assert f"| {stage} | fail |" in done.stdout and "torch sees no CUDA device" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert f"| {stage} | fail |" in (tmp_path / "summary.md").read_text()


def test_a_failing_stage_does_not_stop_the_next_and_the_table_comes_last(tmp_path):
    done = _without_a_card(tmp_path, "--stage", "all", "--commit", "abc")
    assert done.returncode == 1
    assert [line.split(" | ")[0] for line in done.stdout.splitlines()[-4:]] == [
        "| build",
        "| test",
        "| sanitize",
        "| bench",
    ]


def test_stages_of_separate_calls_meet_in_one_summary_per_commit(tmp_path):
    _without_a_card(tmp_path, "--stage", "build", "--commit", "abc")
    _without_a_card(tmp_path, "--stage", "bench", "--commit", "abc")
    summary = (tmp_path / "summary.md").read_text()
    assert "| build | fail |" in summary and "| bench | fail |" in summary
    _without_a_card(tmp_path, "--stage", "bench", "--commit", "def")
    assert "| build |" not in (tmp_path / "summary.md").read_text()


def test_an_unknown_stage_is_named(tmp_path):
    done = _without_a_card(tmp_path, "--stage", "headline")
    assert done.returncode == 2
    assert "unknown stage 'headline'; there are build, test, sanitize, bench and all" in done.stderr


def test_a_command_is_killed_with_its_children_when_its_time_runs_out(tmp_path):
    check = gpu_check.Check(tmp_path, "abc", None)
    check.deadline = time.monotonic() + 60
    marker = tmp_path / "alive"
    script = f"echo started; (sleep 3; touch {marker}) & sleep 30"
    finished = check.run(["sh", "-c", script], 1)
    assert finished.code is None and finished.why == "time limit"
    assert finished.output == "started\n"
    assert finished.seconds < 3
    time.sleep(3)
    assert not marker.exists()


_TESTS = """
import pytest

@pytest.mark.parametrize("n", range(3))
def test_passes(n):
    pass

def test_fails():
    assert 1 == 2

def test_skips():
    pytest.skip("no CUDA device")
"""


@pytest.fixture(scope="module")
def pytest_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "test_it.py").write_text(_TESTS)
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    options = {"cwd": folder, "capture_output": True, "text": True, "timeout": 120}
    listing = subprocess.run([*command, "--collect-only"], **options)
    done = subprocess.run([*command, "--junitxml=out.xml"], **options)
    return listing.stdout, done.returncode, gpu_tests.read_junit(folder / "out.xml")


def test_pytest_is_read(pytest_run):
    listing, code, result = pytest_run
    ids = gpu_tests.node_ids(listing)
    assert len(ids) == 5 and ids[0] == "test_it.py::test_passes[0]"
    assert (result.passed, len(result.failed), len(result.skipped), result.total) == (3, 1, 1, 5)
    assert "assert 1 == 2" in result.failed[0]
    assert gpu_tests.judge_cuda(5, code, result) == [
        "1 CUDA tests failed",
        "1 CUDA tests skipped for lack of CUDA",
    ]
    assert gpu_tests.first_of_each(ids, 2) == [
        "test_it.py::test_passes[0]",
        "test_it.py::test_passes[1]",
        "test_it.py::test_fails",
        "test_it.py::test_skips",
    ]


def test_judgement():
    Result, judge = gpu_tests.Result, gpu_tests.judge_cuda
    assert judge(3, 0, Result(3)) == []
    assert judge(3, 0, Result(2, [], ["a::b: matplotlib is not installed"])) == []
    assert judge(0, 5, Result(0)) == ["no test marked cuda was collected"]
    assert judge(3, 0, Result(2)) == ["only 2 of 3 CUDA tests ran"]
    assert judge(3, 1, Result(3)) == ["pytest's exit code was 1"]
    assert judge(3, None, Result(0)) == ["time limit, with 0 of 3 CUDA tests reported"]


def test_a_missing_junit_file_is_an_empty_result(tmp_path):
    assert gpu_tests.read_junit(tmp_path / "none.xml").total == 0


def test_summary_and_plot_of_a_measured_run(tmp_path):
    command = [sys.executable, str(ROOT / "bench/run.py"), "--sizes", "small", "--ops", "int4"]
    command += ["--threads", "1", "--commit", "abc", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    outcomes = {"bench": ("pass", "12 s", "8 cases | timed")}
    gpu_report.write_summary(tmp_path, "abc", {"torch": "2"}, gpu_report.outcome_table(outcomes))
    summary = tmp_path / "summary.md"
    assert "| int4_quantize | 64x256 | f32 |" in summary.read_text()
    assert gpu_report.earlier_outcomes(summary, "abc") == {"bench": ("pass", "12 s", "8 cases / timed")}
    assert gpu_report.earlier_outcomes(summary, "other") == {}
    pytest.importorskip("matplotlib")
    assert gpu_report.plot(gpu_report.read_rows(tmp_path / "ops.csv"), tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ops.csv", "ops.md", "roofline.png", "summary.md"]
