"""One ``optimizer.step()`` of FrugalAdamW beside the published FRUGAL and torch's AdamW, in one run.

    git clone https://github.com/fzmushko/FRUGAL && pip install transformers
    python bench/frugal_beside_official.py --frugal FRUGAL --threads 1 2 --out bench/results/cpu

The weights, gradients and way of timing are those of ``step_beside_official.py``; density 0.25. In an
ordinary step nobody chooses a subspace anew; steps that do are timed apart, with a gap of one step. Blocks
are a quarter of the tensors, so where tensors differ in size their state differs between periods.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import frugalore
import official
from frugalore.pretrain.checkpoint import write_text
from step_beside_official import NEVER, SHAPES, Contender, adamw, parameters, seconds

DENSITY = 0.25
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
BASE = "torch AdamW, fused"
#: Whose time is shown as a multiple of each contender's.
PEERS = {
    "torch AdamW, foreach": "foreach",
    "official FRUGAL, block": "official block",
    "official FRUGAL, columns": "official columns",
}

#: From shapes, gradients and the steps between two choices.
Make = Callable[[list[tuple[int, int]], list[Tensor], int], Contender]


def ours(
    shapes, grads: list[Tensor], gap: int, *, int8: bool = False, rounding: str = "stochastic", **options
) -> Contender:
    model = nn.Sequential(*(nn.Linear(n, m, bias=False, dtype=grads[0].dtype) for m, n in shapes))
    optimizer_options = {"rounding": rounding, "state_bits": 8 if int8 else 32}
    if int8:
        frugalore.quantize_(model, "all-linear")
    options = {"density": DENSITY, "update_gap": gap} | options
    groups = frugalore.param_groups(model, "all-linear", **options)
    optimizer = frugalore.FrugalAdamW(groups, lr=1e-3, seed=0, **optimizer_options)
    for weight, grad in zip(model.parameters(), grads, strict=True):
        weight.grad = grad
    return Contender(optimizer.step, optimizer, list(model.parameters()))


def published(shapes, grads: list[Tensor], gap: int, *, frugal: official.Frugal, kind: str) -> Contender:
    weights = parameters(shapes, grads)
    options = {"density": DENSITY, "update_gap": gap, "weight_decay": 0.0}
    if kind == "block":
        options["block_order"] = "descending"
    optimizer = frugal.adamw(weights, [], 1e-3, kind=kind, **options)
    return Contender(optimizer.step, optimizer, weights)


def torch_foreach(shapes, grads: list[Tensor], gap: int) -> Contender:
    weights = parameters(shapes, grads)
    optimizer = torch.optim.AdamW(weights, lr=1e-3, foreach=True)
    return Contender(optimizer.step, optimizer, weights)


def contenders(frugal: official.Frugal | None, dtype: str) -> dict[str, Make]:
    """All of them, by their names in the tables; without a clone those of the published code are left out."""
    made: dict[str, Make] = {
        BASE: lambda shapes, grads, gap: adamw(shapes, grads),
        "torch AdamW, foreach": torch_foreach,
    }
    if frugal is not None:
        made["official FRUGAL, block"] = partial(published, frugal=frugal, kind="block")
        made["official FRUGAL, columns"] = partial(published, frugal=frugal, kind="columns")
    for subspace in ("columns", "rows", "randk", "blocks"):
        made[f"**FrugalAdamW, {subspace}**"] = partial(ours, subspace=subspace)
    made["**FrugalAdamW, density 0**"] = partial(ours, density=0.0)
    if dtype != "float32":  # rounds as the published code does
        for subspace in ("columns", "blocks"):
            name = f"**FrugalAdamW, {subspace}, nearest rounding**"
            made[name] = partial(ours, subspace=subspace, rounding="nearest")
    made["**FrugalAdamW, columns, INT8 weights, 8-bit state**"] = partial(ours, int8=True, subspace="columns")
    return made


def never_switches(name: str) -> bool:
    return name.startswith("torch") or "density 0" in name


def samples_of(made: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of a step in every round; one round steps each contender once, after two steps to warm up."""
    for _ in range(2):
        for contender in made.values():
            contender.step()
    samples: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, contender in made.items():
            samples[name].append(seconds(contender.step))
    return samples


def table(
    title: str, made: dict[str, Contender], samples: dict[str, list[float]], elements: int
) -> list[str]:
    """Rows with the median time, its ratios to those of peers in the same round, and the bytes."""
    peers = [name for name in PEERS if name in samples]
    against = "".join(f" {PEERS[peer]} : it |" for peer in peers)
    lines = [
        f"| {title} | ms | x fused AdamW (min–max) |{against} state, B/parameter | weights, B/parameter |",
        "|---|--:|--:|" + "--:|" * len(peers) + "--:|--:|",
    ]
    for name, times in samples.items():
        ratios = [a / b for a, b in zip(times, samples[BASE], strict=True)]
        digits = 0 if statistics.median(times) >= 0.01 else 2
        row = f"| {name} | {statistics.median(times) * 1e3:.{digits}f} | {statistics.median(ratios):.2f} "
        row += f"({min(ratios):.2f}–{max(ratios):.2f}) |"
        for peer in peers:
            faster = statistics.median(a / b for a, b in zip(samples[peer], times, strict=True))
            row += f" {faster:.1f} |"
        state, weights = made[name].bytes_per_parameter(elements)
        lines.append(f"{row} {state:.3f} | {weights:.3f} |")
    return lines


def measure(threads: int, dtype: str, arguments: argparse.Namespace) -> list[str]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shapes = SHAPES[arguments.sizes]
    elements = sum(m * n for m, n in shapes)
    grads = [(torch.randn(shape) * 0.01).to(DTYPES[dtype]) for shape in shapes]
    frugal = official.Frugal(arguments.frugal) if arguments.frugal else None
    wanted = {
        name: make
        for name, make in contenders(frugal, dtype).items()
        if name == BASE or not arguments.only or any(part in name for part in arguments.only)
    }
    lines = [
        f"{dtype} weights and gradients; threads: {threads}; {elements / 1e6:.1f} M parameters; density "
        f"{DENSITY}; {arguments.rounds} rounds.",
        "",
    ]
    for title, gap in (("ordinary step", NEVER), ("step that chooses anew", 1)):
        made = {
            name: make(shapes, grads, gap)
            for name, make in wanted.items()
            if gap == NEVER or name == BASE or not never_switches(name)
        }
        lines += [*table(title, made, samples_of(made, arguments.rounds), elements), ""]
        del made
    print("\n".join(lines), flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frugal", type=Path, help="a clone of fzmushko/FRUGAL")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", choices=tuple(DTYPES), nargs="+", default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", choices=tuple(SHAPES), default="full")
    parser.add_argument("--only", nargs="+", help="parts of contenders' names; the base is always there")
    parser.add_argument("--out", type=Path, help="folder for frugal_beside_official.md")
    arguments = parser.parse_args()
    lines = [f"`{' '.join(['python', *sys.argv])}`", ""]
    for threads in arguments.threads:
        for dtype in arguments.dtypes:
            lines += measure(threads, dtype, arguments)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_text(arguments.out / "frugal_beside_official.md", "\n".join(lines))


if __name__ == "__main__":
    main()
