"""Time and captured energy of the refreshes beside torch.linalg.svd and torch.svd_lowrank, in one run.

    python bench/svd_beside_torch.py --out bench/results/cpu

Matrices: Gaussian noise, the worst case; real gradients of a LLaMA (hidden size 1024, intermediate 2736, two
layers, bytes of the Python standard library) after 20 and after 150 steps of AdamW; for 2048 and 4096, where
training is too long for a benchmark, random singular vectors with the singular values of a real gradient,
stretched to the size.

*cold*: ``randomized_svd`` with one and with two power iterations. *warm*: ``subspace_iterate``, one pass,
from the basis of the gradient five steps (and batches) before with eight random rows, as an optimizer does;
for noise and for stretched spectra from exact vectors with half as much noise added. *energy*: of the exact
rank-r projection's, ``||P A||² / sum of the r largest squared singular values``.
``torch.svd_lowrank`` and ours each run with the fewest iterations that capture 0.995 of it, or where our cold
start with one captures less, as much as that.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from frugalore import ops
from frugalore.ops.orthonormal import orthonormal_rows
from frugalore.pretrain.config import PRESETS, from_dict
from frugalore.pretrain.data import Batches, load_corpus
from frugalore.pretrain.loop import Trainer
from frugalore.pretrain.model import build_model

FRESH_ROWS = 8
STEPS = (20, 25, 150, 155)
MODEL = {
    "hidden_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 2736,
}
GRADIENTS = {
    (1024, 1024): "model.layers.1.self_attn.o_proj.weight",
    (1024, 2736): "model.layers.1.mlp.down_proj.weight",
}


class Case(NamedTuple):
    name: str
    matrix: Tensor
    before: Callable[[int], Tensor]  #: the basis that a warm start begins with, for a rank


def gradients(path: Path) -> dict[tuple[str, int], Tensor]:
    """Those of a training run, made once and kept in a file."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_train(), path)
    return torch.load(path, weights_only=True)


def _train() -> dict[tuple[str, int], Tensor]:
    own = {"optimizer": "adamw", "lr": 5e-4, "steps": 200, "batch_size": 4, "warmup_steps": 10}
    config = from_dict({**PRESETS["demo"], **own, "model": MODEL, "device": "cpu"})
    corpus = load_corpus(config.data, config.sequence_length)
    model = build_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr)
    batches = Batches(corpus, config.batch_size, config.sequence_length, config.seed)
    trainer = Trainer(config, model, optimizer, batches, torch.device("cpu"))
    parameters, kept, step = dict(model.named_parameters()), {}, 0

    def keep(*_: Any) -> None:
        nonlocal step
        step += 1
        if step in STEPS:
            kept.update({(name, step): parameters[name].grad.clone() for name in GRADIENTS.values()})

    optimizer.register_step_pre_hook(keep)
    for _ in range(max(STEPS)):
        trainer.step()
    return kept


def cases(shape: tuple[int, int], found: dict[tuple[str, int], Tensor]) -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(shape, generator=generator)
    result = [Case("Gaussian noise", noise, _near_exact(noise, generator))]
    if shape in GRADIENTS:
        for step, before in ((25, 20), (155, 150)):
            old = found[GRADIENTS[shape], before]
            matrix = found[GRADIENTS[shape], step]
            result.append(Case(f"gradient, step {step}", matrix, lambda rank, old=old: basis_of(old, rank)))
    else:
        values = torch.linalg.svdvals(found[GRADIENTS[1024, 1024], 155])
        stretched = torch.nn.functional.interpolate(values[None, None], shape[0], mode="linear")[0, 0]
        left, right = (torch.linalg.qr(torch.randn(shape, generator=generator)).Q for _ in range(2))
        matrix = (left * stretched) @ right.t()
        result.append(Case("stretched spectrum, step 155", matrix, _near_exact(matrix, generator)))
    return result


def basis_of(matrix: Tensor, rank: int) -> Tensor:
    svd = ops.randomized_svd(matrix, rank)
    return svd.vh if matrix.shape[0] >= matrix.shape[1] else svd.u.t().contiguous()


def _near_exact(matrix: Tensor, generator: torch.Generator) -> Callable[[int], Tensor]:
    def before(rank: int) -> Tensor:
        exact = basis_of(matrix, rank)
        noise = torch.randn(exact.shape, generator=generator) / exact.shape[1] ** 0.5
        return orthonormal_rows(exact + 0.5 * noise).rows

    return before


def energy(matrix: Tensor, basis: Tensor) -> float:
    on_the_right = matrix.shape[0] >= matrix.shape[1]
    projected = matrix @ basis.t() if on_the_right else basis @ matrix
    return float(projected.double().square().sum())


def _cold(matrix: Tensor, rank: int, n_iter: int) -> Tensor:
    svd = ops.randomized_svd(matrix, rank, n_iter)
    return svd.vh if matrix.shape[0] >= matrix.shape[1] else svd.u.t()


def _lowrank(matrix: Tensor, rank: int, niter: int) -> Tensor:
    u, _, v = torch.svd_lowrank(matrix, rank + FRESH_ROWS, niter)
    return (v if matrix.shape[0] >= matrix.shape[1] else u)[:, :rank].t()


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median milliseconds, and the last result."""
    times, value = [], None
    for _ in range(repeats):
        begin = time.perf_counter()
        value = call()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times), value


def fewest(case: Case, share: float, wanted: float, call: Callable[[int], Tensor], repeats: int):
    """``(milliseconds, iterations)`` of the fewest iterations that capture ``share`` of ``wanted``."""
    for iterations in range(7):
        if energy(case.matrix, call(iterations)) >= share * wanted:
            break
    return timed(lambda: call(iterations), repeats)[0], iterations


def rows(case: Case, repeats: int) -> list[str]:
    taken, exact = timed(lambda: torch.linalg.svd(case.matrix, full_matrices=False), 1)
    short = min(case.matrix.shape)
    shape = "x".join(map(str, case.matrix.shape))
    result = []
    for share in (8, 4):
        rank = short // share
        best = float(exact.S[:rank].double().square().sum())
        once, first = timed(lambda rank=rank: _cold(case.matrix, rank, 1), repeats)
        twice, second = timed(lambda rank=rank: _cold(case.matrix, rank, 2), repeats)
        old = case.before(rank)
        fresh = torch.randn(FRESH_ROWS, old.shape[1], generator=torch.Generator().manual_seed(1))
        start = torch.cat([old, fresh / old.shape[1] ** 0.5])
        warm, turned = timed(
            lambda start=start, rank=rank: ops.subspace_iterate(case.matrix, start, rank=rank), repeats
        )
        captured = [energy(case.matrix, basis) / best for basis in (first, second, turned)]
        share_of_best = min(0.995, captured[0])
        theirs, niter = fewest(
            case, share_of_best, best, lambda n, r=rank: _lowrank(case.matrix, r, n), repeats
        )
        ours, n_iter = fewest(case, share_of_best, best, lambda n, r=rank: _cold(case.matrix, r, n), repeats)
        result.append(
            f"| {shape} | {case.name} | n/{share} | {taken:.0f} "
            f"| {once:.1f} ({taken / once:.1f}x) / {captured[0]:.4f} "
            f"| {twice:.1f} ({taken / twice:.1f}x) / {captured[1]:.4f} "
            f"| {warm:.1f} ({taken / warm:.1f}x) / {captured[2]:.4f} "
            f"| {theirs:.1f} ({niter}) / {ours:.1f} ({n_iter}): {theirs / ours:.2f} |"
        )
        print(result[-1], flush=True)
    return result


HEAD = (
    "| matrix | kind | rank | linalg.svd, ms | cold, 1 iteration: ms (speed-up) / energy "
    "| cold, 2 iterations | warm | svd_lowrank / ours, ms (iterations): ratio |"
    "\n|---|---|--:|--:|--:|--:|--:|--:|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for svd_beside_torch.md")
    parser.add_argument("--gradients", type=Path, default=Path("runs/gradients.pt"), help="kept between runs")
    parser.add_argument("--shapes", nargs="+", default=["1024x1024", "1024x2736", "2048x2048", "4096x4096"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    lines = [f"`{' '.join(['python', *sys.argv])}`"]
    found = gradients(arguments.gradients)
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        lines += ["", f"{threads} thread{'s' if threads > 1 else ''}:", "", HEAD]
        print(lines[-3])
        for text in arguments.shapes:
            m, n = map(int, text.split("x"))
            for case in cases((m, n), found):
                lines += rows(case, arguments.repeats if m < 4096 else 3)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "svd_beside_torch.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
