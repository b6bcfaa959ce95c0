"""Build, test and time frugalore on a machine with a CUDA card.

    python bench/gpu_check.py --results DIR [--commit HASH] [--stage build,test,sanitize,bench | all]

Needs torch with CUDA, nvcc, a C++ compiler and the build tools already installed; downloads nothing. Each
stage has a time limit of its own, a failing stage does not stop the next one, and the exit code is
non-zero when one failed. ``DIR`` gets at most six flat files: ``summary.md``, ``ops.csv``, ``tests.txt``,
``build.txt``, ``sanitize.txt``, ``roofline.png``. ``summary.md`` is written after every stage, and keeps
the lines of stages that an earlier call ran for the same commit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gpu_report
import gpu_tests

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"build": 540, "test": 570, "sanitize": 300, "bench": 570}  # seconds
STAGES = tuple(LIMITS)


@dataclass
class Finished:
    """A command that ran: its exit code (``None`` where its time ran out), seconds and output."""

    code: int | None
    seconds: float
    output: str

    @property
    def why(self) -> str:
        return "time limit" if self.code is None else f"exit code {self.code}"


class Check:
    """What the stages share: where to write, how long they have, and what the machine is."""

    def __init__(self, results: Path, commit: str, arch: str | None) -> None:
        self.results, self.commit = results, commit
        self.machine = gpu_report.describe_machine()
        self.arch = arch or self.machine.get("arch", "")
        self.deadline = 0.0

    def remaining(self) -> float:
        return max(1.0, self.deadline - time.monotonic())

    def run(self, command: list[str], limit: float | None = None, **environment: str) -> Finished:
        """One command in a process group of its own, killed as a whole when its time runs out."""
        limit = min(limit or self.remaining(), self.remaining())
        start = time.monotonic()
        # A file rather than a pipe: what a killed command printed stays, and no child can block.
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
            except BaseException as stop:  # the time limit, or an interrupt: no child outlives this call
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if not isinstance(stop, subprocess.TimeoutExpired):
                    raise
                code = None
            log.seek(0)
            output = log.read()
        return Finished(code, time.monotonic() - start, output)

    def write(self, name: str, text: str) -> None:
        (self.results / name).write_text(text[-400_000:])


def _cuda_tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on the PATH, or in the toolkit's usual places."""
    found = shutil.which(name)
    if found:
        return found
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    for folder in filter(None, folders):
        for sub in ("bin", "compute-sanitizer"):
            path = Path(folder) / sub / name
            if path.is_file() and os.access(path, os.X_OK):
                return str(path)
    return None


_BUILD_INFO = """
import json, frugalore
from frugalore._build import with_cuda
print(json.dumps({**frugalore.build_info(), "with_cuda": with_cuda(), "path": frugalore.__file__}))
"""


def build(check: Check) -> tuple[str, str]:
    """``pip install`` for the architecture of this card alone."""
    if not check.arch:
        return "fail", f"refused: {check.machine['cuda']}; --arch names an architecture to compile for"
    nvcc = _cuda_tool("nvcc")
    if not nvcc:
        return "fail", "refused: nvcc is neither on the PATH nor in CUDA_HOME or /usr/local/cuda"
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    command += [f"--config-settings=build-dir=build/gpu-{check.arch}", "."]
    environment = {"FRUGALORE_CUDA": "ON", "CUDAARCHS": check.arch, "CUDACXX": nvcc}
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    installed = check.run(command, **environment)
    shown = " ".join([*(f"{k}={v}" for k, v in environment.items()), *command])
    text = f"{shown}\n{installed.seconds:.0f} s, {installed.why}\n\n{installed.output}"
    check.write("build.txt", text)
    if installed.code != 0:
        return "fail", f"pip install: {installed.why}"
    info = check.run([sys.executable, "-c", _BUILD_INFO], 120)
    check.write("build.txt", f"{text}\n{info.output}")
    if info.code != 0:
        return "fail", f"import frugalore: {info.why}"
    built = json.loads(info.output.strip().splitlines()[-1])
    check.machine["build"] = f"{built['cuda']}; {built['compiler']}; frugalore {built['version']}"
    if not built["with_cuda"]:
        return "fail", f"the imported build has no CUDA kernels ({built['path']})"
    return "pass", f"compiled and installed in {installed.seconds:.0f} s; {built['cuda']}"


def _needs_card(check: Check) -> str | None:
    """Why this machine cannot run the kernels of the installed build, if it cannot."""
    if not check.machine.get("arch"):
        return check.machine["cuda"]
    info = check.run([sys.executable, "-c", _BUILD_INFO], 120)
    if info.code != 0:
        last = (info.output.strip().splitlines() or [""])[-1]
        return f"frugalore cannot be imported: {last}"
    built = json.loads(info.output.strip().splitlines()[-1])
    check.machine.setdefault("build", f"{built['cuda']}; {built['compiler']}")
    return None if built["with_cuda"] else f"the build in {built['path']} has no CUDA kernels"


def test(check: Check) -> tuple[str, str]:
    """Every test marked ``cuda`` must run and pass on the card; then the others."""
    missing = _needs_card(check)
    if missing:
        return "fail", f"refused: {missing}"
    status, detail, text = gpu_tests.run_all(check)
    check.write("tests.txt", text)
    return status, detail


def sanitize(check: Check) -> tuple[str, str]:
    """compute-sanitizer's memcheck over the first cases of every test marked ``cuda``."""
    missing = _needs_card(check)
    if missing:
        return "fail", f"refused: {missing}"
    tool = _cuda_tool("compute-sanitizer")
    if not tool:
        return "not run", "compute-sanitizer is not installed"
    status, detail, text = gpu_tests.run_sanitized(check, tool)
    check.write("sanitize.txt", text)
    return status, detail


def bench(check: Check) -> tuple[str, str]:
    """``bench/run.py --device cuda``: every op against its roofline, its reference and its peers."""
    missing = _needs_card(check)
    if missing:
        return "fail", f"refused: {missing}"
    (check.results / "ops.csv").unlink(missing_ok=True)
    command = [sys.executable, "bench/run.py", "--device", "cuda", "--seconds", "1"]
    measured = check.run([*command, "--commit", check.commit, "--out", str(check.results)])
    # The screen table of run.py stays in the log of this command; the numbers are in ops.csv.
    print(measured.output, flush=True)
    rows = gpu_report.read_rows(check.results / "ops.csv")
    gpu_report.plot(rows, check.results / "roofline.png")
    failed = [line for line in measured.output.splitlines() if line.startswith("failed: ")]
    if measured.code != 0 or not rows:
        last = (measured.output.strip().splitlines() or [""])[-1]
        return "fail", f"{len(rows)} cases timed; {measured.why}; {'; '.join(failed) or last}"
    return "pass", f"{len(rows)} cases timed"


_RUN = {"build": build, "test": test, "sanitize": sanitize, "bench": bench}


def _stages(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if names == ("all",):
        return STAGES
    unknown = [name for name in names if name not in STAGES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"unknown stage {text!r}; there are {', '.join(STAGES)} and all")
    return names


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, required=True, help="folder for the result files")
    parser.add_argument("--commit", default="", help="recorded in the results (default: git's HEAD)")
    parser.add_argument(
        "--stage", type=_stages, default=STAGES, help=f"{', '.join(STAGES)} (comma-separated), or all"
    )
    parser.add_argument("--arch", help="architecture to compile for, as in 90 (default: this card's)")
    parser.add_argument("--time-limit", type=float, help="seconds for all stages together")
    arguments = parser.parse_args(argv)
    arguments.results = arguments.results.resolve()
    arguments.results.mkdir(parents=True, exist_ok=True)

    check = Check(arguments.results, arguments.commit or _commit(), arguments.arch)
    outcomes = gpu_report.earlier_outcomes(arguments.results / "summary.md", check.commit)
    end = time.monotonic() + (arguments.time_limit or float("inf"))
    failed = False
    for name in arguments.stage:
        start = time.monotonic()
        check.deadline = min(start + LIMITS[name], end)
        if end - start < 10:
            status, detail = "fail", "the time limit for all stages was used up"
        else:
            print(f"== {name} (at most {check.deadline - start:.0f} s)", flush=True)
            status, detail = _guarded(
                {"build": build, "test": test, "sanitize": sanitize, "bench": bench}[name], check
            )
        failed |= status == "fail"
        outcomes[name] = (status, f"{time.monotonic() - start:.0f} s", detail)
        table = gpu_report.outcome_table({s: outcomes[s] for s in STAGES if s in outcomes})
        gpu_report.write_summary(check.results, check.commit, check.machine, table)
    print(f"\n{table}")
    return 1 if failed else 0


def _guarded(stage: Callable[[Check], tuple[str, str]], check: Check) -> tuple[str, str]:
    # A stage that breaks in an unforeseen way is a failed stage, and the next ones still run.
    try:
        return stage(check)
    except Exception as error:
        return "fail", f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
