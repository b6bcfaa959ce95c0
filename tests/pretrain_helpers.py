"""A run small enough for a test, and what two runs must agree on."""

from __future__ import annotations

from pathlib import Path

import torch

from frugalore.pretrain import PretrainConfig, metrics
from frugalore.pretrain.checkpoint import load, read_manifest

# What a row of metrics says about the machine and the moment, not about the training.
_MEASURED = ("seconds", "tokens_per_second", "memory", "peak_memory")


def tiny(text: Path, **changes) -> PretrainConfig:
    """Hidden 32, 2 layers; six steps with a refresh of the subspace in the middle."""
    model = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    options = {
        "model": model,
        "data": str(text),
        "optimizer": "adamw",
        "rank": 8,
        "update_proj_gap": 2,
        "steps": 6,
        "batch_size": 2,
        "sequence_length": 16,
        "warmup_steps": 2,
        "validate_every": 2,
        "validation_batches": 2,
        "save_every": 2,
        "device": "cpu",
    }
    return PretrainConfig(**{**options, **changes})


def training_rows(out: Path) -> list[dict]:
    """The metrics without the columns that are measured."""
    return [{k: v for k, v in row.items() if k not in _MEASURED} for row in metrics.read(out)]


def saved_weights(out: Path) -> dict[str, torch.Tensor]:
    return load(read_manifest(out))[0]


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = saved_weights(a), saved_weights(b)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
