"""INT8 weights in state dicts: plain tensors out, INT8 or floats in, and nothing changed on bad input."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

from frugalore import Int8Weight, dequantize_, quantize_


def _model(seed: int = 0, group_size: int = 256) -> nn.Sequential:
    torch.manual_seed(seed)
    return quantize_(nn.Sequential(nn.Linear(300, 40), nn.GELU(), nn.Linear(40, 7)), group_size=group_size)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def _assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


PARTS = [f"{layer}.weight.{part}" for layer in (0, 2) for part in ("codes", "scale", "zero")]
RECORDS = ["0.weight", "2.weight"]


class TestSave:
    def test_plain_tensors(self):
        state = _model().state_dict()
        assert sorted(state) == sorted([*PARTS, *RECORDS, "0.bias", "2.bias"])
        assert all(type(value) is torch.Tensor for value in state.values())
        assert state["0.weight"].tolist() == [1, 256]

    def test_shares_memory_with_the_model_as_state_dicts_do(self):
        model = _model()
        assert model.state_dict()["0.weight.codes"].data_ptr() == model[0].weight.codes.data_ptr()

    def test_keep_vars(self):
        model = _model()
        state = model.state_dict(keep_vars=True)
        assert state["0.weight.codes"] is model[0].weight.codes and state["0.bias"] is model[0].bias

    def test_inside_another_module(self):
        outer = nn.ModuleDict({"inner": _model()})
        assert {"inner.0.weight.codes", "inner.0.weight"} < outer.state_dict().keys()
        other = nn.ModuleDict({"inner": _model(1)})
        other.load_state_dict(outer.state_dict())
        _assert_same(_tensors(other), _tensors(outer))


class TestLoad:
    @pytest.mark.parametrize("assign", [False, True])
    def test_round_trip_through_a_weights_only_file(self, assign, device):
        model, file = _model().to(device), io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other = _model(1).to(device)
        result = other.load_state_dict(torch.load(file, weights_only=True), assign=assign)
        assert not result.missing_keys and not result.unexpected_keys
        _assert_same(_tensors(other), _tensors(model))
        assert isinstance(other[0].weight, nn.Parameter) and isinstance(other[0].weight, Int8Weight)
        assert other[0].weight.requires_grad

    def test_safetensors(self, tmp_path):
        safetensors = pytest.importorskip("safetensors.torch")
        model, other = _model(), _model(1)
        safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
        other.load_state_dict(safetensors.load_file(tmp_path / "model.safetensors"))
        _assert_same(_tensors(other), _tensors(model))

    @pytest.mark.parametrize("assign", [False, True])
    def test_floats_are_quantised(self, assign):
        floats = dequantize_(_model())
        model = _model(1)
        model.load_state_dict(floats.state_dict(), assign=assign)
        _assert_same(_tensors(model), _tensors(quantize_(floats)))

    def test_a_mix(self):
        source, floats = _model(), dequantize_(_model())
        state = {k: v for k, v in source.state_dict().items() if k.startswith("0.")}
        state |= {k: v for k, v in floats.state_dict().items() if k.startswith("2.")}
        model = _model(1)
        model.load_state_dict(state)
        expected = _tensors(quantize_(floats))
        expected.update({k: v for k, v in _tensors(source).items() if k.startswith("0.")})
        _assert_same(_tensors(model), expected)

    def test_the_module_keeps_its_looks(self):
        model = _model(1).bfloat16()
        model.load_state_dict(_model().state_dict())
        assert model[0].weight.dtype == torch.bfloat16
        assert torch.equal(model[0].weight.codes, _model()[0].weight.codes)

    def test_strided_parts(self):
        state = _model().state_dict()
        state["0.weight.codes"] = state["0.weight.codes"].t().contiguous().t()
        for assign in (False, True):
            model = _model(1)
            model.load_state_dict(state, assign=assign)
            _assert_same(_tensors(model), _tensors(_model()))

    def test_deepcopies_load_into_themselves(self):
        model = _model()
        twin = copy.deepcopy(model)
        before = _tensors(model)
        twin.load_state_dict(_model(1).state_dict())
        _assert_same(_tensors(model), before)
        _assert_same(_tensors(twin), _tensors(_model(1)))

    def test_a_load_counts_as_a_write(self):
        model = _model()
        loss = model(torch.randn(2, 300, requires_grad=True)).sum()
        model.load_state_dict(_model(1).state_dict())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_missing_weight_is_reported(self):
        state = {key: value for key, value in _model().state_dict().items() if not key.startswith("2.weight")}
        assert _model().load_state_dict(state, strict=False).missing_keys == ["2.weight"]
        with pytest.raises(RuntimeError, match=r'Missing key.*"2\.weight"'):
            _model().load_state_dict(state)

    @pytest.mark.parametrize("strict", [True, False])
    def test_into_a_float_model_is_refused(self, strict):
        with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight: .* torch\.Size\(\[2\]\)"):
            dequantize_(_model()).load_state_dict(_model().state_dict(), strict=strict)

    def test_parts_without_a_record_are_accepted(self):
        state = {key: value for key, value in _tensors(_model()).items() if key not in RECORDS}
        model = _model(1)
        model.load_state_dict(state)
        _assert_same(_tensors(model), _tensors(_model()))


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"2.weight.scale": torch.full((7, 1), float("nan"))},
        ValueError,
        r"2\.weight\.scale: positive .* got nan",
    ),
    (
        {"2.weight.scale": torch.full((7, 1), float("inf"))},
        ValueError,
        r"2\.weight\.scale: positive .* got inf",
    ),
    ({"2.weight.scale": torch.full((7, 1), -1.0)}, ValueError, r"2\.weight\.scale: positive .* got -1\.0"),
    ({"2.weight.scale": torch.ones(7, 1).bfloat16()}, TypeError, r"2\.weight\.scale: dtype torch\.float32"),
    ({"2.weight.scale": torch.ones(7, 2)}, ValueError, r"2\.weight\.scale: shape \(7, 1\) .* got \(7, 2\)"),
    ({"2.weight.codes": torch.zeros(7, 40)}, TypeError, r"2\.weight\.codes: dtype torch\.uint8"),
    ({"2.weight.codes": torch.zeros(40, 7).byte()}, ValueError, r"2\.weight\.codes: shape \(7, 40\)"),
    (
        {"2.weight.zero": torch.zeros(7, 1, device="meta").byte()},
        ValueError,
        r"2\.weight\.zero: on another device",
    ),
    ({"2.weight.zero": 3}, TypeError, r"2\.weight\.zero: a tensor expected, got int"),
    ({"2.weight.zero": None}, ValueError, r"has 2\.weight, .*2\.weight\.scale but not 2\.weight\.zero"),
    ({"2.weight": torch.zeros(7, 40)}, ValueError, r"has both 2\.weight and 2\.weight\.codes"),
]
BAD += [
    ({"2.weight": torch.tensor([2, 256])}, ValueError, r"2\.weight: INT8 format 1 expected, got 2"),
    ({"2.weight": torch.tensor([1, 128])}, ValueError, r"2\.weight: saved in groups of 128, .* of 256"),
    ({"2.weight": torch.tensor([1])}, ValueError, r"2\.weight: saved in groups of None"),
]
NO_PARTS = {f"2.weight.{part}": None for part in ("codes", "scale", "zero")}
BAD += [
    (NO_PARTS, ValueError, r"has 2\.weight but not 2\.weight\.codes, 2\.weight\.scale, 2\.weight\.zero"),
    (
        {**NO_PARTS, "2.weight": torch.zeros(7, 41)},
        ValueError,
        r"2\.weight: shape \(7, 40\) .* got \(7, 41\)",
    ),
    (
        {**NO_PARTS, "2.weight": torch.zeros(7, 40).double()},
        TypeError,
        r"2\.weight: float32.* got torch\.float64",
    ),
    (
        {**NO_PARTS, "2.weight": torch.full((7, 40), float("nan"))},
        ValueError,
        r"2\.weight: a NaN or infinite",
    ),
    ({**NO_PARTS, "2.weight": [1.0]}, TypeError, r"2\.weight: a tensor expected, got list"),
]


def _changed(change: dict[str, Any]) -> dict[str, Any]:
    state = {**_tensors(_model(1)), **change}
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[message for _, _, message in BAD])
@pytest.mark.parametrize("strict", [True, False])
def test_bad_input_is_named_and_changes_nothing(change, error, message, strict):
    model = _model()
    before = _tensors(model)
    with pytest.raises(error, match=message):
        model.load_state_dict(_changed(change), strict=strict)
    _assert_same(_tensors(model), before)  # Not even the first layer, whose part of the file is sound.


@pytest.mark.parametrize("wrap", [lambda m: nn.ModuleDict({"m": m}), lambda m: nn.ModuleDict({"m": m[2]})])
def test_bad_input_below_another_module(wrap):
    model, state = _model(), _changed({"2.weight.scale": torch.zeros(7, 1)})
    outer, before = wrap(model), _tensors(model)
    if outer["m"] is model:
        state = {f"m.{key}": value for key, value in state.items()}
    else:
        state = {f"m.{key[2:]}": value for key, value in state.items() if key.startswith("2.")}
    with pytest.raises(
        ValueError, match=r"m\.(2\.)?weight\.scale: positive finite numbers expected, got 0\.0"
    ):
        outer.load_state_dict(state)
    _assert_same(_tensors(model), before)


class TestGroupSize:
    def test_by_the_record(self):
        with pytest.raises(ValueError, match=r"0\.weight: saved in groups of 200, .* in groups of 256"):
            _model().load_state_dict(_model(group_size=200).state_dict())

    def test_by_shape_where_there_is_no_record(self):
        state = {k: v for k, v in _tensors(_model(group_size=100)).items() if k not in RECORDS}
        message = r"0\.weight\.scale: shape \(40, 2\) expected .* of 256\), got \(40, 3\)"
        with pytest.raises(ValueError, match=message):
            _model().load_state_dict(state)


class TestTransformers:
    """A Llama, as people would use it."""

    @pytest.fixture
    def llama(self):
        transformers = pytest.importorskip("transformers")
        config = transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
        )

        def build(seed: int = 0, **options):
            torch.manual_seed(seed)
            config.tie_word_embeddings = options.get("tied", False)
            return transformers.LlamaForCausalLM(config)

        return build

    IDS = torch.arange(24).reshape(2, 12)

    @pytest.mark.parametrize("tied", [False, True])
    def test_trains_as_the_float_model(self, llama, tied):
        model = quantize_(llama(tied=tied))
        assert sum(isinstance(p, Int8Weight) for p in model.parameters()) == 14
        assert type(model.lm_head.weight) is nn.Parameter
        floats = dequantize_(copy.deepcopy(model))
        losses = [m(input_ids=self.IDS, labels=self.IDS).loss for m in (model, floats)]
        assert torch.equal(*losses)
        for loss in losses:
            loss.backward()
        for a, b in zip(model.parameters(), floats.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)

    def test_gradient_checkpointing(self, llama):
        model = quantize_(llama())
        model(input_ids=self.IDS, labels=self.IDS).loss.backward()
        expected = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        model.gradient_checkpointing_enable()
        model.train()
        model(input_ids=self.IDS, labels=self.IDS).loss.backward()
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))

    def test_state_dict_and_save_pretrained(self, llama, tmp_path):
        load_file = pytest.importorskip("safetensors.torch").load_file
        model = quantize_(llama())
        for state in (model.state_dict(), self._saved(model, tmp_path, load_file)):
            other = quantize_(llama(1))
            other.load_state_dict(state)
            assert torch.equal(other(self.IDS).logits, model(self.IDS).logits)

    def _saved(self, model, folder, load_file):
        model.save_pretrained(folder)
        return load_file(folder / "model.safetensors")
