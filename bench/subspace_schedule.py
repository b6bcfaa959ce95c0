"""When to refresh a subspace: a fixed gap, the published similarity test, and the overlap test.

    python bench/subspace_schedule.py --out bench/results/cpu

Trains the demo's model with FusedQGaLore and a short gap under each rule, from the same weights on the same
batches, and prints the refreshes made (as a share of the fixed gap's) beside the validation loss. The
published test compares the two leading singular vectors as a fresh SVD returns them; here their signs are
already aligned with the old basis, which favours it.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

import frugalore
from frugalore.pretrain.config import PRESETS, from_dict
from frugalore.pretrain.data import Batches, load_corpus
from frugalore.pretrain.loop import Trainer
from frugalore.pretrain.model import build_model
from frugalore.pretrain.optimizers import entry

RULES = {
    "fixed gap": {"cos_threshold": None},
    "first vector, 0.4 (published)": {"similarity": "first_vector", "cos_threshold": 0.4},
    "overlap, 0.2": {"similarity": "overlap", "cos_threshold": 0.2},
    "overlap, 0.4": {"similarity": "overlap", "cos_threshold": 0.4},
    "overlap, 0.6": {"similarity": "overlap", "cos_threshold": 0.6},
}


def run(rule: dict, config, corpus) -> tuple[float, list[int], list[list[float]]]:
    """Validation loss, and for each projected weight its refreshes and its last similarities."""
    model = build_model(config)
    frugalore.quantize_(model, config.target_modules)
    groups = frugalore.param_groups(
        model,
        config.target_modules,
        rank=config.rank,
        update_proj_gap=config.update_proj_gap,
        scale=config.scale,
        **rule,
    )
    optimizer = frugalore.FusedQGaLore(groups, lr=config.lr, seed=config.seed)
    batches = Batches(corpus, config.batch_size, config.sequence_length, config.seed)
    trainer = Trainer(config, model, optimizer, batches, torch.device("cpu"))
    for _ in range(config.steps):
        trainer.step()
    states = [state for state in optimizer.state.values() if "refreshes" in state]
    return trainer.evaluate(), [s["refreshes"] for s in states], [s["similarities"] for s in states]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--gap", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = [
        f"`python bench/subspace_schedule.py --steps {arguments.steps} --gap {arguments.gap} --batch-size "
        f"{arguments.batch_size} --seeds {' '.join(map(str, arguments.seeds))}`: the demo's LLaMA, rank 64.",
        "",
        "| rule | refreshes, of the fixed gap's | of a layer | validation loss, nats/byte | by seed |",
        "|---|--:|--:|--:|--:|",
    ]
    print("\n".join(lines))
    fixed = -(-arguments.steps // arguments.gap)
    for name in arguments.rules:
        losses, refreshes = [], []
        for seed in arguments.seeds:
            config = from_dict(
                {
                    **PRESETS["demo"],
                    "optimizer": "qgalore",
                    "lr": entry("qgalore").lr,
                    "steps": arguments.steps,
                    "update_proj_gap": arguments.gap,
                    "batch_size": arguments.batch_size,
                    "seed": seed,
                    "device": "cpu",
                }
            )
            corpus = load_corpus(None, config.sequence_length)
            loss, counts, _ = run(RULES[name], config, corpus)
            losses.append(loss)
            refreshes += counts
        share = f"{statistics.mean(refreshes) / fixed:.0%} | {min(refreshes)} to {max(refreshes)} of {fixed}"
        by_seed = ", ".join(f"{loss:.4f}" for loss in losses)
        lines.append(f"| {name} | {share} | {statistics.mean(losses):.4f} | {by_seed} |")
        print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "subspace_schedule.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
