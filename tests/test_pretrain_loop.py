"""The loop's guards, and the bytes that the report counts."""

from __future__ import annotations

import json
import math

import pytest
import torch

from frugalore.pretrain import memory, metrics, pretrain
from frugalore.pretrain.data import Batches, load_corpus
from frugalore.pretrain.errors import ConfigError
from frugalore.pretrain.loop import Trainer
from frugalore.pretrain.memory import Bytes
from frugalore.pretrain.model import build_model
from frugalore.pretrain.optimizers import entry
from pretrain_helpers import tiny


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("All happy families are alike. " * 100)
    return path


def make_trainer(config):
    corpus = load_corpus(config.data, config.sequence_length)
    config = config.replace(lr=1e-2)
    optimizer, model = entry(config.optimizer).build(build_model(config), config)
    batches = Batches(corpus, config.batch_size, config.sequence_length, config.seed)
    return Trainer(config, model, optimizer, batches, torch.device("cpu"))


def test_a_gradient_that_is_not_finite_changes_no_weight_and_is_counted(text):
    trainer = make_trainer(tiny(text))
    trainer.step()
    weight = trainer.model.model.layers[0].mlp.up_proj.weight
    hook = weight.register_hook(lambda g: torch.full_like(g, math.nan))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    row = trainer.step()
    assert row["skipped"] == 1
    assert math.isnan(row["gradient_norm"])
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    hook.remove()
    assert trainer.step()["skipped"] == 1
    assert not torch.equal(before[0], next(trainer.model.parameters()))


def test_the_norm_is_clipped_and_zero_means_not(text):
    for max_norm in (0.01, 0.0):
        trainer = make_trainer(tiny(text, max_norm=max_norm))
        trainer._loss(trainer.batches.train(1)).backward()
        norm = trainer._clip()
        after = torch.linalg.vector_norm(
            torch.stack([p.grad.norm() for p in trainer.model.parameters()])
        ).item()
        assert norm > 0.1
        assert after == pytest.approx(max_norm or norm, rel=1e-3)


def test_validation_is_the_mean_over_the_same_batches_and_leaves_no_gradient(text):
    trainer = make_trainer(tiny(text))
    first = trainer.evaluate()
    with torch.no_grad():
        losses = [trainer._loss(b).item() for b in trainer.batches.validation(2)]
    assert first == trainer.evaluate() == pytest.approx(sum(losses) / 2)
    assert abs(first - math.log(256)) < 0.3  # an untrained model knows nothing about bytes
    assert all(p.grad is None for p in trainer.model.parameters())


def test_the_loss_is_of_the_next_byte(text):
    trainer = make_trainer(tiny(text))
    batch = trainer.batches.train(1)
    with torch.no_grad():
        probabilities = trainer.model(input_ids=batch).logits.log_softmax(-1)
        expected = -probabilities[:, :-1].gather(2, batch[:, 1:, None]).mean()
        assert trainer._loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_computed_bytes_follow_their_formulas():
    assert memory.adamw_bytes([(3, 5), (7,)]) == Bytes(88, 88, 176, 0)
    # 4 x 10 at rank 2: two states of 2 x 10, a basis of 2 x 4; rank 9 is clipped to 4
    assert memory.galore_bytes([(4, 10)], [], 2) == Bytes(160, 160, 160, 32)
    assert memory.galore_bytes([(10, 4)], [(3,)], 9) == Bytes(172, 172, 344, 64)


def test_measured_bytes_are_those_of_the_tensors(text, tmp_path):
    summary = pretrain(tiny(text, optimizer="adamw"), tmp_path / "run")
    elements = summary.parameters
    assert summary.measured.weights == summary.measured.gradients == 4 * elements
    steps = 4 * summary.measured.state // 4 - 8 * elements  # AdamW keeps a float step per tensor too
    assert 0 < steps < 4 * 64
    assert summary.adamw == Bytes(4 * elements, 4 * elements, 8 * elements)
    assert summary.galore.total < summary.adamw.total


def test_state_named_basis_is_counted_as_basis():
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    optimizer.state[weight] = {
        "basis_packed": torch.zeros(5, dtype=torch.uint8),
        "exp_avg": torch.zeros(2, 3),
        "ring": [torch.zeros(2), 3.0],
        "step": 7,
    }
    assert memory.measured(torch.nn.Linear(1, 1), optimizer, 11) == Bytes(8, 11, 32, 5)


def test_usage_counts_a_tensor_of_this_process():
    before = memory.usage(torch.device("cpu"))
    held = torch.ones(16 << 20)
    after = memory.usage(torch.device("cpu"))
    assert after["memory"] - before["memory"] > 0.9 * held.nbytes
    assert after["peak_memory"] >= after["memory"]


def test_a_run_leaves_its_report(text, tmp_path):
    out = tmp_path / "run"
    summary = pretrain(tiny(text), out)
    saved = json.loads((out / "summary.json").read_text())
    assert saved["validation_loss"] == summary.validation_loss == metrics.read(out)[-1]["validation_loss"]
    assert saved["finished"] is True
    assert saved["bytes"]["measured"]["weights"] == summary.measured.weights
    assert saved["config"]["rank"] == 8
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    validated = [row["step"] for row in metrics.read(out) if "validation_loss" in row]
    assert validated == [2, 4, 6]


def test_cuda_is_refused_where_there_is_none(text, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match="device: cuda asked for"):
        pretrain(tiny(text, device="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_matching_module_is_refused_by_name(text, tmp_path):
    with pytest.raises(ConfigError, match=r"'no_such_layer'.* matches no nn.Linear"):
        pretrain(tiny(text, target_modules=["no_such_layer"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_the_optimizer_counted_is_in_the_summary(text, tmp_path):
    summary = pretrain(tiny(text, optimizer="qgalore"), tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "summary.json").read_text())["statistics"]
    assert saved == summary.statistics
    target = saved["model.layers.0.mlp.up_proj.weight"]
    assert (target["applied"], target["skipped"]) == (6, 0)
    assert target["refreshes"] >= 1


def test_int8_weights_and_int4_basis_are_measured_as_stored(text, tmp_path):
    summary = pretrain(tiny(text, optimizer="qgalore"), tmp_path / "run")
    # Both layers: 4 matrices 32 x 32, 2 of 48 x 32, 1 of 32 x 48; one group a row.
    rows, codes = 2 * (4 * 32 + 2 * 48 + 32), 2 * (4 * 32 * 32 + 3 * 32 * 48)
    floats = summary.parameters - codes
    assert summary.measured.weights == codes + rows * (4 + 1) + 4 * floats
    # A rank-8 basis of rows of 32 in two codes a byte, with scale and zero: for each of 14 matrices.
    assert summary.measured.basis == 14 * 8 * (16 + 4 + 1)
    assert summary.measured.gradients == 4 * summary.parameters
