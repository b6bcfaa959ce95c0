"""What a finished run leaves: a memory table, ``summary.json`` and ``loss.png``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn

from frugalore.pretrain import memory
from frugalore.pretrain.checkpoint import write_text
from frugalore.pretrain.config import PretrainConfig
from frugalore.pretrain.memory import Bytes
from frugalore.target_modules import matching_linears

SUMMARY = "summary.json"
PLOT = "loss.png"


@dataclass(frozen=True)
class Summary:
    """The result of a run."""

    out: Path
    config: PretrainConfig
    step: int
    finished: bool  #: whether all steps of the configuration were done
    skipped: int  #: steps without an update, for a gradient that was not finite
    parameters: int
    validation_loss: float  #: nats per byte; NaN for a run that was stopped early
    measured: Bytes
    adamw: Bytes  #: computed, float32
    galore: Bytes  #: computed, float32
    statistics: dict[str, dict[str, int]]  #: by parameter, from an optimizer that counts; else empty
    rows: list[dict[str, Any]]  #: the metrics of every step

    def to_dict(self) -> dict[str, Any]:
        names = ("step", "finished", "skipped", "parameters", "validation_loss", "statistics")
        plain = {name: getattr(self, name) for name in names}
        sizes = {key: asdict(getattr(self, key)) for key in ("measured", "adamw", "galore")}
        return {**plain, "bytes": sizes, "config": self.config.to_dict()}


def computed_bytes(model: nn.Module, config: PretrainConfig) -> tuple[Bytes, Bytes]:
    """AdamW and GaLore for this model's shapes; :mod:`frugalore.pretrain.memory` has the formulas."""
    targets = [layer.weight for _, layer in matching_linears(model, config.target_modules)]
    chosen = {id(weight) for weight in targets}
    others = [tuple(p.shape) for p in model.parameters() if id(p) not in chosen]
    shapes = [tuple(weight.shape) for weight in targets]
    return memory.adamw_bytes(others + shapes), memory.galore_bytes(shapes, others, config.rank)


def write(summary: Summary) -> None:
    """``summary.json`` and ``loss.png`` in the run's folder."""
    write_text(summary.out / SUMMARY, json.dumps(summary.to_dict(), indent=1) + "\n")
    title = f"{summary.config.optimizer}, {summary.parameters / 1e6:.1f} M parameters"
    draw_losses(summary.out / PLOT, {"": summary.rows}, title)


def show(summary: Summary, console: Console) -> None:
    """The table and the result, on the console."""
    console.print(memory_table(summary))
    refreshes = [counts["refreshes"] for counts in summary.statistics.values() if "refreshes" in counts]
    if refreshes:
        console.print(
            f"subspaces of {len(refreshes)} matrices refreshed {sum(refreshes)} times in {summary.step} steps"
        )
    if summary.skipped:
        console.print(f"{summary.skipped} steps skipped: the gradient was not finite")
    console.print(f"validation loss: {summary.validation_loss:.4f} nats/byte after {summary.step} steps")
    console.print(f"written to {summary.out}: {PLOT}, metrics.jsonl, {SUMMARY} and the checkpoint")


def memory_table(summary: Summary) -> Table:
    """Bytes of this run as measured, beside AdamW's and GaLore's as computed."""
    table = Table(
        title=f"Memory of training {summary.parameters:,} parameters, MiB (rank {summary.config.rank})"
    )
    table.add_column("", no_wrap=True)
    for name in ("weights", "gradients", "state", "basis", "total", "share"):
        table.add_column(name, justify="right")
    lines = (
        (f"{summary.config.optimizer}, measured", summary.measured),
        ("AdamW fp32, computed", summary.adamw),
        ("GaLore fp32, computed", summary.galore),
    )
    for name, size in lines:
        parts = (size.weights, size.gradients, size.state, size.basis, size.total)
        share = f"{size.total / summary.adamw.total:.0%}"
        table.add_row(name, *(f"{part / 2**20:.2f}" for part in parts), share)
    return table


def draw_losses(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> None:
    """Training loss (smoothed line) and validation loss (dots) of one or more runs, by step."""
    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for name, rows in runs.items():
        prefix = f"{name}: " if name else ""
        (line,) = axes.plot(*_smoothed(rows), label=f"{prefix}training")
        validated = [row for row in rows if "validation_loss" in row]
        axes.plot(
            [row["step"] for row in validated],
            [row["validation_loss"] for row in validated],
            "o",
            color=line.get_color(),
            label=f"{prefix}validation",
        )
    axes.set(xlabel="step", ylabel="loss, nats per byte", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def _smoothed(rows: Sequence[Mapping[str, Any]], keep: float = 0.9) -> tuple[list[int], list[float]]:
    """An exponential mean, corrected for its start."""
    mean, weight, values = 0.0, 0.0, []
    for row in rows:
        mean = keep * mean + (1 - keep) * row["loss"]
        weight = keep * weight + (1 - keep)
        values.append(mean / weight)
    return [row["step"] for row in rows], values
