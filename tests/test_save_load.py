"""Saving and loading models with INT8 weights without transformers' loader, and ``save_dequantized``."""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from frugalore import FusedQGaLore, Int8Weight, dequantize_, param_groups, quantize_, save_dequantized

safetensors = pytest.importorskip("safetensors.torch")


def _model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return quantize_(nn.Sequential(nn.Linear(300, 40), nn.GELU(), nn.Linear(40, 7)).to(dtype))


def _assert_same(a: nn.Module | dict, b: nn.Module | dict) -> None:
    a, b = (x.state_dict() if isinstance(x, nn.Module) else x for x in (a, b))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


class TestWholeModels:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_pickle(self, dtype, device):
        model = _model(dtype=dtype).to(device)
        model[2].weight.requires_grad_(False)
        loaded = pickle.loads(pickle.dumps(model))
        _assert_same(loaded, model)
        assert isinstance(loaded[0].weight, nn.Parameter) and loaded[0].weight.dtype == dtype
        assert loaded[0].weight.requires_grad and not loaded[2].weight.requires_grad

    def test_torch_save_of_the_model(self, tmp_path, device):
        model = _model().to(device)
        torch.save(model, tmp_path / "model.pt")
        loaded = torch.load(tmp_path / "model.pt", weights_only=False, map_location="cpu")
        _assert_same(loaded, copy.deepcopy(model).cpu())
        loaded(torch.randn(2, 300)).sum().backward()
        loaded.load_state_dict(model.state_dict())  # The hooks came along.

    def test_deepcopy_is_apart(self):
        model = _model()
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin[0].weight.copy_(torch.zeros(40, 300))
        _assert_same(model, _model())

    @pytest.mark.parametrize("convert", [lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m.to("meta")])
    def test_conversions(self, convert):
        model = convert(_model())
        assert isinstance(model[0].weight, Int8Weight) and isinstance(model[0].weight, nn.Parameter)
        assert model[0].weight.dtype == model[0].bias.dtype
        assert model[0].weight.device == model[0].weight.codes.device == model[0].bias.device
        assert model[0].weight.scale.dtype == torch.float32
        state = model.state_dict()
        assert {"0.weight", "0.weight.codes", "0.weight.scale", "0.weight.zero"} < state.keys()

    def test_from_the_meta_device(self):
        model = _model(1).to("meta")
        model.load_state_dict(_model().state_dict(), assign=True)
        _assert_same(model, _model())

    def test_shared_weights(self, tmp_path):
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model[1].weight = model[0].weight
        quantize_(model)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
            assert other[0].weight is other[1].weight
            _assert_same(other, model)
        save_dequantized(model, tmp_path)
        floats = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        floats.load_state_dict(safetensors.load_file(tmp_path / "model.safetensors"))
        _assert_same(floats, dequantize_(model))


class TestSafetensors:
    def test_save_model_and_load_model(self, tmp_path, device):
        model, other = _model().to(device), _model(1).to(device)
        safetensors.save_model(model, str(tmp_path / "m.safetensors"))
        missing, unexpected = safetensors.load_model(other, str(tmp_path / "m.safetensors"))
        assert not missing and not unexpected
        _assert_same(other, model)

    @pytest.mark.parametrize("strict", [True, False])
    def test_a_float_model_refuses_an_int8_file(self, tmp_path, strict):
        safetensors.save_model(_model(), str(tmp_path / "m.safetensors"))
        with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
            safetensors.load_model(dequantize_(_model()), str(tmp_path / "m.safetensors"), strict=strict)

    def test_group_size_is_in_the_file(self, tmp_path):
        torch.manual_seed(0)
        other = quantize_(nn.Sequential(nn.Linear(300, 40), nn.GELU(), nn.Linear(40, 7)), group_size=200)
        safetensors.save_model(other, str(tmp_path / "m.safetensors"))
        with pytest.raises(ValueError, match=r"0\.weight: saved in groups of 200"):
            safetensors.load_model(_model(), str(tmp_path / "m.safetensors"))


class TestSaveDequantized:
    @pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
    def test_values(self, tmp_path, dtype, device):
        model = _model().to(device)
        before = copy.deepcopy(model)
        save_dequantized(model, tmp_path / "new" / "folder", dtype)
        saved = safetensors.load_file(tmp_path / "new" / "folder" / "model.safetensors")
        _assert_same(saved, dequantize_(copy.deepcopy(before), dtype).to(dtype).cpu())
        _assert_same(model, before)
        assert isinstance(model[0].weight, Int8Weight)
        assert [file.name for file in (tmp_path / "new" / "folder").iterdir()] == ["model.safetensors"]

    def test_a_float_model(self, tmp_path):
        model = dequantize_(_model())
        save_dequantized(model, tmp_path)
        _assert_same(safetensors.load_file(tmp_path / "model.safetensors"), model)

    def test_an_interrupted_write_loses_nothing(self, tmp_path, monkeypatch):
        save_dequantized(_model(), tmp_path)
        before = (tmp_path / "model.safetensors").read_bytes()

        def interrupted(tensors, file, metadata):
            Path(file).write_bytes(before[:100])
            raise KeyboardInterrupt

        monkeypatch.setattr(safetensors, "save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_dequantized(_model(1), tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
        assert (tmp_path / "model.safetensors").read_bytes() == before

    def test_replaces_weights_and_leaves_other_files(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text("{}")
        (tmp_path / "model-00001-of-00002.safetensors").write_text("an earlier save's")
        save_dequantized(_model(), tmp_path)
        assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "tokenizer.json"}

    def test_bad_arguments(self, tmp_path):
        with pytest.raises(TypeError, match=r"dtype: float32, bfloat16 or float16 expected, got torch\.int8"):
            save_dequantized(_model(), tmp_path, torch.int8)
        with pytest.raises(TypeError, match="max_shard_size: only for models with save_pretrained"):
            save_dequantized(_model(), tmp_path, max_shard_size="1GB")
        (tmp_path / "file").write_text("")
        with pytest.raises(FileExistsError):
            save_dequantized(_model(), tmp_path / "file")

    def test_without_safetensors(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "safetensors.torch", None)
        with pytest.raises(ImportError, match=r"needs safetensors: pip install 'frugalore\[transformers\]'"):
            save_dequantized(_model(), tmp_path / "folder")
        assert not (tmp_path / "folder").exists()


class TestSaveDequantizedTransformers:
    @pytest.fixture
    def transformers(self):
        return pytest.importorskip("transformers", minversion="5")

    def _llama(self, transformers, dtype=torch.float32, **options):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            **options,
        )
        return quantize_(transformers.LlamaForCausalLM(config).to(dtype))

    @pytest.mark.parametrize("tied", [False, True])
    @pytest.mark.parametrize("size", ["1GB", "30KB"])
    def test_same_files_as_of_the_float_model(self, transformers, tmp_path, size, tied, device):
        model = self._llama(transformers, tie_word_embeddings=tied).to(device)
        save_dequantized(model, tmp_path / "ours", max_shard_size=size)
        dequantize_(copy.deepcopy(model)).save_pretrained(tmp_path / "theirs", max_shard_size=size)
        names = {file.name for file in (tmp_path / "theirs").iterdir()}
        assert {file.name for file in (tmp_path / "ours").iterdir()} == names
        assert len(names) > 5 or size == "1GB"
        for name in names:
            assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name
        model.save_pretrained(tmp_path / "int8")  # It is what it was.
        assert json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]["modules"]

    @pytest.mark.parametrize("dtype", [None, torch.bfloat16])
    def test_loads_where_there_is_no_frugalore(self, transformers, tmp_path, dtype):
        model = self._llama(transformers)
        save_dequantized(model, tmp_path, dtype)
        program = (
            "import sys; sys.modules['frugalore'] = None\n"
            "import transformers, torch\n"
            f"model = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})\n"
            f"torch.save(model.state_dict(), {str(tmp_path / 'loaded.pt')!r})\n"
        )
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert "REPORT" not in result.stderr
        expected = dequantize_(copy.deepcopy(model), dtype).to(dtype)
        _assert_same(torch.load(tmp_path / "loaded.pt"), expected)

    def test_over_an_int8_folder(self, transformers, tmp_path):
        model = self._llama(transformers)
        model.save_pretrained(tmp_path, max_shard_size="30KB")
        save_dequantized(model, tmp_path)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        _assert_same(loaded, dequantize_(model))

    def test_an_interrupted_write_loses_nothing(self, transformers, tmp_path, monkeypatch):
        model = self._llama(transformers)
        model.save_pretrained(tmp_path)
        names = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        calls = iter([None, None])
        original = Int8Weight.dequantize

        def fails_at_the_third(weight, dtype=None):
            if next(calls, "over") == "over":
                raise KeyboardInterrupt
            return original(weight, dtype)

        monkeypatch.setattr(Int8Weight, "dequantize", fails_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            save_dequantized(model, tmp_path, max_shard_size="30KB")
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == names
        model.save_pretrained(tmp_path)

    def test_a_writer_that_reads_past_torch_is_found_out(self, transformers, tmp_path, monkeypatch):
        model = self._llama(transformers)
        monkeypatch.setattr(type(model), "save_pretrained", lambda self, folder, **_: None)
        with pytest.raises(RuntimeError, match=r"wrote model\.layers\.0.* past torch; nothing was saved"):
            save_dequantized(model, tmp_path)

    def test_push_to_hub(self, transformers, tmp_path):
        with pytest.raises(TypeError, match="push_to_hub: upload the folder"):
            save_dequantized(self._llama(transformers), tmp_path, push_to_hub=True)


def test_optimizer_beside_a_safetensors_file_goes_on_to_the_bit(tmp_path):
    def prepare(model):
        return FusedQGaLore(param_groups(model, target_modules="all-linear", rank=4), lr=1e-2)

    def step(model, optimizer, count):
        x = torch.randn(count, 5, 300, generator=torch.Generator().manual_seed(count))
        for batch in x:
            model(batch).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    model = _model()
    optimizer = prepare(model)
    step(model, optimizer, 4)
    safetensors.save_model(model, str(tmp_path / "m.safetensors"))
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    step(model, optimizer, 3)

    other = _model(1)
    safetensors.load_model(other, str(tmp_path / "m.safetensors"))
    optimizer = prepare(other)
    optimizer.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    step(other, optimizer, 3)
    _assert_same(other, model)
