"""A study of training quality: methods on the demo's data, tuned and paired by seed, as one table and a plot.

The demo's data and schedule: LLaMA of hidden size 256 with 4 layers, sequence 256, batch 16, 300 steps, rank
64, gap 50, scale 0.25, clipping at 1. Each tuned method runs at three learning rates with seed 0 and at the
best of them with the other seeds; a variant runs at the learning rate of the method that it varies. A seed
decides the initial weights, the batches and the rounding, so methods are paired by seed.

Every run uses one thread, so its result does not depend on --jobs. Finished runs are kept in --runs and not
repeated: the command can be stopped and started again, and ends with the table and the plot.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import frugalore
import official
from frugalore.pretrain.checkpoint import write_text
from frugalore.pretrain.config import PRESETS, PretrainConfig, from_dict
from frugalore.pretrain.data import Batches, load_corpus
from frugalore.pretrain.loop import Trainer
from frugalore.pretrain.model import build_model

SEEDS = (0, 1, 2)
BATCH_SIZE = 16


@dataclass(frozen=True)
class Method:
    """One row of the table. ``options`` are those of our groups, ``like`` gives the rate."""

    name: str
    optimizer: str  #: "ours", "adamw" (torch's), "badam" (ours), "galore" or "qgalore" (published)
    dtype: str
    rates: tuple[float, ...] = ()  #: tuned over these; or
    like: str = ""  #: the method whose rate is taken
    rank: int = 64
    gap: int = 50
    rounding: str = "stochastic"
    int8: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    factor: float = 1.0  #: of the rate of `like`
    preset: str = "FusedQGaLore"  #: of ours
    state_bits: int | None = None  #: default: the preset's
    density: float | None = None  #: of FRUGAL's subspace, in place of the rank
    target_modules: tuple[str, ...] = ("attn", "mlp")


@dataclass(frozen=True)
class Study:
    """The rows of a table, and the pairs of them whose difference is shown."""

    name: str
    about: str
    methods: dict[str, Method]
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Run:
    method: Method
    lr: float
    seed: int
    steps: int
    batch_size: int

    def path(self, folder: Path) -> Path:
        label = "".join(c if c.isalnum() else "-" for c in self.method.name)
        size = "" if self.batch_size == BATCH_SIZE else f"-batch{self.batch_size}"
        return folder / f"{label}-lr{self.lr:g}-seed{self.seed}-steps{self.steps}{size}.json"


def of(arguments: argparse.Namespace, method: Method, lr: float, seed: int) -> Run:
    return Run(method, lr, seed, arguments.steps, arguments.batch_size)


def configuration(run: Run) -> PretrainConfig:
    method = run.method
    return from_dict(
        {
            **PRESETS["demo"],
            "optimizer": "qgalore",
            "lr": run.lr,
            "seed": run.seed,
            "steps": run.steps,
            "batch_size": run.batch_size,
            "rank": method.rank,
            "update_proj_gap": method.gap,
            "dtype": method.dtype,
            "device": "cpu",
            "validation_batches": 16,
            "target_modules": method.target_modules,
        }
    )


def build(method: Method, model: torch.nn.Module, config: PretrainConfig, repository: Path | None):
    shape = {"rank": config.rank, "scale": config.scale}
    if method.optimizer == "galore":
        return official.galore_adamw(official.llama_groups(model, gap=method.gap, **shape), config.lr)
    if method.optimizer == "qgalore":
        published = official.QGaLore(repository)
        published.quantize_(model, method.rounding)
        return published.adamw8bit(official.llama_int8_groups(model, gap=method.gap, **shape), config.lr)
    if method.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.0)
    if method.optimizer == "badam":
        always = ("embed", "norm", "lm_head")
        options = {"switch_block_every": method.gap, "active_modules": always, **method.options}
        return frugalore.BAdam(model.named_parameters(), config.lr, seed=config.seed, **options)
    if method.int8:
        frugalore.quantize_(model, config.target_modules)
    if method.density is None:
        of_group = {"update_proj_gap": method.gap, **shape}
    else:
        of_group = {"update_gap": method.gap, "density": method.density}
    groups = frugalore.param_groups(model, method.target_modules, **of_group, **method.options)
    options = {} if method.state_bits is None else {"state_bits": method.state_bits}
    preset = getattr(frugalore, method.preset)
    return preset(groups, lr=config.lr, seed=config.seed, rounding=method.rounding, **options)


def refreshes(optimizer: torch.optim.Optimizer, steps: int, gap: int) -> float:
    """Of all matrices, as a share of what the fixed gap makes."""
    counts = []
    for state in optimizer.state.values():
        if "refreshes" in state:
            counts.append(state["refreshes"])
        elif hasattr(state.get("projector"), "svd_count"):
            counts.append(state["projector"].svd_count)
    return statistics.mean(counts) / -(-steps // gap) if counts else 1.0


def train(run: Run, folder: Path, repository: Path | None) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    method, config = run.method, configuration(run)
    corpus = load_corpus(config.data, config.sequence_length)
    model = build_model(config)
    optimizer = build(method, model, config, repository)
    batches = Batches(corpus, config.batch_size, config.sequence_length, config.seed)
    trainer = Trainer(config, model, optimizer, batches, torch.device("cpu"))
    losses, validation = [], {}
    for step in range(1, run.steps + 1):
        losses.append(trainer.step()["loss"])
        if step % 50 == 0 or step == run.steps:
            validation[step] = trainer.evaluate()
    result = {
        "method": run.method.name,
        "lr": run.lr,
        "seed": run.seed,
        "loss": validation[run.steps],
        "refreshes": refreshes(optimizer, run.steps, method.gap),
        "validation": validation,
        "training": losses,
    }
    write_text(run.path(folder), json.dumps(result) + "\n")


def result(run: Run, folder: Path) -> dict[str, Any] | None:
    path = run.path(folder)
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def execute(runs: list[Run], arguments: argparse.Namespace) -> None:
    """Those that are not there yet, in processes of their own, --jobs at a time."""

    def one(run: Run) -> None:
        command = [sys.executable, sys.argv[0], "--one", run.method.name, str(run.lr), str(run.seed)]
        command += ["--steps", str(run.steps), "--runs", str(arguments.runs)]
        command += ["--batch-size", str(run.batch_size)]
        if arguments.qgalore:
            command += ["--qgalore", str(arguments.qgalore)]
        subprocess.run(command, check=True)
        done = result(run, arguments.runs)
        print(f"{run.method.name}, lr {run.lr:g}, seed {run.seed}: {done['loss']:.4f}", flush=True)

    missing = [run for run in runs if result(run, arguments.runs) is None]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(one, missing))


def best_rate(method: Method, arguments: argparse.Namespace) -> float:
    if method.like:
        return best_rate(arguments.study.methods[method.like], arguments) * method.factor
    losses = {lr: result(of(arguments, method, lr, SEEDS[0]), arguments.runs)["loss"] for lr in method.rates}
    return min(losses, key=losses.get)


def table(methods: list[Method], arguments: argparse.Namespace) -> str:
    """Losses by seed, and the differences paired by seed that the method is judged by."""
    lines = [
        "| method | learning rate | validation loss, nats/byte | by seed | refreshes, of the fixed gap's |",
        "|---|--:|--:|--:|--:|",
    ]
    for method in methods:
        found = final_results(method, arguments)
        losses = [entry["loss"] for entry in found]
        lines.append(
            f"| {method.name} | {found[0]['lr']:g} | {statistics.mean(losses):.4f} "
            f"| {', '.join(f'{loss:.4f}' for loss in losses)} "
            f"| {statistics.mean(entry['refreshes'] for entry in found):.0%} |"
        )
    if any(method.rates for method in methods):
        lines += ["", "Tuning, seed 0:", "", "| method | learning rate: loss |", "|---|---|"]
    for method in methods:
        if method.rates:
            losses = (
                (lr, result(of(arguments, method, lr, SEEDS[0]), arguments.runs)["loss"])
                for lr in method.rates
            )
            lines.append(
                f"| {method.name} | " + ", ".join(f"{lr:g}: {loss:.4f}" for lr, loss in losses) + " |"
            )
    names = {method.name for method in methods}
    pairs = [pair for pair in arguments.study.pairs if set(pair) <= names]
    lines += ["", "Paired by seed (positive: the first is worse):", ""]
    lines += ["| | mean difference | by seed |", "|---|--:|--:|"]
    for first, second in pairs:
        ours, theirs = (final_results(arguments.study.methods[name], arguments) for name in (first, second))
        differences = [a["loss"] - b["loss"] for a, b in zip(ours, theirs, strict=True)]
        lines.append(
            f"| {first} − {second} | {statistics.mean(differences):+.4f} "
            f"| {', '.join(f'{d:+.4f}' for d in differences)} |"
        )
    return "\n".join(lines) + "\n"


def final_results(method: Method, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    lr = best_rate(method, arguments)
    return [result(of(arguments, method, lr, seed), arguments.runs) for seed in arguments.seeds]


def draw(methods: list[Method], arguments: argparse.Namespace, path: Path) -> None:
    """Validation loss by step, mean over the seeds; the tuned methods, and the variants beside them."""
    figure = Figure(figsize=(11, 4.5), dpi=100, layout="constrained")
    tuned, variants = figure.subplots(1, 2, sharey=False)
    for method in methods:
        axes = tuned if method.rates else variants
        found = final_results(method, arguments)
        steps = sorted(int(step) for step in found[0]["validation"])
        means = [statistics.mean(entry["validation"][str(step)] for entry in found) for step in steps]
        axes.plot(steps, means, marker="o", label=method.name)
    for axes, title in ((tuned, "tuned methods"), (variants, "variants")):
        axes.set(xlabel="step", ylabel="validation loss, nats per byte", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path)


def main(study: Study) -> None:
    arguments = parse(study)
    if arguments.one:
        name, lr, seed = arguments.one
        train(of(arguments, study.methods[name], float(lr), int(seed)), arguments.runs, arguments.qgalore)
        return
    arguments.runs.mkdir(parents=True, exist_ok=True)
    methods = [study.methods[name] for name in arguments.methods]
    if any(method.optimizer == "qgalore" for method in methods) and not arguments.qgalore:
        raise SystemExit("--qgalore: a clone of VITA-Group/Q-GaLore expected for the official Q-GaLore")
    tuned = [method for method in methods if method.rates]
    execute([of(arguments, m, lr, SEEDS[0]) for m in tuned for lr in m.rates], arguments)
    finals = [of(arguments, m, best_rate(m, arguments), s) for m in methods for s in arguments.seeds]
    execute(finals, arguments)
    text = f"`{' '.join(['python', *sys.argv])}`\n\n" + table(methods, arguments)
    print(text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_text(arguments.out / f"{study.name}.md", text)
        draw(methods, arguments, arguments.out / f"{study.name}.png")


def parse(study: Study) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=study.about)
    parser.add_argument("--qgalore", type=Path, help="a clone of VITA-Group/Q-GaLore")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs") / study.name, help="where finished runs are kept"
    )
    parser.add_argument("--out", type=Path, help="folder for the table and the plot")
    parser.add_argument("--methods", nargs="+", default=list(study.methods), choices=list(study.methods))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="sequences a step")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "LR", "SEED"), help=argparse.SUPPRESS)
    return parser.parse_args(namespace=argparse.Namespace(study=study))
