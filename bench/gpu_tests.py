"""The test and sanitize stages of ``gpu_check``: pytest, and how its result is judged."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

_PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
# A device that compute-sanitizer cannot work with announces itself in one of these ways.
_REFUSED = ("Device not supported", "not supported on this", "Unable to find", "Failed to initialize")


@dataclass
class Result:
    """What a junit file says."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.passed + len(self.failed) + len(self.skipped)


def read_junit(path: Path) -> Result:
    """Counts, and a line for each test that did not pass; empty where pytest never wrote the file."""
    result = Result()
    if not path.is_file():
        return result
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        if bad is not None:
            message = (bad.get("message") or "").splitlines() or [""]
            result.failed.append(f"{name}: {message[0]}")
        elif skipped is not None:
            result.skipped.append(f"{name}: {skipped.get('message') or ''}")
        else:
            result.passed += 1
    return result


def judge_cuda(collected: int, code: int | None, result: Result) -> list[str]:
    """What is wrong with the run of the tests marked ``cuda``; empty when all of them ran and passed."""
    wrong = []
    if collected == 0:
        wrong.append("no test marked cuda was collected")
    if code is None:
        wrong.append(f"time limit, with {result.total} of {collected} CUDA tests reported")
    elif result.total < collected:
        wrong.append(f"only {result.total} of {collected} CUDA tests ran")
    if result.failed:
        wrong.append(f"{len(result.failed)} CUDA tests failed")
    lacking = [line for line in result.skipped if "cuda" in line.split(": ", 1)[-1].lower()]
    if lacking:
        wrong.append(f"{len(lacking)} CUDA tests skipped for lack of CUDA")
    if code not in (0, None) and not wrong:
        wrong.append(f"pytest's exit code was {code}")
    return wrong


def node_ids(output: str) -> list[str]:
    """Node ids in the output of ``pytest --collect-only -q``."""
    return [line for line in output.splitlines() if re.match(r"\S+\.py::", line)]


def first_of_each(ids: list[str], count: int) -> list[str]:
    """The first ``count`` parametrisations of every test function; the lists start with small shapes."""
    kept: dict[str, list[str]] = {}
    for node in ids:
        kept.setdefault(node.split("[", 1)[0], []).append(node)
    return [node for nodes in kept.values() for node in nodes[:count]]


def _collect(check) -> tuple[list[str], str]:
    found = check.run([*_PYTEST, "--collect-only", "-q", "-m", "cuda", "tests"], 180)
    return node_ids(found.output), found.output


def run_all(check) -> tuple[str, str, str]:
    """Status, detail and the text of ``tests.txt``."""
    ids, listing = _collect(check)
    if not ids:
        return "fail", "no test marked cuda was collected", listing
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "cuda.xml"
        command = [*_PYTEST, "-q", f"--junitxml={junit}", "-m", "cuda", "tests"]
        cuda = check.run(command, check.remaining() * 0.7, FRUGALORE_REQUIRE_CUDA="1")
        cuda_result = read_junit(junit)
        junit = Path(folder) / "others.xml"
        command = [*_PYTEST, "-q", f"--junitxml={junit}", "-m", "not cuda", "tests"]
        environment = {"FRUGALORE_REQUIRE_CUDA": "1"}
        if importlib.util.find_spec("xdist") and (os.cpu_count() or 1) >= 8:
            command += ["-n", "4"]
            environment["OMP_NUM_THREADS"] = "2"
        others = check.run(command, **environment)
        others_result = read_junit(junit)
    wrong = judge_cuda(len(ids), cuda.code, cuda_result)
    if others.code != 0:
        wrong.append(f"other tests: {len(others_result.failed)} failed, {others.why}")
    counts = (
        f"CUDA: {len(ids)} collected, {cuda_result.passed} passed, {len(cuda_result.failed)} failed, "
        f"{len(cuda_result.skipped)} skipped ({cuda.seconds:.0f} s); "
        f"others: {others_result.passed} passed, {len(others_result.failed)} failed, "
        f"{len(others_result.skipped)} skipped ({others.seconds:.0f} s)"
    )
    lines = [counts, *wrong]
    for title, part in (("CUDA tests", cuda_result), ("other tests", others_result)):
        lines += [f"\n{title} that failed: {len(part.failed)}", *part.failed]
        lines += [f"\n{title} that were skipped: {len(part.skipped)}", *part.skipped]
    lines += ["\npytest -m cuda", cuda.output[-100_000:], "\npytest -m 'not cuda'", others.output[-100_000:]]
    detail = "; ".join([*wrong, counts])
    return ("fail" if wrong else "pass"), detail, "\n".join(lines)


def run_sanitized(check, tool: str, per_test: int = 2) -> tuple[str, str, str]:
    """Status, detail and the text of ``sanitize.txt``."""
    probe = "import torch; torch.zeros(8, device='cuda').add_(1).sum().item()"
    # Torch probes the driver with calls that may fail; only errors of kernels count here.
    memcheck = [tool, "--tool", "memcheck", "--error-exitcode", "86", "--report-api-errors", "no"]
    tried = check.run([*memcheck, sys.executable, "-c", probe], 120)
    if tried.code != 0:
        lines = [line for line in tried.output.splitlines() if any(word in line for word in _REFUSED)]
        why = (lines or tried.output.strip().splitlines()[-1:] or [tried.why])[0].strip("= ")
        return "not run", f"compute-sanitizer does not work on this machine: {why}", tried.output
    ids, listing = _collect(check)
    if not ids:
        return "fail", "no test marked cuda was collected", listing
    chosen = first_of_each(ids, per_test)
    command = [*memcheck, *_PYTEST, "-q", "-x", *chosen]
    # Every tensor an allocation of its own, so that a write past its end is seen.
    ran = check.run(command, PYTORCH_NO_CUDA_MEMORY_CACHING="1", FRUGALORE_REQUIRE_CUDA="1")
    errors = re.findall(r"ERROR SUMMARY: (\d+) error", ran.output)
    detail = f"memcheck over {len(chosen)} of {len(ids)} CUDA tests, {ran.seconds:.0f} s"
    if ran.code is None:
        return "not run", f"{detail}: time limit before the end", ran.output
    if ran.code != 0 or not errors or any(int(count) for count in errors):
        return "fail", f"{detail}: {' '.join(errors) or 'no'} errors reported, {ran.why}", ran.output
    return "pass", f"{detail}: 0 errors", ran.output
