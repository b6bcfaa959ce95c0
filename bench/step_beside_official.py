"""One ``optimizer.step()`` of FusedQGaLore beside the published code, AdamW and 8-bit AdamW, in one run.

    pip install --no-deps galore-torch==1.0 && pip install bitsandbytes
    git clone https://github.com/VITA-Group/Q-GaLore
    python bench/step_beside_official.py --qgalore Q-GaLore --threads 1 2 --out bench/results/cpu

The weights of 8 LLaMA layers of hidden size 1024 (4 of 1024 x 1024, 2 of 2736 x 1024, 1 of 1024 x 2736 each)
and one of 4096 x 4096; rank 128; random gradients. One round calls every contender once, so drift of the
machine cancels in the ratios; every figure is a median over the rounds. Nobody's ordinary steps contain a
refresh. The published Q-GaLore gets its first basis from a QR, to save its SVDs; its ordinary step does
not depend on where the basis comes from.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import frugalore
import official
from frugalore.pretrain.checkpoint import write_text
from frugalore.pretrain.memory import tensor_bytes

RANK = 128
LAYER = [(1024, 1024)] * 4 + [(2736, 1024)] * 2 + [(1024, 2736)]
SHAPES = {"full": LAYER * 8 + [(4096, 4096)], "small": [(256, 256), (512, 256), (256, 512)]}
NEVER = 10**9  # a gap that no benchmark reaches
SHARED = ("qmap1", "qmap2")  # tables of bitsandbytes, one for all parameters


@dataclass
class Contender:
    """``step`` makes one update; ``optimizer`` is asked for its state; ``weights`` are what it trains."""

    step: Callable[[], object]
    optimizer: torch.optim.Optimizer
    weights: list[Tensor]

    def bytes_per_parameter(self, elements: int) -> tuple[float, float]:
        """Of optimizer state and of weights. Tables that all parameters share are not counted."""
        state = sum(map(tensor_bytes, _tensors(self.optimizer.state)))
        extra = sum(
            tensor_bytes(getattr(w, name))
            for w in self.weights
            for name in ("scales", "zeros")
            if hasattr(w, name)
        )
        return state / elements, (sum(map(tensor_bytes, self.weights)) + extra) / elements


def _tensors(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for key, item in value.items() if key not in SHARED for t in _tensors(item)]
    if hasattr(value, "ortho_matrix") or hasattr(value, "indices"):  # the published projector objects
        names = ("ortho_matrix", "ortho_matrix_scales", "ortho_matrix_zeros", "past_ortho_vector", "indices")
        return [t for name in names if isinstance(t := getattr(value, name, None), Tensor)]
    return []


def parameters(shapes, grads: list[Tensor]) -> list[nn.Parameter]:
    weights = [nn.Parameter((torch.randn(shape) * 0.02).to(grads[0].dtype)) for shape in shapes]
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad
    return weights


def ours(shapes, grads: list[Tensor], gap: int, rank: int = RANK) -> Contender:
    model = nn.Sequential(*(nn.Linear(n, m, bias=False, dtype=grads[0].dtype) for m, n in shapes))
    frugalore.quantize_(model, "all-linear")
    groups = frugalore.param_groups(model, "all-linear", rank=rank, update_proj_gap=gap, cos_threshold=None)
    optimizer = frugalore.FusedQGaLore(groups, lr=1e-3, seed=0)
    for weight, grad in zip(model.parameters(), grads, strict=True):
        weight.grad = grad
    return Contender(optimizer.step, optimizer, list(model.parameters()))


def adamw(shapes, grads: list[Tensor]) -> Contender:
    weights = parameters(shapes, grads)
    optimizer = torch.optim.AdamW(weights, lr=1e-3, fused=True)
    return Contender(optimizer.step, optimizer, weights)


def adamw8bit(shapes, grads: list[Tensor]) -> Contender:
    """Ours: every parameter in a group without rank."""
    weights = parameters(shapes, grads)
    optimizer = frugalore.FusedQGaLore(weights, lr=1e-3, seed=0)
    return Contender(optimizer.step, optimizer, weights)


def bitsandbytes_adamw8bit(shapes, grads: list[Tensor]) -> Contender:
    import bitsandbytes

    weights = parameters(shapes, grads)
    optimizer = bitsandbytes.optim.AdamW8bit(weights, lr=1e-3)
    return Contender(optimizer.step, optimizer, weights)


def official_galore(shapes, grads: list[Tensor]) -> Contender:
    weights = parameters(shapes, grads)
    low_rank = {"rank": RANK, "update_proj_gap": NEVER, "scale": 0.25, "proj_type": "std"}
    optimizer = official.galore_adamw([{"params": weights, **low_rank}], 1e-3)
    return Contender(optimizer.step, optimizer, weights)


def official_qgalore(shapes, grads: list[Tensor], published: official.QGaLore, rank: int = RANK) -> Contender:
    weights = [published.int8_weight(torch.randn(shape) * 0.02) for shape in shapes]
    optimizer = published.adamw8bit(official.qgalore_groups(weights, [], rank, NEVER, 0.25), 1e-3)

    def step() -> None:
        for weight, grad in zip(weights, grads, strict=True):
            weight.float_grad = grad
        optimizer.step()

    with official.basis_from_qr(published):
        step()
    return Contender(step, optimizer, weights)


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def measure(threads: int, arguments: argparse.Namespace) -> list[str]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shapes = SHAPES[arguments.sizes]
    elements = sum(m * n for m, n in shapes)
    fp32 = [torch.randn(shape) * 0.01 for shape in shapes]
    bf16 = [g.bfloat16() for g in fp32]
    ordinary = {
        "torch AdamW fused, fp32": adamw(shapes, fp32),
        "**FusedQGaLore, INT8 weights, fp32 gradients**": ours(shapes, fp32, NEVER),
        "**FusedQGaLore, INT8 weights, bf16 gradients**": ours(shapes, bf16, NEVER),
        "**8-bit AdamW of frugalore, fp32**": adamw8bit(shapes, fp32),
        "bitsandbytes AdamW8bit, fp32": bitsandbytes_adamw8bit(shapes, fp32),
        "official GaLoreAdamW, fp32": official_galore(shapes, fp32),
    }
    if arguments.qgalore:
        published = official.QGaLore(arguments.qgalore)
        ordinary["official Q-GaLore, INT8 weights, fp32 gradients"] = official_qgalore(
            shapes, fp32, published
        )
        ordinary["official Q-GaLore, INT8 weights, bf16 gradients"] = official_qgalore(
            shapes, bf16, published
        )
    refreshing = {"fp32": ours(shapes, fp32, 1), "bf16": ours(shapes, bf16, 1)}
    first = {name: seconds(contender.step) for name, contender in ordinary.items()}
    cold = {name: seconds(contender.step) for name, contender in refreshing.items()}
    rounds: dict[str, list[float]] = {name: [] for name in ordinary}
    warm: dict[str, list[float]] = {name: [] for name in refreshing}
    for _ in range(arguments.rounds):
        for name, contender in ordinary.items():
            rounds[name].append(seconds(contender.step))
        for name, contender in refreshing.items():
            warm[name].append(seconds(contender.step))
    base = rounds["torch AdamW fused, fp32"]
    lines = [
        f"Threads: {threads}; {elements / 1e6:.1f} M parameters; {arguments.rounds} rounds.",
        "",
        "| ordinary step | ms | x fused AdamW (min–max) | state, B/parameter | weights, B/parameter |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, samples in rounds.items():
        ratios = [a / b for a, b in zip(samples, base, strict=True)]
        state, weights = ordinary[name].bytes_per_parameter(elements)
        lines.append(
            f"| {name} | {statistics.median(samples) * 1e3:.0f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}–{max(ratios):.2f}) | {state:.3f} | {weights:.3f} |"
        )
    galore = first["official GaLoreAdamW, fp32"]
    lines += [
        "",
        "| step that refreshes every basis | s | times faster than the official GaLoreAdamW's |",
        "|---|--:|--:|",
        f"| official GaLoreAdamW, fp32 | {galore:.2f} | 1 |",
    ]
    for name in refreshing:
        for kind, value in (("cold", cold[name]), ("warm", statistics.median(warm[name]))):
            lines.append(
                f"| **FusedQGaLore, {name} gradients, {kind}** | {value:.2f} | {galore / value:.1f} |"
            )
    print("\n".join(lines), flush=True)
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--qgalore", type=Path, help="a clone of VITA-Group/Q-GaLore")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", choices=tuple(SHAPES), default="full")
    parser.add_argument("--out", type=Path, help="folder for step_beside_official.md")
    arguments = parser.parse_args()
    lines = [f"`{' '.join(['python', *sys.argv])}`", ""]
    for threads in arguments.threads:
        lines += measure(threads, arguments)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_text(arguments.out / "step_beside_official.md", "\n".join(lines))


if __name__ == "__main__":
    main()
