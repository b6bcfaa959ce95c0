"""The examples for TRL and Lightning run as they are written, and continue from their checkpoints."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def _run(script, *options, cwd):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / script), *map(str, options)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _history(folder, step):
    return json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize("options", [(), ("--per-layer", "--accumulation", "2", "--optimizer", "qgalore")])
def test_sft_trains_and_continues_to_the_bit(tmp_path, options):
    pytest.importorskip("trl")
    pytest.importorskip("datasets")
    run = ("sft_galore.py", "--steps", 40, "--batch-size", 2, *options)
    _run(*run, "--out", "whole", cwd=tmp_path)
    whole = _history(tmp_path / "whole", 40)
    assert whole[-1]["loss"] < 0.9 * whole[0]["loss"]
    assert whole[-1]["skipped_updates"] == 0 < whole[-1]["refreshes"]

    weights = (tmp_path / "whole" / "checkpoint-40" / "model.safetensors").read_bytes()
    for path in (tmp_path / "whole" / "checkpoint-40").iterdir():
        path.unlink()
    (tmp_path / "whole" / "checkpoint-40").rmdir()
    _run(*run, "--out", "whole", "--resume", cwd=tmp_path)
    assert (tmp_path / "whole" / "checkpoint-40" / "model.safetensors").read_bytes() == weights


def test_lightning_trains_and_continues_with_its_state(tmp_path, monkeypatch):
    """Lightning itself does not repeat a run to the bit from an epoch's checkpoint, with torch.optim.AdamW
    neither; what is checked is that the optimizer's state arrives whole."""
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint

    monkeypatch.syspath_prepend(str(EXAMPLES))
    import lightning_module as example

    began = []

    class Begin(Callback):
        def on_train_start(self, trainer, module):
            began.append(copy.deepcopy(trainer.optimizers[0].state_dict()))

    def run(folder, ckpt_path=None):
        lightning.seed_everything(0, verbose=False)
        every_epoch = ModelCheckpoint(tmp_path / folder, every_n_epochs=1, save_top_k=-1)  # 32 steps
        trainer = example.trainer(64, str(tmp_path), callbacks=[every_epoch, Begin()])
        trainer.fit(example.ReverseDigits(total_steps=64), example.data(), ckpt_path=ckpt_path)
        return float(trainer.callback_metrics["loss"])

    assert run("whole") < 0.9 * float(torch.tensor(10.0).log())
    (half,) = (tmp_path / "whole").glob("epoch=0*.ckpt")
    (saved,) = torch.load(half, weights_only=True)["optimizer_states"]
    assert run("again", str(half)) < 0.9 * float(torch.tensor(10.0).log())
    assert began[1]["state"].keys() == saved["state"].keys() and len(saved["state"]) == 7
    for index, state in saved["state"].items():
        for key, value in state.items():
            found = began[1]["state"][index][key]
            assert torch.equal(value, found) if isinstance(value, torch.Tensor) else value == found
