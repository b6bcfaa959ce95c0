"""transformers' own GaLore wiring (``optim="galore_adamw"`` and its relatives) with our optimizers behind it.

A stand-in package (tests/shims) is on the path of the subprocess that this file's cases run in. The cases are
those of TrainerOptimizerIntegrationTest in transformers; with FRUGALORE_TRANSFORMERS_TESTS naming a checkout
of transformers, its unmodified tests run too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
pytest.importorskip("transformers", minversion="5")

SHIMS = Path(__file__).parent / "shims"
INSIDE = "FRUGALORE_INSIDE_SHIM"
inside = pytest.mark.skipif(INSIDE not in os.environ, reason="runs in the subprocess that has the stand-in")
outside = pytest.mark.skipif(INSIDE in os.environ, reason="starts the subprocess")


def _environment() -> dict[str, str]:
    return {**os.environ, INSIDE: "1", "PYTHONPATH": os.pathsep.join([str(SHIMS), *sys.path])}


@outside
def test_transformers_galore_optimizers_run_on_ours():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "13 passed" in done.stdout


@outside
@pytest.mark.skipif(
    "FRUGALORE_TRANSFORMERS_TESTS" not in os.environ,
    reason="FRUGALORE_TRANSFORMERS_TESTS does not name a checkout of transformers",
)
def test_transformers_own_tests_pass_unmodified():
    folder = Path(os.environ["FRUGALORE_TRANSFORMERS_TESTS"])
    file = folder / "tests" / "trainer" / "test_trainer_optimizers.py"
    # The memory window of galore_adafactor is that of one accelerator.
    command = [sys.executable, "-m", "pytest", "-q", str(file), "-k", "galore and not adafactor"]
    done = subprocess.run(command, env=_environment(), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


def _trainer(folder, optim, targets=(".*attn.*", ".*mlp.*"), learning_rate=1e-9, **options):
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    )
    model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(0, 100, (128,), generator=torch.Generator().manual_seed(0))
    args = transformers.TrainingArguments(
        str(folder),
        learning_rate=learning_rate,
        logging_steps=options.pop("logging_steps", 5),
        optim=optim,
        optim_target_modules=list(targets) if not isinstance(targets, str) else targets,
        max_steps=options.pop("max_steps", 6),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        **options,
    )
    return transformers.Trainer(model, args, train_dataset=[{"input_ids": ids, "labels": ids}] * 64)


def _train_and_see_weights_move(trainer):
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = [name for name, p in trainer.model.named_parameters() if not p.equal(before[name])]
    assert any("mlp" in name for name in moved) and any("embed" in name for name in moved)


@inside
@pytest.mark.parametrize("optim", ["galore_adamw", "galore_adamw_layerwise", "galore_adamw_8bit"])
def test_it_trains(tmp_path, optim):
    _train_and_see_weights_move(_trainer(tmp_path, optim, learning_rate=1e-3))


@inside
@pytest.mark.parametrize("optim", ["galore_adamw", "galore_adamw_layerwise"])
def test_extra_arguments(tmp_path, optim):
    trainer = _trainer(
        tmp_path, optim, optim_args="rank=64,update_proj_gap=100,scale=0.10", learning_rate=1e-3
    )
    _train_and_see_weights_move(trainer)


@inside
def test_layerwise_with_a_scheduler(tmp_path):
    trainer = _trainer(tmp_path, "galore_adamw_layerwise", lr_scheduler_type="cosine", learning_rate=1e-3)
    _train_and_see_weights_move(trainer)


@inside
@pytest.mark.parametrize(
    "targets", [(".*attn.*", ".*mlp.*"), ("q_proj", "k_proj", "v_proj"), "all-linear"], ids=str
)
def test_adafactor(tmp_path, targets):
    trainer = _trainer(tmp_path, "galore_adafactor", targets, learning_rate=1e-3)
    before = trainer.model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    trainer.train()
    assert not before.equal(trainer.model.model.layers[0].self_attn.q_proj.weight)


@inside
@pytest.mark.parametrize("optim", ["galore_adamw", "galore_adamw_8bit"])
def test_learning_rates_without_a_scheduler(tmp_path, optim):
    trainer = _trainer(tmp_path, optim)
    trainer.create_optimizer_and_scheduler(10)
    assert trainer.get_learning_rates() == [1e-9, 1e-9]


@inside
@pytest.mark.parametrize("optim", ["galore_adamw", "galore_adamw_8bit"])
def test_learning_rates_with_a_scheduler(tmp_path, optim):
    trainer = _trainer(
        tmp_path,
        optim,
        learning_rate=2e-4,
        lr_scheduler_type="cosine",
        warmup_steps=5,
        max_steps=12,
        logging_steps=1,
    )
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    peak = rates.index(max(rates))
    assert 4 <= peak <= 5 and rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True) and rates[-1] < rates[peak]
