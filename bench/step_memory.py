"""Memory: the workspace of one ``step()``, gradients with per-layer updates, and the resident set of a run.

    git clone https://github.com/VITA-Group/Q-GaLore
    python bench/step_memory.py --qgalore Q-GaLore --run-steps 300 --out bench/results/cpu

Workspace is the most that a step has allocated at one time beyond what was there before it, in bytes and in
copies of the layer in bfloat16, counted from torch's own allocations. The layer trains from a bfloat16
gradient. The first step, which also makes the state, is not counted.

Gradients: a LLaMA of hidden size 1024 with 8 layers and a vocabulary of 32000 in bfloat16, one sequence of
256 tokens. "Live" is what ``.grad`` of all parameters hold whenever one of them is complete; "backward and
step" is the peak of all allocations from the loss on, beyond what forward left.

The runs are the demo's (LLaMA of 3.3 M parameters), each in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import frugalore
import official
import step_beside_official
from frugalore.pretrain import metrics
from frugalore.pretrain.checkpoint import write_text
from step_beside_official import NEVER

LAYERS = {"full": [(4096, 4096, 128), (4096, 4096, 1024), (11008, 4096, 1024)], "small": [(512, 256, 32)]}


def workspace(step: Callable[[], object]) -> int:
    """The peak of what the step's allocations add up to, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def gradient(m: int, n: int) -> torch.Tensor:
    return (torch.randn(m, n) * 0.01).bfloat16()


def ours(m: int, n: int, rank: int, gap: int) -> Callable[[], object]:
    step = step_beside_official.ours([(m, n)], [gradient(m, n)], gap, rank).step
    step()
    return step


def published(m: int, n: int, rank: int, code: official.QGaLore) -> Callable[[], object]:
    return step_beside_official.official_qgalore([(m, n)], [gradient(m, n)], code, rank).step


def workspace_table(arguments: argparse.Namespace) -> list[str]:
    lines = [
        "| layer | rank | step | workspace, MiB | bf16 copies of the layer |",
        "|---|--:|---|--:|--:|",
    ]
    code = official.QGaLore(arguments.qgalore) if arguments.qgalore else None
    for m, n, rank in LAYERS[arguments.sizes]:
        steps = {
            "**FusedQGaLore**": ours(m, n, rank, NEVER),
            "**FusedQGaLore**, with a refresh": ours(m, n, rank, 1),
        }
        if code:
            steps["official Q-GaLore"] = published(m, n, rank, code)
        for name, step in steps.items():
            peak = workspace(step)
            lines.append(f"| {m} x {n} | {rank} | {name} | {peak / 2**20:.1f} | {peak / (2 * m * n):.2f} |")
    return lines


def gradient_table(sizes: str) -> list[str]:
    hidden, layers, vocabulary = (1024, 8, 32000) if sizes == "full" else (64, 2, 256)
    lines = [
        "| gradients | live at most, MiB | of the largest parameter | backward and step, MiB |",
        "|---|--:|--:|--:|",
    ]
    for name, options in (
        ("FusedQGaLore", None),
        ("**with per-layer updates**", {"max_norm": 1.0}),
        ("**the same, accumulating over 4**", {"max_norm": 1.0, "accumulation_steps": 4}),
    ):
        model = _llama(hidden, layers, vocabulary)
        frugalore.quantize_(model)
        groups = frugalore.param_groups(model, rank=hidden // 8, update_proj_gap=NEVER)
        optimizer = frugalore.FusedQGaLore(groups, lr=1e-3, seed=0)
        parameters = list(model.parameters())
        live: list[int] = []

        def count(_: torch.Tensor, parameters=parameters, live=live) -> None:
            live.append(sum(p.grad.nbytes for p in parameters if p.grad is not None))

        for p in parameters:  # before the updates' own hooks, which free the gradient
            p.register_post_accumulate_grad_hook(count)
        updates = frugalore.per_layer_updates(optimizer, **options) if options else None
        tokens = torch.randint(vocabulary, (1, 256))
        for _ in range(2 * (options or {}).get("accumulation_steps", 1) - 1):
            model(input_ids=tokens, labels=tokens).loss.backward()
            if updates is None or not updates.accumulated_bytes():
                optimizer.step()
                optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss

        def rest(loss=loss, optimizer=optimizer) -> None:
            loss.backward()
            optimizer.step()

        peak = workspace(rest)
        largest = max(p.numel() * p.element_size() for p in parameters)
        lines.append(f"| {name} | {max(live) / 2**20:.1f} | {max(live) / largest:.2f} | {peak / 2**20:.1f} |")
    return lines


def _llama(hidden: int, layers: int, vocabulary: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=hidden * 8 // 3,
        vocab_size=vocabulary,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def run_table(steps: int) -> list[str]:
    lines = [
        f"| demo, {steps} steps | resident at the end, MiB | peak resident, MiB |",
        "|---|--:|--:|",
    ]
    for optimizer in ("adamw", "qgalore"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "frugalore", "pretrain", "--config", "demo"]
            command += ["--optimizer", optimizer, "--steps", str(steps), "--out", f"{folder}/run"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            last = metrics.read(Path(folder) / "run")[-1]
        lines.append(f"| {optimizer} | {last['memory'] / 2**20:.0f} | {last['peak_memory'] / 2**20:.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--qgalore", type=Path, help="a clone of VITA-Group/Q-GaLore")
    parser.add_argument("--run-steps", type=int, default=0, help="of the demo; 0: no runs")
    parser.add_argument("--sizes", choices=tuple(LAYERS), default="full")
    parser.add_argument("--out", type=Path, help="folder for step_memory.md")
    arguments = parser.parse_args()
    lines = [f"`{' '.join(['python', *sys.argv])}`", "", *workspace_table(arguments)]
    lines += ["", *gradient_table(arguments.sizes)]
    if arguments.run_steps:
        lines += ["", *run_table(arguments.run_steps)]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_text(arguments.out / "step_memory.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
