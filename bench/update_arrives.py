"""Does the update arrive? INT8 weights under small updates: the published arithmetic beside ours.

    python bench/update_arrives.py [--rows 8192] [--trials 24] [--out bench/results/cpu/update_arrives.md]

Published: the rule of Q-GaLore's code (arXiv 2407.08296), everything in bfloat16: dequantise, add the update,
take scale and zero-point anew from the minimum and maximum of the updated group, round stochastically
(up if u < x - floor(x)), clamp. Ours: ``frugalore.ops.int8_stochastic_update_``.

Realised fraction: the displacement along the update over the intended one; 1 is right, 0 means that the
weight stands still. Updates are N(0, 1) times lr, the size of Adam's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from frugalore import ops

LRS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
GROUP = 256


class Groups(NamedTuple):
    codes: Tensor  #: [rows, 256]
    scale: Tensor  #: [rows, 1]
    zero: Tensor  #: [rows, 1]


def value(groups: Groups) -> Tensor:
    """The exact meaning of the stored numbers, whatever their dtype."""
    return (groups.codes.float() - groups.zero.float()) * groups.scale.float()


def published_quantize(w: Tensor, generator: torch.Generator) -> Groups:
    lo, hi = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    scale = (hi - lo).clamp(min=1e-5) / 255
    zero = (-(lo / scale).round()).clamp(0, 255)
    x = w / scale
    up = torch.rand(x.shape, generator=generator, dtype=x.dtype) < x - x.floor()
    return Groups((torch.where(up, x.ceil(), x.floor()) + zero).clamp(0, 255), scale, zero)


def published_step(groups: Groups, update: Tensor, lr: float, seed: int) -> Groups:
    w = (groups.codes - groups.zero) * groups.scale
    return published_quantize(w + (update * lr).bfloat16(), torch.Generator().manual_seed(seed))


def our_step(groups: Groups, update: Tensor, lr: float, seed: int) -> Groups:
    after = Groups(*(part.clone() for part in groups))
    ops.int8_stochastic_update_(*after, update, lr=lr, seed=seed)
    return after


class Method(NamedTuple):
    name: str
    start: Callable[[Tensor], Groups]
    step: Callable[[Groups, Tensor, float, int], Groups]


PUBLISHED = Method(
    "published, bfloat16",
    lambda x: published_quantize(x.bfloat16(), torch.Generator().manual_seed(0)),
    published_step,
)
OURS = Method("frugalore", lambda x: Groups(*ops.int8_quantize(x)), our_step)
METHODS = (PUBLISHED, OURS)


def random_signs(shape, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0


def weights(rows: int, at_extremes: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Groups of N(0, 0.02), and which columns to look at.

    ``at_extremes``: a quarter of each group is its minimum and a quarter its maximum, +-3 sigma, and only
    those are looked at. One minimum and one maximum a group would drown in the noise of rounding.
    """
    x = torch.randn(rows, GROUP, generator=generator) * 0.02
    chosen = torch.ones(GROUP, dtype=torch.bool)
    if at_extremes:
        x.clamp_(-0.06, 0.06)
        x[:, 0::4], x[:, 1::4] = -0.06, 0.06
        chosen[2::4] = chosen[3::4] = False
    return x, chosen


def realised_fraction(
    method: Method, lr: float, rows: int, trials: int, at_extremes: bool
) -> tuple[float, float]:
    """Realised over intended displacement and its standard error, from groups that took one step before."""
    generator = torch.Generator().manual_seed(1)
    x, chosen = weights(rows, at_extremes, generator)
    start = method.step(method.start(x), x.sign(), 1e-3, 1)
    update, before = torch.randn(x.shape, generator=generator), value(start)
    intended = update[:, chosen].square().mean(dtype=torch.float64).item()
    total = squares = 0.0
    for seed in range(trials):
        moved = ((value(method.step(start, update, lr, seed + 2)) - before) * update)[:, chosen] / lr
        total += moved.sum(dtype=torch.float64).item()
        squares += moved.square().sum(dtype=torch.float64).item()
    count = trials * rows * int(chosen.sum())
    mean = total / count
    return mean / intended, ((squares / count - mean**2) / count) ** 0.5 / intended


def changed_by_zero_update(method: Method, rows: int) -> float:
    """Share of codes that an update of zero changes."""
    x, _ = weights(rows, False, torch.Generator().manual_seed(1))
    start = method.step(method.start(x), x.sign(), 1e-3, 1)
    after = method.step(start, torch.zeros_like(x), 1e-3, 2)
    return (after.codes != start.codes).float().mean().item()


def range_after_random_steps(method: Method, rows: int, steps: int, lr: float = 1e-4) -> float:
    """Mean range of a group after steps of random sign, relative to float32 weights under the same steps."""
    generator = torch.Generator().manual_seed(1)
    x, _ = weights(rows, False, generator)
    groups = method.start(x)
    exact = value(groups)
    for seed in range(steps):
        update = random_signs(x.shape, generator)
        exact += lr * update
        groups = method.step(groups, update, lr, seed)
    w = value(groups)
    return ((w.amax(-1) - w.amin(-1)) / (exact.amax(-1) - exact.amin(-1))).mean().item()


def table(rows: int, trials: int, steps: int) -> str:
    """The whole comparison as Markdown."""
    lines = [
        "# The update arrives",
        "",
        f"INT8 groups of 256, {rows} groups, {trials} trials; `python bench/update_arrives.py --rows {rows} "
        f"--trials {trials} --steps {steps}`. Realised over intended displacement, +- its standard error.",
        "",
        "| | " + " | ".join(f"lr {lr:g}" for lr in LRS) + " |",
        "|---" * (len(LRS) + 1) + "|",
    ]
    for at_extremes in (False, True):
        for method in METHODS:
            cells = [realised_fraction(method, lr, rows, trials, at_extremes) for lr in LRS]
            where = "minima and maxima" if at_extremes else "all elements"
            shown = " | ".join(f"{mean:.3f} +- {error:.3f}" for mean, error in cells)
            lines.append(f"| {method.name}, {where} | {shown} |")
    names = " | ".join(method.name for method in METHODS)
    changed = " | ".join(f"{100 * changed_by_zero_update(method, rows):.1f} %" for method in METHODS)
    ranges = " | ".join(f"{range_after_random_steps(method, 512, steps):.3f}" for method in METHODS)
    return "\n".join(
        [
            *lines,
            "",
            f"| | {names} |",
            "|---|---|---|",
            f"| codes that an update of zero changes | {changed} |",
            f"| range of a group after {steps} steps of random sign at 1e-4, over float32's | {ranges} |",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=8192, help="groups")
    parser.add_argument("--trials", type=int, default=24, help="steps from the same start")
    parser.add_argument("--steps", type=int, default=1000, help="steps of random sign")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    text = table(arguments.rows, arguments.trials, arguments.steps)
    print(text)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
