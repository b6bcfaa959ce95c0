"""Registers, stack, spills and shared memory of every CUDA kernel, as ptxas reports them; needs no GPU.

    python tests/cuda_resources.py [--arch 90] [--nvcc nvcc]

Fails if a kernel spills registers to local memory or does not compile without warnings.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = [
    *("-std=c++17", "-O3", "-fmad=false", "--expt-relaxed-constexpr", "--diag-error=20011,20014"),
    *("-Werror=all-warnings", "-Xcompiler=-ffp-contract=off,-Wall,-Wextra,-Werror", "-Xptxas=-v"),
]
ENTRY = re.compile(r"Compiling entry function '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class Kernel:
    file: str
    name: str
    registers: int = 0
    stack: int = 0
    spill: int = 0
    shared: int = 0


def demangle(names: list[str]) -> list[str]:
    """C++ names without the namespaces and the parameter list."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    short = []
    for name in text.stdout.splitlines():
        plain = re.sub(
            r"\(anonymous namespace\)::|_GLOBAL__N__\w+::|frugalore::(cuda::|portable::)?", "", name
        )
        short.append(re.sub(r"\(.*", "", plain).removeprefix("void "))
    return short


def kernels_of(report: str, file: str) -> list[Kernel]:
    """The kernels in the output of `ptxas -v`. Numbers follow the name of the entry they belong to."""
    kernels: list[Kernel] = []
    for line in report.splitlines():
        if match := ENTRY.search(line):
            kernels.append(Kernel(file, match[1]))
        elif (match := SPILLS.search(line)) and kernels:
            kernels[-1].stack = int(match[1])
            kernels[-1].spill = int(match[2]) + int(match[3])
        elif (match := USED.search(line)) and kernels:
            kernels[-1].registers = int(match[1])
            kernels[-1].shared = int(shared[1]) if (shared := SHARED.search(line)) else 0
    return kernels


def compile_report(nvcc: str, arch: str, source: Path) -> list[Kernel]:
    command = [nvcc, *FLAGS, f"-arch=sm_{arch}", f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{source.name} does not compile:\n{done.stdout}{done.stderr}")
    return kernels_of(done.stdout + done.stderr, source.name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="90")
    parser.add_argument("--nvcc", default="nvcc")
    options = parser.parse_args()
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(lambda source: compile_report(options.nvcc, options.arch, source), sources))
    kernels = [kernel for report in reports for kernel in report]
    if not kernels:
        sys.exit("no kernel found")
    for kernel, name in zip(kernels, demangle([k.name for k in kernels]), strict=True):
        kernel.name = name
    print(f"sm_{options.arch}; stack, spill and shared in bytes")
    print(f"{'registers':>9} {'stack':>6} {'spill':>6} {'shared':>7}  kernel")
    for k in kernels:
        print(f"{k.registers:>9} {k.stack:>6} {k.spill:>6} {k.shared:>7}  {k.file}: {k.name}")
    if spilling := [k.name for k in kernels if k.spill]:
        sys.exit(f"these kernels spill registers: {', '.join(spilling)}")
    print(f"{len(kernels)} kernels, no spills")


if __name__ == "__main__":
    main()
