"""Resuming is exact, and a checkpoint is whole at any moment or refused by name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from frugalore.pretrain import REGISTRY, checkpoint, pretrain
from frugalore.pretrain.errors import CheckpointError, ConfigError
from pretrain_helpers import assert_same_weights, saved_weights, tiny, training_rows


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("It was the best of times, it was the worst of times. " * 60)
    return path


@pytest.fixture
def stopped(text, tmp_path):
    """A run that was stopped after three of six steps."""
    pretrain(tiny(text), tmp_path / "run", stop_after=3)
    return tmp_path / "run"


def snapshot(out):
    return {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", sorted(REGISTRY))
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(text, tmp_path, optimizer, dtype):
    config = tiny(text, optimizer=optimizer, dtype=dtype)
    whole = pretrain(config, tmp_path / "whole")
    half = pretrain(config, tmp_path / "halves", stop_after=3)
    assert (half.step, half.finished) == (3, False)
    torch.manual_seed(12345)  # a new process has another state
    second = pretrain(config, tmp_path / "halves", resume=True)
    assert second.finished
    assert training_rows(tmp_path / "whole") == training_rows(tmp_path / "halves")
    assert [row["step"] for row in training_rows(tmp_path / "halves")] == [1, 2, 3, 4, 5, 6]
    assert_same_weights(tmp_path / "whole", tmp_path / "halves")
    assert second.measured == whole.measured
    assert second.validation_loss == whole.validation_loss


def test_the_loss_falls_and_the_weights_move(text, tmp_path):
    for optimizer in REGISTRY:
        summary = pretrain(tiny(text, optimizer=optimizer, steps=40), tmp_path / optimizer)
        assert summary.rows[-1]["loss"] < summary.rows[0]["loss"] - 0.2, optimizer


def test_metrics_past_the_checkpoint_are_dropped_on_resume(text, tmp_path, stopped):
    pretrain(tiny(text), tmp_path / "whole")
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 99.0}\n{"step": 5, "lo')
    pretrain(tiny(text), stopped, resume=True)
    assert training_rows(stopped) == training_rows(tmp_path / "whole")


def test_resuming_a_finished_run_reports_it_again(text, tmp_path):
    first = pretrain(tiny(text), tmp_path / "run")
    rows = training_rows(tmp_path / "run")
    again = pretrain(tiny(text), tmp_path / "run", resume=True)
    assert training_rows(tmp_path / "run") == rows
    assert (again.step, again.validation_loss, again.measured) == (6, first.validation_loss, first.measured)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rank": 4}, r"rank: 8 -> 4"),
        ({"lr": 0.5}, r"lr: .* -> 0.5"),
        ({"steps": 7}, r"steps: 6 -> 7"),
        ({"model": {"hidden_size": 16, "num_attention_heads": 2}}, r"model.hidden_size: 32 -> 16"),
    ],
)
def test_another_config_is_refused_and_nothing_is_written(text, stopped, change, named):
    before = snapshot(stopped)
    with pytest.raises(CheckpointError, match=named):
        pretrain(tiny(text, **change), stopped, resume=True)
    assert snapshot(stopped) == before


def test_another_text_is_refused(text, stopped):
    text.write_text(text.read_text() + "x")
    with pytest.raises(CheckpointError, match="another text"):
        pretrain(tiny(text), stopped, resume=True)


def test_the_same_text_at_another_place_is_accepted(text, tmp_path, stopped):
    moved = tmp_path / "moved.txt"
    text.rename(moved)
    assert pretrain(tiny(moved), stopped, resume=True).finished


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.TRAINING])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(_truncate, "bytes, its manifest says"), (_flip, "SHA-256"), (os.remove, "is missing")],
)
def test_a_damaged_file_is_refused_by_name_and_nothing_is_written(text, stopped, name, damage, message):
    path = stopped / checkpoint.read_manifest(stopped).folder / name
    damage(path)
    before = snapshot(stopped)
    with pytest.raises(CheckpointError, match=message) as caught:
        pretrain(tiny(text), stopped, resume=True)
    assert name in str(caught.value)
    assert snapshot(stopped) == before


def _edited(**changes):
    return lambda text: json.dumps({**json.loads(text), **changes})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text[: len(text) // 2], "is corrupt"),
        (lambda text: "[]", "is not of frugalore-pretrain"),
        (_edited(format="other"), "is not of frugalore-pretrain"),
        (_edited(version=99), "format version 99, this release reads 1"),
        (_edited(config={"rank": 5}), "does not match config_sha256"),
        (_edited(config={"rnak": 5}), "rnak"),
        (_edited(step=5), "is of step 3, its manifest says 5"),
    ],
)
def test_a_foreign_or_altered_manifest_is_refused(text, stopped, edit, message):
    path = stopped / checkpoint.MANIFEST
    path.write_text(edit(path.read_text()))
    before = snapshot(stopped)
    with pytest.raises(CheckpointError, match=message):
        pretrain(tiny(text), stopped, resume=True)
    assert snapshot(stopped) == before


def test_a_folder_without_a_checkpoint_is_refused_and_not_made(text, tmp_path):
    with pytest.raises(CheckpointError, match="holds none"):
        pretrain(tiny(text), tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


class _Unwritable:
    def __reduce__(self):
        raise RuntimeError("the disk is full")


def test_a_save_that_fails_half_way_leaves_the_last_checkpoint(text, tmp_path, stopped):
    weights = saved_weights(stopped)
    manifest = checkpoint.read_manifest(stopped)
    with pytest.raises(RuntimeError, match="the disk is full"):
        checkpoint.save(stopped, 4, tiny(text), "0", weights, {"step": 4, "bad": _Unwritable()})
    assert checkpoint.read_manifest(stopped) == manifest
    pretrain(tiny(text), tmp_path / "whole")
    assert pretrain(tiny(text), stopped, resume=True).finished
    assert_same_weights(tmp_path / "whole", stopped)
    assert len(list(stopped.glob("checkpoint-*"))) == 1


_ENDLESS = """
import sys
from pathlib import Path
from frugalore.pretrain import checkpoint
from pretrain_helpers import tiny
import torch
out, text = Path(sys.argv[1]), Path(sys.argv[2])
weights = {"w": torch.zeros(1 << 20)}
for step in range(1, 100000):
    weights["w"].fill_(step)
    checkpoint.save(out, step, tiny(text), "0", weights, {"step": step})
"""


def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(text, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    for attempt in range(3):
        if attempt:
            checkpoint.remove(out)
        child = subprocess.Popen([sys.executable, "-c", _ENDLESS, str(out), str(text)], env=environment)
        deadline = time.monotonic() + 60
        while not (out / checkpoint.MANIFEST).exists():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(0.03 + 0.017 * attempt)
        child.send_signal(signal.SIGKILL)
        child.wait()
        manifest = checkpoint.read_manifest(out)
        weights, state = checkpoint.load(manifest)
        assert state["step"] == manifest.step
        assert (weights["w"] == manifest.step).all()


def test_a_folder_that_holds_something_is_neither_used_nor_emptied(text, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty; --resume continues its run, --over"):
        pretrain(tiny(text), out)
    assert snapshot(out).keys() == {(out / "thesis.txt").relative_to(out)}
    pretrain(tiny(text), out, overwrite=True)
    assert (out / "thesis.txt").read_text() == "mine"


def test_overwriting_starts_anew(text, tmp_path, stopped):
    pretrain(tiny(text, seed=1), tmp_path / "fresh")
    pretrain(tiny(text, seed=1), stopped, overwrite=True)
    assert training_rows(stopped) == training_rows(tmp_path / "fresh")
    assert_same_weights(stopped, tmp_path / "fresh")


def test_a_bad_run_leaves_the_folder_that_it_would_have_overwritten(text, stopped):
    before = snapshot(stopped)
    with pytest.raises(ConfigError, match="target_modules"):
        pretrain(tiny(text, target_modules=["no_such_layer"]), stopped, overwrite=True)
    assert snapshot(stopped) == before


def test_training_state_reads_with_weights_only(stopped):
    manifest = checkpoint.read_manifest(stopped)
    state = torch.load(stopped / manifest.folder / checkpoint.TRAINING, weights_only=True)
    assert state["step"] == 3
    assert state["optimizer"]["state"]
