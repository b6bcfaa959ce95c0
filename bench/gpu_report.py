"""The machine, the summary and the plot of ``gpu_check``."""

from __future__ import annotations

import csv
import platform
import re
import subprocess
from pathlib import Path

_TARGETS = (0.85, 0.70)  # without and with randomness or map search; docs/architecture.md


def describe_machine() -> dict[str, str]:
    """What the results depend on. ``arch`` is there only when torch sees a card."""
    machine = {"python": platform.python_version()}
    try:
        import torch
    except ImportError as error:
        machine["cuda"] = f"torch cannot be imported ({error})"
        return machine
    machine["torch"] = torch.__version__
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        machine["cuda"] = f"torch sees no CUDA device ({build})"
        return machine
    properties = torch.cuda.get_device_properties(0)
    major, minor = torch.cuda.get_device_capability(0)
    machine["arch"] = f"{major}{minor}"
    machine["cuda"] = f"CUDA {torch.version.cuda}"
    machine["device"] = (
        f"{properties.name}, compute capability {major}.{minor}, "
        f"{properties.multi_processor_count} multiprocessors, {properties.total_memory / 2**30:.0f} GiB, "
        f"{properties.L2_cache_size / 2**20:.0f} MiB L2"
    )
    machine["driver"] = _driver()
    return machine


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (found.stdout.strip().splitlines() or ["unknown"])[0]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The lines of ``ops.csv``; none where it was not written."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def outcome_table(outcomes: dict[str, tuple[str, str, str]]) -> str:
    """Stage, pass or fail, time and detail, in Markdown."""
    lines = ["| stage | result | time | detail |", "|---|---|---|---|"]
    for stage, cells in outcomes.items():
        status, seconds, detail = (" ".join(cell.replace("|", "/").split()) for cell in cells)
        lines.append(f"| {stage} | {status} | {seconds} | {detail} |")
    return "\n".join(lines)


def earlier_outcomes(path: Path, commit: str) -> dict[str, tuple[str, str, str]]:
    """Stage results of an earlier call, if its summary is for the same commit."""
    if not path.is_file():
        return {}
    text = path.read_text()
    if f"| commit | {commit} |" not in text:
        return {}
    row = re.compile(r"^\| (\w+) \| (pass|fail|not run) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)
    return {stage: (status, seconds, detail) for stage, status, seconds, detail in row.findall(text)}


def _ops_table(rows: list[dict[str, str]]) -> str:
    lines = [
        "| op | shape | dtype | MB | us | p20-p80 | host us | GB/s | of copy | of roofline "
        "| x reference | x torch | x bitsandbytes | state MB | torch's |",
        "|---|---|---|" + "---:|" * 12,
    ]

    def number(row, column: str, form: str, scale: float = 1.0) -> str:
        return format(float(row[column]) * scale, form) if row[column] else ""

    for row in rows:
        cells = [row["op"], row["shape"], row["dtype"], number(row, "bytes", ".4g", 1e-6)]
        cells += [number(row, "median_us", ".4g")]
        cells += [f"{number(row, 'p20_us', '.4g')}-{number(row, 'p80_us', '.4g')}"]
        cells += [number(row, "call_us", ".3g"), number(row, "gb_s", ".4g")]
        cells += [number(row, column, ".0%") for column in ("share_of_copy", "share_of_roofline")]
        ratios = ("ratio_reference", "ratio_torch", "ratio_bitsandbytes")
        cells += [number(row, column, ".3g") for column in ratios]
        cells += [number(row, column, ".4g", 1e-6) for column in ("state_bytes", "torch_state_bytes")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_summary(results: Path, commit: str, machine: dict[str, str], outcomes: str) -> None:
    """``summary.md``: the machine, the stages, and the ops measured for this commit."""
    parts = ["# GPU check\n", "| | |", "|---|---|", f"| commit | {commit} |"]
    parts += [f"| {key} | {value.replace('|', '/')} |" for key, value in machine.items() if key != "arch"]
    parts += ["", outcomes, ""]
    rows = [row for row in read_rows(results / "ops.csv") if row["commit"] == commit]
    if rows:
        parts += [f"Largest copy: {float(rows[0]['peak_copy_gb_s']):.4g} GB/s, read and written.", ""]
        parts += [_ops_table(rows), ""]
    (results / "summary.md").write_text("\n".join(parts))


def plot(rows: list[dict[str, str]], path: Path) -> bool:
    """Share of the roofline per case; ``False`` where matplotlib cannot be imported or nothing was timed."""
    try:
        import matplotlib
    except ImportError:
        return False
    if not rows:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    families = list(dict.fromkeys(row["family"] for row in rows))
    colours = {name: f"C{index % 10}" for index, name in enumerate(families)}
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.24 * len(rows)))
    names = [f"{row['op']}  {row['shape']}  {row['dtype']}" for row in rows]
    shares = [float(row["share_of_roofline"]) for row in rows]
    positions = range(len(rows))
    axes.barh(positions, shares, color=[colours[row["family"]] for row in rows])
    axes.set_yticks(positions, names, fontsize=7)
    axes.invert_yaxis()
    for target in (*_TARGETS, 1.0):
        axes.axvline(target, color="0.4", linewidth=0.8, linestyle=":")
    axes.set_xlabel("share of the roofline (largest copy and matrix product of the same run)")
    axes.set_title(f"{rows[0]['device_name']}, commit {rows[0]['commit']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True
