"""transformers: ``save_pretrained``, ``from_pretrained``, configs and the refusals, on tiny models."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from frugalore import FusedQGaLore, Int8Weight, dequantize_, param_groups, quantize_

transformers = pytest.importorskip("transformers", minversion="5")
safetensors = pytest.importorskip("safetensors.torch")

from frugalore.integrations.transformers import FrugaloreInt8Config, int8_modules  # noqa: E402

IDS = torch.arange(24).reshape(2, 12)
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def _float_model(kind: str = "Llama", seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **options)
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def _load(folder: Path, **options) -> nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def _assert_same(a: nn.Module, b: nn.Module) -> None:
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def _stock(folder: Path) -> subprocess.CompletedProcess:
    """``from_pretrained`` in a process that cannot import frugalore."""
    program = (
        "import sys; sys.modules['frugalore'] = None\n"
        "import transformers, torch\n"
        f"model = transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r})\n"
        f"torch.save(model.state_dict(), {str(folder / 'loaded.pt')!r})\n"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path) -> Path:
    quantize_(_float_model()).save_pretrained(tmp_path / "int8")
    return tmp_path / "int8"


class TestRoundTrip:
    @pytest.mark.parametrize("tied", [False, True])
    @pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Mistral"])
    def test_same_codes_and_same_outputs(self, tmp_path, kind, tied):
        model = quantize_(_float_model(kind, tie_word_embeddings=tied), group_size=48)
        model.save_pretrained(tmp_path)
        loaded, info = _load(tmp_path, output_loading_info=True)
        assert not any(info.values())
        _assert_same(loaded, model)
        assert int8_modules(loaded) == int8_modules(model) and len(int8_modules(model)) == 14
        assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)

    def test_the_weights_are_trainable_parameters(self, folder):
        model = _load(folder)
        weight = model.model.layers[0].mlp.up_proj.weight
        assert isinstance(weight, Int8Weight) and isinstance(weight, nn.Parameter) and weight.requires_grad
        model(input_ids=IDS, labels=IDS).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_again_and_again(self, folder, tmp_path):
        _load(folder).save_pretrained(tmp_path / "second")
        _assert_same(_load(tmp_path / "second"), _load(folder))
        assert _config(tmp_path / "second") == _config(folder)

    def test_shards(self, tmp_path):
        model = quantize_(_float_model())
        model.save_pretrained(tmp_path, max_shard_size="30KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
        _assert_same(_load(tmp_path), model)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_dtype_is_what_the_weights_show(self, folder, dtype):
        model = _load(folder, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert all(
            torch.equal(model.state_dict()[key], value)
            for key, value in _load(folder).state_dict().items()
            if key.endswith((".codes", ".scale", ".zero"))
        )
        model(IDS)

    def test_conversions_after_loading(self, folder):
        for model in (_load(folder), quantize_(_float_model())):
            weight = model.half().model.layers[0].mlp.up_proj.weight
            assert isinstance(weight, Int8Weight) and weight.dtype == model.dtype == torch.float16
            assert model.to(torch.bfloat16).float().dtype == torch.float32

    def test_a_bfloat16_model(self, tmp_path):
        model = quantize_(_float_model().bfloat16())
        model.save_pretrained(tmp_path)
        assert _load(tmp_path).dtype == torch.bfloat16
        _assert_same(_load(tmp_path), model)

    def test_onto_a_device(self, folder, device):
        model = _load(folder).to(device)
        model.save_pretrained(folder)
        _assert_same(_load(folder).to(device), model)

    def test_device_map(self, folder, device):
        pytest.importorskip("accelerate")
        model = _load(folder, device_map=str(device))
        assert model.model.layers[0].mlp.up_proj.weight.codes.device.type == device.type
        _assert_same(model.cpu(), _load(folder))

    def test_different_group_sizes_and_later_layers(self, tmp_path):
        model = quantize_(_float_model(), ["mlp"], group_size=48)
        quantize_(model, ["q_proj"], group_size=16)
        model.save_pretrained(tmp_path)
        loaded = _load(tmp_path)
        _assert_same(loaded, model)
        assert loaded.model.layers[0].self_attn.q_proj.weight.group_size == 16
        assert loaded.model.layers[0].mlp.up_proj.weight.group_size == 48
        assert type(loaded.model.layers[0].self_attn.k_proj.weight) is nn.Parameter

    def test_base_model(self, tmp_path):
        model = _float_model()
        quantize_(model.model)
        model.save_pretrained(tmp_path / "whole")
        _assert_same(_load(tmp_path / "whole"), model)
        base, info = transformers.AutoModel.from_pretrained(tmp_path / "whole", output_loading_info=True)
        _assert_same(base, model.model)
        assert not info["missing_keys"] and info["unexpected_keys"] == {"lm_head.weight"}
        base.save_pretrained(tmp_path / "base")
        loaded = _load(tmp_path / "base")  # lm_head is new, as with floats.
        _assert_same(loaded.model, base)

    @pytest.mark.parametrize("kind", ["Mixtral", "Phi3"])
    def test_models_whose_names_change_on_the_way(self, tmp_path, kind):
        model = quantize_(_float_model(kind, pad_token_id=0))
        model.save_pretrained(tmp_path)
        _assert_same(_load(tmp_path), model)

    def test_config_and_state_dict_in_memory(self):
        model = quantize_(_float_model())
        loaded = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict())
        _assert_same(loaded, model)

    def test_state_dict_beside_the_loader(self, folder):
        model = quantize_(_float_model(seed=1))
        model.load_state_dict(safetensors.load_file(folder / "model.safetensors"))
        _assert_same(model, _load(folder))


class TestConfig:
    def test_quantize_and_dequantize_keep_it(self, tmp_path):
        model = quantize_(_float_model(), ["mlp"], group_size=32)
        assert model.config.quantization_config.modules["model.layers.0.mlp.up_proj"] == 32
        dequantize_(model).save_pretrained(tmp_path)
        assert "quantization_config" not in _config(tmp_path)
        assert getattr(model, "hf_quantizer", None) is None
        assert type(_load(tmp_path).model.layers[0].mlp.up_proj.weight) is nn.Parameter

    def test_transformers_own_dequantize(self, folder):
        model = _load(folder)
        expected = model.model.layers[0].mlp.up_proj.weight.dequantize()
        model.dequantize()
        assert type(model.model.layers[0].mlp.up_proj.weight) is nn.Parameter
        assert torch.equal(model.model.layers[0].mlp.up_proj.weight, expected)
        assert not hasattr(model.config, "quantization_config")

    def test_copies(self, folder):
        model = _load(folder)
        twin = copy.deepcopy(model)
        dequantize_(twin)
        assert int8_modules(model) and model.config.quantization_config.modules
        model.save_pretrained(folder)
        _assert_same(_load(folder), model)

    def test_unknown_entries(self, folder):
        config = _config(folder)
        config["quantization_config"]["sparsity"] = 2
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"unknown entries \['sparsity'\]"):
            _load(folder)

    def test_without_transformers(self):
        program = "import sys, frugalore; assert 'transformers' not in sys.modules"
        subprocess.run([sys.executable, "-c", program], check=True)


class TestFloatCheckpoint:
    def test_is_quantised(self, tmp_path):
        model = _float_model()
        model.save_pretrained(tmp_path / "float")
        config = FrugaloreInt8Config(group_size=32, target_modules=["mlp"])
        loaded = _load(tmp_path / "float", quantization_config=config)
        _assert_same(loaded, quantize_(model, ["mlp"], group_size=32))
        loaded.save_pretrained(tmp_path / "int8")
        _assert_same(_load(tmp_path / "int8"), loaded)

    @pytest.mark.parametrize("group_size", [0, -1, "256", 1.5])
    def test_bad_group_size(self, group_size):
        with pytest.raises(ValueError, match="group_size: a positive integer expected"):
            FrugaloreInt8Config(group_size=group_size)


class TestRefusals:
    def test_a_process_without_frugalore(self, folder):
        result = _stock(folder)
        assert result.returncode != 0 and not (folder / "loaded.pt").exists()
        assert "Unknown quantization type, got frugalore_int8" in result.stderr
        assert "MISMATCH" in result.stderr and "RuntimeError" in result.stderr

    def test_no_quantization_config(self, folder):
        config = _config(folder)
        del config["quantization_config"]
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(RuntimeError, match="mismatched"):
            _load(folder)

    def _edit(self, folder: Path, **changes: torch.Tensor | None) -> None:
        file = folder / "model.safetensors"
        tensors = safetensors.load_file(file)
        tensors.update({f"model.layers.1.mlp.up_proj.weight{k}": v for k, v in changes.items()})
        tensors = {key: value for key, value in tensors.items() if value is not None}
        safetensors.save_file(tensors, file, metadata={"format": "pt"})

    @pytest.mark.parametrize("part", ["codes", "scale", "zero"])
    def test_a_part_is_missing(self, folder, part):
        self._edit(folder, **{f".{part}": None})
        with pytest.raises(ValueError, match=rf"lacks model\.layers\.1\.mlp\.up_proj\.weight\.{part}"):
            _load(folder)

    def test_mismatched_sizes_are_never_ignored(self, folder):
        self._edit(folder, **{".codes": torch.zeros(3, 3, dtype=torch.uint8)})
        with pytest.raises(ValueError, match=r"(lacks )?model\.layers\.1\.mlp\.up_proj\.weight\.codes"):
            _load(folder, ignore_mismatched_sizes=True)

    def test_a_float_folder_whose_config_says_int8(self, tmp_path):
        model = _float_model()
        twin = type(model)(model.config)
        quantize_(model)
        twin.save_pretrained(tmp_path)
        with pytest.raises(
            ValueError, match=r"holds a float weight, but quantization_config in config\.json"
        ):
            _load(tmp_path)

    def test_double(self, folder):
        with pytest.raises(TypeError, match=r"float32, bfloat16 or float16 expected, got torch\.float64"):
            _load(folder, dtype=torch.float64)

    def test_a_shard_is_missing(self, tmp_path):
        quantize_(_float_model()).save_pretrained(tmp_path, max_shard_size="30KB")
        sorted(tmp_path.glob("*.safetensors"))[1].unlink()
        with pytest.raises(OSError):
            _load(tmp_path)

    def test_wrong_group_size_of_a_base_model(self, tmp_path):
        model = _float_model()
        quantize_(model.model)
        model.save_pretrained(tmp_path)
        config = _config(tmp_path)
        config["quantization_config"]["modules"]["layers.1.mlp.up_proj"] = 200
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"1\.mlp\.up_proj\.weight: saved in groups of 256, .* 200"):
            _load(tmp_path)

    def test_wrong_group_size(self, folder):
        config = _config(folder)
        config["quantization_config"]["modules"]["model.layers.1.mlp.up_proj"] = 200
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"1\.mlp\.up_proj\.weight: saved in groups of 256, .* 200"):
            _load(folder)

    def test_wrong_shape(self, folder):
        self._edit(folder, **{".codes": torch.zeros(96, 63, dtype=torch.uint8)})
        with pytest.raises((RuntimeError, ValueError), match=r"mismatched|up_proj\.weight\.codes: shape"):
            _load(folder)

    def test_wrong_scale(self, folder):
        self._edit(folder, **{".scale": torch.full((96, 1), float("nan"))})
        with pytest.raises(ValueError, match=r"up_proj\.weight\.scale: positive finite .* got nan"):
            _load(folder)

    def test_a_newer_format(self, folder):
        self._edit(folder, **{"": torch.tensor([2, 256])})
        with pytest.raises(ValueError, match="INT8 format 1 expected, got 2"):
            _load(folder)

    def test_a_module_that_is_not_there(self, folder):
        config = _config(folder)
        config["quantization_config"]["modules"]["model.layers.7.mlp.up_proj"] = 256
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"model\.layers\.7\.mlp\.up_proj is no nn\.Linear of Llama"):
            _load(folder)


def test_readme(tmp_path, monkeypatch):
    """The snippet of the README's section on saving, as it stands there."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    section = readme.split("## Saving and loading")[1].split("\n## ")[0]
    snippet = section.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names = {"model": quantize_(_float_model())}
    before = copy.deepcopy(names["model"])
    exec(snippet, names)
    _assert_same(names["model"], before)
    floats = _load(tmp_path / "run" / "float")
    assert floats.dtype == torch.bfloat16 and not int8_modules(floats)
    _assert_same(floats, dequantize_(before, torch.bfloat16).bfloat16())


class TestTraining:
    def _steps(self, model, optimizer, count: int) -> None:
        for _ in range(count):
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def _optimizer(self, model) -> FusedQGaLore:
        groups = param_groups(model, target_modules=["mlp", "self_attn"], rank=4, update_proj_gap=3)
        return FusedQGaLore(groups, lr=1e-2)

    def test_goes_on_to_the_bit(self, tmp_path):
        model = quantize_(_float_model())
        optimizer = self._optimizer(model)
        self._steps(model, optimizer, 4)
        model.save_pretrained(tmp_path)
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        self._steps(model, optimizer, 4)

        loaded = _load(tmp_path)
        other = self._optimizer(loaded)
        other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
        self._steps(loaded, other, 4)
        _assert_same(loaded, model)

    def _trainer(self, model, folder):
        pytest.importorskip("accelerate")
        optimizer = self._optimizer(model)
        return transformers.Trainer(
            model,
            transformers.TrainingArguments(
                str(folder),
                max_steps=6,
                save_steps=3,
                per_device_train_batch_size=1,
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=[{"input_ids": IDS[i % 2], "labels": IDS[i % 2]} for i in range(8)],
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        )

    def test_trainer_saves_and_resumes_to_the_bit(self, folder, tmp_path):
        model, other = _load(folder), _load(folder)
        self._trainer(model, tmp_path).train()
        checkpoint = str(tmp_path / "checkpoint-3")
        self._trainer(other, tmp_path / "resumed").train(resume_from_checkpoint=checkpoint)
        _assert_same(other, model)
        _assert_same(_load(tmp_path / "checkpoint-6"), model)

    def test_trainer_does_not_resume_a_float_model_from_int8(self, folder, tmp_path):
        self._trainer(_load(folder), tmp_path).train()
        floats = self._trainer(_float_model(), tmp_path / "floats")
        with pytest.raises(RuntimeError, match="size mismatch"):
            floats.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
