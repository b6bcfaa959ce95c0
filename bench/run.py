"""Benchmark of the fused ops: ``python bench/run.py [--device cuda] [--ops int4,adamw] [--out DIR]``.

Prints a table and, with ``--out``, writes ``ops.csv`` and the table in ``ops.md``. What the columns mean:
``bench/harness.py``.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

import torch

import cases
import frugalore
from frugalore._build import with_cuda
from harness import PEERS, Harness, without_reference
from table import CsvWriter, Row, markdown, print_table


def _list_of(choices: tuple[str, ...], what: str):
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(name for name in text.split(",") if name)
        for name in names:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"unknown {what} {name!r}; there are {', '.join(choices)}")
        return names

    return parse


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--ops",
        type=_list_of(cases.FAMILIES, "family"),
        default=cases.FAMILIES,
        help=f"comma-separated families: {', '.join(cases.FAMILIES)} (default: all)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--sizes", choices=("small", "full"), default="full")
    parser.add_argument("--seconds", type=float, default=2.0, help="measuring time a case aims at")
    parser.add_argument(
        "--peers",
        type=_list_of(PEERS, "peer"),
        default=("torch", "bitsandbytes", "numpy"),
        help="peers to time where importable (default: torch,bitsandbytes,numpy; '' for none)",
    )
    parser.add_argument(
        "--only", metavar="SHAPE", help="only cases whose shape contains this, e.g. 4096x4096"
    )
    parser.add_argument("--no-reference", action="store_true", help="do not time the plain-torch reference")
    parser.add_argument("--out", type=Path, help="folder for ops.csv and ops.md")
    parser.add_argument("--commit", default="unknown", help="recorded in the CSV")
    arguments = parser.parse_args(argv)
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads: a positive number expected, got {arguments.threads}")
    if arguments.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("--device cuda: torch sees no CUDA device")
        if not with_cuda():
            parser.error("--device cuda: this build of frugalore has no CUDA kernels")
    return arguments


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    small = arguments.sizes == "small"
    harness = Harness(
        device,
        peers=arguments.peers,
        seconds=0.0 if small else arguments.seconds,
        cold_bytes=0 if small else None,
        peak_copy_bytes=16 << 20 if small else None,
    )
    where = {
        "device": arguments.device,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "cpu_isa": frugalore.build_info()["cpu_isa"],
        "threads": torch.get_num_threads(),
        "commit": arguments.commit,
        "torch": torch.__version__,
        "frugalore": frugalore.__version__,
    }
    writer = None
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        writer = CsvWriter(arguments.out / "ops.csv")
    rows, notes, failures = [], [], []
    for family in arguments.ops:
        for case in cases.load(family, arguments.sizes):
            if device.type not in case.devices or (arguments.only and arguments.only not in case.shape):
                continue
            if arguments.no_reference:
                case = without_reference(case)
            print(f"{family}: {case.op} {case.shape} {case.dtype}", file=sys.stderr, flush=True)
            try:
                row = Row(
                    family,
                    case.op,
                    case.shape,
                    case.dtype,
                    case.bytes,
                    case.flops,
                    **harness.measure(case),
                    **where,
                )
            except RuntimeError as error:  # out of memory, or a failing kernel: the other cases still run
                failures.append(f"{case.op} {case.shape} {case.dtype}: {error}")
                continue
            rows.append(row)
            notes += [f"{case.op} {case.shape} {case.dtype}, {note}" for note in harness.left_out]
            if writer:
                writer.write(row)
    if writer:
        writer.close()
    title = "{device_name}, {cpu_isa}, {threads} threads, torch {torch}, commit {commit}".format(**where)
    title = f"{title}; largest copy {harness.peak_copy * 1e-9:.4g} GB/s"
    print_table(rows, title)
    if arguments.out:
        command = " ".join(["python", *sys.argv])
        (arguments.out / "ops.md").write_text(f"`{command}`\n\n{markdown(rows, title)}", "utf-8")
    for note in notes:
        print(f"left out: {note}")
    for failure in failures:
        print(f"failed: {failure}")
    return 1 if failures or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
