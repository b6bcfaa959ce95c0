"""Train the same model on the same text with several optimizers, and draw their curves together.

    python examples/compare_optimizers.py --out docs/images

Every run starts from the same weights and sees the same batches. Each optimizer has its own default learning
rate. Writes ``compare_losses.png`` and ``compare_optimizers.md`` to --out; the runs stay in --runs.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from rich.console import Console

from frugalore.pretrain import REGISTRY, Summary, config, pretrain
from frugalore.pretrain.report import draw_losses


def main() -> None:
    arguments = parse()
    values = {**config.load(arguments.config), "seed": arguments.seed, "data": arguments.data}
    if arguments.steps:
        values["steps"] = arguments.steps
    summaries = {}
    for name in arguments.optimizers:
        chosen = config.from_dict({**values, "optimizer": name})
        summaries[name] = pretrain(chosen, arguments.runs / name, overwrite=True, console=Console())
    if not all(summary.finished for summary in summaries.values()):
        raise SystemExit("a run was stopped, so there is nothing to compare")
    arguments.out.mkdir(parents=True, exist_ok=True)
    first = next(iter(summaries.values()))
    title = f"{first.parameters / 1e6:.1f} M parameters, seed {arguments.seed}"
    rows = {name: summary.rows for name, summary in summaries.items()}
    draw_losses(arguments.out / "compare_losses.png", rows, title)
    (arguments.out / "compare_optimizers.md").write_text(table(summaries), "utf-8")
    print(table(summaries))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the plot and the table")
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="folder for the runs")
    parser.add_argument("--optimizers", nargs="+", default=sorted(REGISTRY), choices=sorted(REGISTRY))
    parser.add_argument("--config", default="demo", help="preset or file")
    parser.add_argument("--data", help="file or folder of text (default: the Python standard library)")
    parser.add_argument("--steps", type=int, help="default: the configuration's")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def table(summaries: dict[str, Summary]) -> str:
    """Loss, bytes of weights, gradients, state and basis, and time, in Markdown."""
    lines = [
        "| optimizer | learning rate | validation loss, nats/byte | weights | gradients | state | basis "
        "| total, MiB | of AdamW fp32 | step, s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, summary in summaries.items():
        size = summary.measured
        parts = (size.weights, size.gradients, size.state, size.basis, size.total)
        mebibytes = " | ".join(f"{part / 2**20:.2f}" for part in parts)
        seconds = statistics.median(row["seconds"] for row in summary.rows)
        lines.append(
            f"| {name} | {summary.config.lr:g} | {summary.validation_loss:.4f} | {mebibytes} "
            f"| {size.total / summary.adamw.total:.0%} | {seconds:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
