"""The optimizers in transformers' Trainer: groups, learning rates, accumulation, clipping, resume."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
transformers = pytest.importorskip("transformers", minversion="5")

import frugalore  # noqa: E402
from frugalore.integrations.trainer import parse_optim_args  # noqa: E402
from frugalore.integrations.transformers import FrugaloreCallback, trainer_optimizer  # noqa: E402

NAMES = ("qgalore", "galore_adamw", "galore_adamw_8bit", "galore_adafactor")
OPTIONS = {"rank": 8, "update_proj_gap": 2, "scale": 0.5, "seed": 5}
FRUGAL = {
    "fira": {"rank": 8, "update_proj_gap": 2, "alpha": 0.5, "seed": 5},
    "frugal_adamw": {"density": 0.25, "update_gap": 2, "learning_rate": 3e-3, "seed": 5},
    "frugal_sgdm": {"subspace": "blocks", "update_gap": 2, "learning_rate": 3e-3, "seed": 5},
    "frugal_lion": {"subspace": "svd", "update_gap": 2, "learning_rate": 1e-3, "seed": 5},
    "badam": {"switch_block_every": 2, "include_embedding": True, "include_lm_head": True, "seed": 5},
}


def tiny_llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config)


def dataset(length=32):
    generator = torch.Generator().manual_seed(0)
    ids = (torch.randint(0, 100, (length, 1), generator=generator) + torch.arange(16)) % 100
    return [{"input_ids": row, "labels": row} for row in ids]


def arguments(folder, **options):
    defaults = {
        "max_steps": 8,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "save_steps": 4,
        "logging_steps": 1,
        "lr_scheduler_type": "cosine",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    return transformers.TrainingArguments(str(folder), **(defaults | options))


def trainer_of(folder, name="galore_adamw", model=None, target_modules=("attn", "mlp"), data=None, **options):
    if name in FRUGAL and "optimizer" not in options:
        own = dict(FRUGAL[name])
        options = {"learning_rate": own.pop("learning_rate", 1e-2), "optimizer": own, **options}
    target_modules = () if name == "badam" else target_modules
    chosen = {key: options.pop(key) for key in ("per_layer", "optim_args") if key in options}
    own = options.pop("optimizer", OPTIONS)
    args = arguments(folder, **options)
    return transformers.Trainer(
        model or tiny_llama(),
        args,
        train_dataset=data or dataset(),
        optimizer_cls_and_kwargs=trainer_optimizer(name, list(target_modules), args=args, **chosen, **own),
        callbacks=[FrugaloreCallback()],
    )


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, name, per_layer, accumulation):
    options = {"name": name, "per_layer": per_layer, "gradient_accumulation_steps": accumulation}
    whole = trainer_of(tmp_path / "whole", **options)
    whole.train()
    torch.manual_seed(77)
    again = trainer_of(tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for key, value in weights(whole).items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    assert logged(whole, "loss")[4:] == logged(again, "loss")[-4:]
    assert logged(whole, "loss")[0] > logged(whole, "loss")[-1]


@pytest.mark.parametrize("name", FRUGAL)
@pytest.mark.parametrize("per_layer", [False, True])
def test_frugal_badam_and_fira_train_and_resume(tmp_path, name, per_layer):
    options = {"name": name, "per_layer": per_layer}
    whole = trainer_of(tmp_path / "whole", **options)
    whole.train()
    again = trainer_of(tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for key, value in weights(whole).items():
        assert torch.equal(value, again.model.state_dict()[key]), key
    assert logged(whole, "loss")[0] > logged(whole, "loss")[-1]


def test_badam_in_trainer(tmp_path):
    """Vectors of the layers do not decay, and take turns with the rest of their layer."""
    trainer = trainer_of(tmp_path, name="badam", weight_decay=0.1, optimizer={"switch_block_every": 2})
    optimizer = trainer.create_optimizer()
    matrices, vectors = optimizer.param_groups
    assert matrices["weight_decay"] == 0.1 and vectors["weight_decay"] == 0.0
    active = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert active == {n for n, _ in trainer.model.named_parameters() if n.startswith("model.layers.1.")}
    with pytest.raises(ValueError, match=r"target_modules: None expected with 'badam', got \['attn'\]"):
        trainer_optimizer("badam", ["attn"], lr=1e-3)


def test_learning_rates_are_those_of_two_groups_and_follow_the_scheduler(tmp_path):
    trainer = trainer_of(tmp_path, warmup_steps=3)
    trainer.train()
    assert len(trainer.optimizer.param_groups) == 2
    rates = logged(trainer, "learning_rate")
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and 2 <= peak <= 3
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    trainer = trainer_of(tmp_path / "fresh")
    trainer.create_optimizer()
    assert trainer.get_learning_rates() == [1e-2, 1e-2]


def test_training_arguments_reach_every_group(tmp_path):
    trainer = trainer_of(
        tmp_path,
        weight_decay=0.1,
        adam_beta1=0.8,
        adam_epsilon=1e-5,
        learning_rate=3e-3,
        optimizer={"rank": 4},
    )
    groups = trainer.create_optimizer().param_groups
    assert [(g["lr"], g["eps"], g["betas"][0]) for g in groups] == [(3e-3, 1e-5, 0.8)] * 3
    decays = {name: g["weight_decay"] for g in groups for name in g["param_names"]}
    assert decays["model.norm.weight"] == 0.0
    assert decays["model.embed_tokens.weight"] == decays["model.layers.0.self_attn.q_proj.weight"] == 0.1
    assert groups[-1]["rank"] == 4 and "rank" not in groups[0]


def test_options_override_optim_args_and_those_the_arguments(tmp_path):
    args = arguments(tmp_path, optim_args="rank=16, scale=0.1, proj_type=left, betas=(0.7, 0.9)")
    _, kwargs = trainer_optimizer("galore_adamw", args=args, scale=0.3)
    assert kwargs["group"] == {"rank": 16, "scale": 0.3, "proj_type": "left"}
    assert kwargs["options"]["betas"] == (0.7, 0.9)
    args = arguments(tmp_path, optim_target_modules=["q_proj"])
    assert trainer_optimizer("qgalore", args=args)[1]["target_modules"] == ["q_proj"]


def test_optim_args_become_values_of_their_kind():
    text = "rank=64,update_proj_gap=100, scale=0.10,proj_type=full,quant=True,betas=(0.9, 0.95)"
    assert parse_optim_args(text) == {
        "rank": 64,
        "update_proj_gap": 100,
        "scale": 0.1,
        "proj_type": "full",
        "quant": True,
        "betas": (0.9, 0.95),
    }
    with pytest.raises(ValueError, match="optim_args: 'name=value' expected, got 'rank'"):
        parse_optim_args("rank, scale=1")


@pytest.mark.parametrize("per_layer", [False, True])
def test_accumulation_moves_like_one_large_batch(tmp_path, per_layer):
    options = {"max_grad_norm": 0.0, "max_steps": 1, "save_strategy": "no", "lr_scheduler_type": "constant"}
    large = trainer_of(tmp_path, per_device_train_batch_size=4, **options)
    # 8-bit or INT4 rounding would hide the comparison; this preset is float32 throughout.
    small = trainer_of(
        tmp_path,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        per_layer=per_layer,
        **options,
    )
    large.train()
    small.train()
    before, expected, found = tiny_llama().state_dict(), weights(large), weights(small)
    for key in expected:
        moved = (expected[key] - before[key]).norm()
        # A refresh in per-layer mode sees one micro-batch of the round: another basis.
        if not (per_layer and "proj" in key):
            assert moved > 0 and (found[key] - expected[key]).norm() <= 0.05 * moved, key


def test_clipping_reaches_the_optimizer(tmp_path):
    """Adam's update hides a constant factor of the gradients, its first moment does not."""
    trainer = trainer_of(tmp_path, max_grad_norm=1e-3, max_steps=1, save_strategy="no", optimizer={"rank": 8})
    trainer.train()
    state = trainer.optimizer.optimizer.state_dict()["state"]
    norm = sum(float((entry["exp_avg"] / 0.1).square().sum()) for entry in state.values()) ** 0.5
    assert 0 < norm <= 1.001e-3


def test_per_layer_updates_log_the_norm_that_trainer_cannot_see(tmp_path):
    trainer = trainer_of(tmp_path, per_layer=True)
    trainer.train()
    assert all(norm > 0 for norm in logged(trainer, "gradient_norm"))
    assert trainer.optimizer.optimizer._per_layer.max_norm == 1.0


def test_the_callback_logs_what_the_optimizer_counted(tmp_path):
    trainer = trainer_of(tmp_path, "qgalore")
    trainer.train()
    refreshes = logged(trainer, "refreshes")
    assert refreshes[0] == 14 and refreshes[-1] > refreshes[0]
    assert logged(trainer, "skipped_updates") == [0] * 8
    assert logged(trainer, "optimizer_state_mb")[-1] > 0 < logged(trainer, "basis_mb")[-1]


@pytest.mark.parametrize("name", NAMES)
def test_bf16_autocast_and_bf16_weights(tmp_path, name):
    trainer_of(tmp_path / "autocast", name, bf16=True, max_steps=2, save_strategy="no").train()
    trainer = trainer_of(
        tmp_path / "weights", name, model=tiny_llama().bfloat16(), max_steps=2, save_strategy="no"
    )
    trainer.train()
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())


def test_int8_weights_train_in_trainer(tmp_path):
    model = frugalore.quantize_(tiny_llama(), ["attn", "mlp"])
    trainer = trainer_of(tmp_path, "qgalore", model=model, max_steps=4)
    before = model.model.layers[0].mlp.up_proj.weight.codes.clone()
    trainer.train()
    assert not torch.equal(before, model.model.layers[0].mlp.up_proj.weight.codes)


# ---- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trainer_optimizer("galore", lr=1e-3), "name: one of qgalore, .* expected, got 'galore'"),
        (lambda: trainer_optimizer("qgalore", lr=1e-3, rnak=3), "rnak: no option of FusedQGaLore; 'rank'"),
        (lambda: trainer_optimizer("qgalore"), "lr: a learning rate expected"),
        (lambda: trainer_optimizer("qgalore", lr=1e-3, per_layer=True), "args: the training arguments"),
        (lambda: trainer_optimizer("qgalore", lr=1e-3, optim_args="ranks=3"), "ranks: no option"),
    ],
)
def test_wrong_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_targets_that_are_no_linear_layers_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"matches no nn.Linear but .*layernorm.*RMSNorm.*the model has"):
        trainer_of(tmp_path, target_modules=["layernorm"]).create_optimizer()
    with pytest.raises(ValueError, match=r"'nothing'\] matches no nn.Linear; the model has"):
        trainer_of(tmp_path, target_modules=["nothing"]).create_optimizer()


def test_another_rank_on_resume_is_refused_before_anything_changes(tmp_path):
    trainer_of(tmp_path / "run").train()
    other = trainer_of(tmp_path / "other", optimizer={**OPTIONS, "rank": 4})
    with pytest.raises(ValueError, match="param group 1: rank 4 expected, got 8 in the state"):
        other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert not other.optimizer.optimizer.state


def test_a_parameter_in_two_groups_is_named():
    p = nn.Parameter(torch.zeros(4, 4))
    optimizer = frugalore.GaLoreAdamW([("w", p)])
    with pytest.raises(ValueError, match="w: in two param groups"):
        optimizer.add_param_group({"params": [p], "rank": 2})
    assert len(optimizer.param_groups) == 1


def test_sparse_and_complex_are_refused_before_anything_moves():
    first, sparse = nn.Parameter(torch.ones(4, 4)), nn.Embedding(5, 4, sparse=True)
    optimizer = frugalore.GaLoreAdamW([("first", first), ("embed", sparse.weight)])
    first.grad = torch.ones(4, 4)
    sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="embed: a dense gradient expected"):
        optimizer.step()
    assert torch.equal(first, torch.ones(4, 4))
    with pytest.raises(TypeError, match=r"bfloat16 or float16 expected, got torch\.complex64"):
        frugalore.GaLoreAdamW([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))])
