"""The examples run as they are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from frugalore.pretrain import REGISTRY
from pretrain_helpers import tiny

EXAMPLES = Path(__file__).parents[1] / "examples"


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
