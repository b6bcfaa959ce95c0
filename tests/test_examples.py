"""The examples, and the Python in the README, run as they are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from frugalore.pretrain import REGISTRY
from pretrain_helpers import tiny

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def test_compare_optimizers_draws_every_registered_one(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Alice was beginning to get very tired of sitting by her sister. " * 60)
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(tiny(text).to_dict()))
    command = [sys.executable, str(EXAMPLES / "compare_optimizers.py"), "--config", str(config)]
    command += ["--data", str(text), "--steps", "2", "--out", "result", "--runs", "runs"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "result" / "compare_losses.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "result" / "compare_optimizers.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == sorted(REGISTRY)


def test_custom_loop_trains_and_continues_from_its_checkpoint(tmp_path):
    def run(steps, checkpoint):
        command = [sys.executable, str(EXAMPLES / "custom_loop.py"), "--steps", str(steps)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [*command, "--checkpoint", str(tmp_path / checkpoint)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    straight = run(12, "straight.pt")
    run(5, "cut.pt")
    assert run(12, "cut.pt") == straight


def test_the_readmes_python_runs_as_pasted(tmp_path, monkeypatch):
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=160,
    )
    tokens = torch.randint(64, (2, 16))
    given = {
        "model": LlamaForCausalLM(config),
        "batches": [{"input_ids": tokens, "labels": tokens}] * 2,
        "Trainer": transformers.Trainer,
        "args": transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], max_steps=2),
        "data": [{"input_ids": row, "labels": row} for row in tokens],
    }
    blocks = (ROOT / "README.md").read_text("utf-8").split("```python\n")[1:]
    training, *others = (block.partition("```")[0] for block in blocks)
    exec(training, given)
    assert given["optimizer"].statistics()["model.embed_tokens.weight"] == {"applied": 2, "skipped": 0}
    monkeypatch.chdir(tmp_path)
    for block in others:
        exec(block, given)
        if "trainer" in given:
            given.pop("trainer").train()
