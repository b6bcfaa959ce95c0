"""Configurations: sources, unknown keys, values out of range, and what identifies a run."""

from __future__ import annotations

import json
import sys

import pytest

from frugalore.pretrain import MODELS, PRESETS, PretrainConfig, config
from frugalore.pretrain.errors import ConfigError
from frugalore.pretrain.loop import learning_rate_factor
from frugalore.pretrain.model import build_model, llama_config
from frugalore.pretrain.optimizers import entry


def test_every_preset_and_model_shape_is_valid():
    for name in PRESETS:
        config.from_dict(config.load(name))
    for name in MODELS:
        llama_config(config.from_dict({"model": name}))


def test_json_and_toml_say_the_same(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"steps": 7, "model": {"hidden_size": 32}}))
    (tmp_path / "a.toml").write_text("steps = 7\n[model]\nhidden_size = 32\n")
    first, second = (config.from_dict(config.load(str(tmp_path / f"a.{kind}"))) for kind in ("json", "toml"))
    assert first == second
    assert first.steps == 7


def test_a_configuration_survives_json():
    one = PretrainConfig(target_modules=["attn"], lr=1e-3, model={"hidden_size": 32})
    two = config.from_dict(json.loads(json.dumps(one.to_dict())))
    assert one == two
    assert config.digest(one) == config.digest(two)


def test_unknown_keys_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"unknown keys: rnak \(did you mean rank\?\), zzz"):
        config.from_dict({"rnak": 3, "zzz": 1})


def test_unknown_model_keys_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"model: unknown key: hiden_size \(did you mean hidden_size\?\)"):
        build_model(PretrainConfig(model={"hiden_size": 32}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank: an integer of at least 1 expected, got 0"),
        ({"rank": 1.5}, "rank: an integer"),
        ({"steps": True}, "steps: an integer"),
        ({"seed": -1}, "seed: an integer of at least 0"),
        ({"lr": 0}, "lr: a finite number greater than 0 expected, got 0"),
        ({"lr": float("nan")}, "lr: a finite number"),
        ({"lr": "1e-3"}, "lr: a finite number greater than 0 expected, got '1e-3'"),
        ({"max_norm": float("inf")}, "max_norm: a finite number"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio: at most 1"),
        ({"dtype": "float16"}, "dtype: one of float32, bfloat16 expected, got 'float16'"),
        ({"device": "tpu"}, "device: one of"),
        ({"model": "7t"}, "model: a table or one of demo"),
        ({"model": 3}, "model: a table"),
        ({"data": 3}, "data: a path expected, got 3"),
        ({"optimizer": 3}, "optimizer: a name expected, got 3"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(values, message):
    with pytest.raises(ConfigError, match=message):
        config.from_dict(values)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "cannot be read"),
        ("a.json", "[1]", "holds list"),
        ("a.toml", "steps = = 1", "cannot be read"),
        ("a.yaml", "steps: 1", "a .json or .toml file expected"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        config.load(str(tmp_path / name))


def test_a_missing_file_is_refused_with_the_presets():
    with pytest.raises(ConfigError, match=r"neither a file nor a preset \(demo\): nowhere.json"):
        config.load("nowhere.json")


def test_what_byte_level_text_decides_is_checked():
    small = {"hidden_size": 32, "num_attention_heads": 2}
    with pytest.raises(ConfigError, match=r"model.vocab_size: 256 \(bytes\) expected, got 1000"):
        llama_config(PretrainConfig(model={**small, "vocab_size": 1000}))
    with pytest.raises(ConfigError, match="max_position_embeddings: at least sequence_length 256"):
        llama_config(PretrainConfig(model={**small, "max_position_embeddings": 128}))


def test_a_shape_that_transformers_refuses_is_a_configuration_error():
    with pytest.raises(ConfigError, match="model: "):
        build_model(PretrainConfig(model={"hidden_size": 33, "num_attention_heads": 2}))


def test_an_unknown_optimizer_is_refused_with_those_that_exist():
    with pytest.raises(ConfigError, match=r"optimizer: one of .*adamw.* expected, got 'adamm'"):
        entry("adamm")


def test_differences_name_the_keys_and_both_values():
    one = PretrainConfig(model={"hidden_size": 32}, rank=4, data="a", save_every=3)
    two = one.replace(model={"hidden_size": 64}, rank=8, data="b", save_every=5)
    assert config.differences(one, two) == ["rank: 4 -> 8", "model.hidden_size: 32 -> 64"]
    assert config.differences(one, one) == []


def test_the_schedule_warms_up_and_ends_at_its_floor():
    run = PretrainConfig(steps=100, warmup_steps=10, min_lr_ratio=0.1)
    factors = [learning_rate_factor(run, step) for step in range(1, 101)]
    assert factors[4] == 0.5
    assert factors[9] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.1)
    assert learning_rate_factor(PretrainConfig(steps=1, warmup_steps=0), 1) == pytest.approx(0.1)


def test_a_short_run_keeps_the_proportion_of_the_warm_up():
    assert PretrainConfig(steps=10, warmup_steps=20).warmup_steps == 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is in the library from Python 3.11 on")
def test_toml_needs_no_package_where_python_has_it(tmp_path):
    (tmp_path / "a.toml").write_text("rank = 3\n")
    assert config.load(str(tmp_path / "a.toml")) == {"rank": 3}
