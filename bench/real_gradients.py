"""Gradients of a small LLaMA in training, to measure on instead of noise.

    python bench/real_gradients.py gradients.pt

A LLaMA of hidden size 1024 (intermediate 2736, 2 layers, bytes) trains with AdamW in float32 on the Python
standard library's source, as ``frugalore pretrain`` feeds it. Kept are the gradients of its second layer's
query, up and down projections at :data:`STEPS`; a basis made at the step before is the warm start.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from frugalore.pretrain.config import PretrainConfig
from frugalore.pretrain.data import Batches, load_corpus
from frugalore.pretrain.model import build_model

STEPS = (10, 20, 100, 150)
LAYERS = ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
MODEL = {"hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16, "intermediate_size": 2736}
_BATCH, _LENGTH = 4, 256


def record() -> dict[tuple[str, int], Tensor]:
    """Train, and return the gradients by (layer, step)."""
    config = PretrainConfig(model=MODEL, steps=max(STEPS), batch_size=_BATCH, sequence_length=_LENGTH)
    model = build_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batches = Batches(load_corpus(None, _LENGTH), _BATCH, _LENGTH, seed=0)
    kept = {}
    for step in range(1, max(STEPS) + 1):
        batch = batches.train(step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, step / 20)
        loss = torch.nn.functional.cross_entropy(
            model(batch[:, :-1]).logits.flatten(0, 1).float(), batch[:, 1:].flatten()
        )
        loss.backward()
        if step in STEPS:
            layer = model.model.layers[1]
            kept |= {(name, step): layer.get_submodule(name).weight.grad.clone() for name in LAYERS}
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
        optimizer.step()
        optimizer.zero_grad()
    return kept


def load(path: Path) -> dict[tuple[str, int], Tensor]:
    """The gradients in a file, which is made first if there is none."""
    if not path.exists():
        torch.save(record(), path)
    return torch.load(path)


if __name__ == "__main__":
    load(Path(sys.argv[1]))
