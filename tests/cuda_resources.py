"""Registers, stack, spills and shared memory of every CUDA kernel, as ptxas reports them; needs no GPU.

    python tests/cuda_resources.py [--arch 80 90 100 120] [--nvcc nvcc] [--write]

Fails if a kernel spills registers to local memory, does not compile without warnings, or differs from the
committed table ``cuda_resources.csv``, which ``--write`` makes anew. The table says with which nvcc it was
made; another version allocates registers differently, so it is not compared then.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_suffix(".csv")
ARCHITECTURES = ("80", "90", "100", "120")
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


def kernels(nvcc: str, arch: str) -> list[Kernel]:
    """All kernels of the library for one architecture, with readable names."""
    sources = sorted((ROOT / "csrc/cuda").glob("*.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = list(pool.map(lambda source: compile_report(nvcc, arch, source), sources))
    found = [kernel for report in reports for kernel in report]
    if not found:
        sys.exit("no kernel found")
    for kernel, name in zip(found, demangle([k.name for k in found]), strict=True):
        kernel.name = name
    return found


def show(arch: str, found: list[Kernel]) -> None:
    print(f"sm_{arch}; stack, spill and shared in bytes")
    print(f"{'registers':>9} {'stack':>6} {'spill':>6} {'shared':>7}  kernel")
    for k in found:
        print(f"{k.registers:>9} {k.stack:>6} {k.spill:>6} {k.shared:>7}  {k.file}: {k.name}")


Rows = dict[tuple[str, str, str], str]


def rows_of(arch: str, found: list[Kernel]) -> Rows:
    """``registers / stack bytes / shared bytes`` by architecture, file and kernel."""
    return {(f"sm_{arch}", k.file, k.name): f"{k.registers} / {k.stack} / {k.shared}" for k in found}


def version_of(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V(\d+\.\d+\.\d+)", text)[1]


def write_table(path: Path, version: str, rows: Rows) -> None:
    """One line a kernel, one column an architecture."""
    architectures = sorted({key[0] for key in rows}, key=lambda name: int(name[3:]))
    kernels = sorted({key[1:] for key in rows})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([f"nvcc {version}", "registers / stack / shared bytes", *architectures])
        for kernel in kernels:
            writer.writerow([*kernel, *(rows.get((arch, *kernel), "") for arch in architectures)])


def read_table(path: Path) -> tuple[str, Rows]:
    with path.open(newline="", encoding="utf-8") as file:
        head, *lines = list(csv.reader(file))
    rows = {(arch, *line[:2]): text for line in lines for arch, text in zip(head[2:], line[2:], strict=True)}
    return head[0].removeprefix("nvcc "), {key: text for key, text in rows.items() if text}


def differences(expected: Rows, found: Rows) -> list[str]:
    """What differs, for the architectures that were compiled."""
    architectures = {key[0] for key in found}
    keys = sorted(found.keys() | {key for key in expected if key[0] in architectures})
    return [
        f"{' '.join(key)}: {expected.get(key, 'no entry')} in the table, {found.get(key, 'no kernel')} now"
        for key in keys
        if expected.get(key) != found.get(key)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--write", action="store_true", help=f"make {TABLE.name} anew")
    options = parser.parse_args()
    rows: Rows = {}
    spilling: list[str] = []
    for arch in options.arch:
        found = kernels(options.nvcc, arch)
        show(arch, found)
        rows |= rows_of(arch, found)
        spilling += [f"{k.name} (sm_{arch})" for k in found if k.spill]
    if spilling:
        sys.exit(f"these kernels spill registers: {', '.join(spilling)}")
    print(f"{len(rows)} kernels, no spills")
    version = version_of(options.nvcc)
    if options.write:
        write_table(TABLE, version, rows)
        return
    made_with, expected = read_table(TABLE)
    if made_with != version:
        print(f"{TABLE.name} was made with nvcc {made_with}, this is {version}: not compared")
    elif different := differences(expected, rows):
        sys.exit("\n".join([*different, f"if this is meant: python {Path(__file__).name} --write"]))
    else:
        print(f"as in {TABLE.name}, nvcc {version}")


if __name__ == "__main__":
    main()
