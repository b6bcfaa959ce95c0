"""quantize_ and dequantize_: which weights, what stays, what is refused."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from frugalore import Int8Weight, dequantize_, ops, quantize_


class _Model(nn.Module):
    def __init__(self, tied: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 32)
        self.body = nn.Sequential(nn.Linear(32, 300), nn.GELU(), nn.Linear(300, 32, bias=False))
        self.lm_head = nn.Linear(32, 11, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, ids):
        return self.lm_head(self.body(self.embed(ids)))


def _int8(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if isinstance(parameter, Int8Weight)]


def _snapshot(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


def _assert_untouched(model: nn.Module, before: dict[str, nn.Parameter]) -> None:
    assert {name: id(p) for name, p in model.named_parameters()} == {
        name: id(p) for name, p in before.items()
    }
    assert not any(
        module._state_dict_hooks or module._load_state_dict_pre_hooks for module in model.modules()
    )


BODY = ["body.0.weight", "body.2.weight"]


class TestTargets:
    def test_default_leaves_the_output_head(self):
        model = _Model()
        assert quantize_(model) is model
        assert _int8(model) == BODY

    def test_default_leaves_tied_embeddings(self):
        model = _Model(tied=True)
        model.head, model.lm_head = model.lm_head, nn.Identity()
        assert _int8(quantize_(model)) == BODY

    def test_default_leaves_what_the_model_calls_its_output_embeddings(self):
        model = _Model()
        model.get_output_embeddings = lambda: model.body[2]
        assert _int8(quantize_(model)) == BODY[:1]

    def test_named(self):
        assert _int8(quantize_(_Model(), "all-linear")) == [*BODY, "lm_head.weight"]
        assert _int8(quantize_(_Model(), ["body.2"])) == BODY[1:]
        assert _int8(quantize_(_Model(), r"body\.\d")) == BODY

    def test_a_single_layer(self):
        layer = quantize_(nn.Linear(300, 4))
        assert isinstance(layer.weight, Int8Weight) and "weight.codes" in layer.state_dict()

    def test_no_match(self):
        with pytest.raises(ValueError, match="'attn' matches no"):
            quantize_(_Model(), "attn")
        with pytest.raises(ValueError, match=r"no nn\.Linear besides the output head"):
            quantize_(nn.ModuleDict({"lm_head": nn.Linear(2, 2)}))


class TestWhatStays:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_values_bias_and_class(self, dtype, device):
        layer = nn.Linear(300, 7).to(device=device, dtype=dtype)
        weight, bias = layer.weight, layer.bias
        quantize_(layer, group_size=128)
        groups = ops.int8_quantize(weight.detach(), 128)
        assert torch.equal(layer.weight.codes, groups.codes) and torch.equal(layer.weight.scale, groups.scale)
        assert type(layer) is nn.Linear and layer.bias is bias and type(bias) is nn.Parameter
        assert isinstance(layer.weight, nn.Parameter) and layer.weight.dtype == dtype

    def test_looks(self):
        layer = nn.Linear(300, 7)
        codes = ops.int8_quantize(layer.weight.detach()).codes
        quantize_(layer, dtype=torch.bfloat16)
        assert layer.weight.dtype == torch.bfloat16 and layer.bias.dtype == torch.float32
        assert torch.equal(layer.weight.codes, codes)

    def test_requires_grad_and_grad(self):
        model = _Model()
        model.body[0].weight.requires_grad_(False)
        model(torch.arange(5)).sum().backward()
        gradient = model.body[2].weight.grad
        quantize_(model)
        assert not model.body[0].weight.requires_grad and model.body[2].weight.requires_grad
        assert model.body[2].weight.grad is gradient

    def test_a_shared_weight_stays_shared(self):
        a, b = nn.Linear(8, 8), nn.Linear(8, 8)
        b.weight = a.weight
        model = nn.Sequential(a, b)
        quantize_(model, ["0"])
        assert isinstance(a.weight, Int8Weight) and b.weight is a.weight
        assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
        twin = copy.deepcopy(model)
        assert twin[0].weight is twin[1].weight
        twin.load_state_dict(model.state_dict())
        assert twin[0].weight is twin[1].weight
        dequantize_(model)
        assert a.weight is b.weight and type(a.weight) is nn.Parameter

    def test_twice_is_once(self):
        model = quantize_(_Model(), ["body.0"])
        weight = model.body[0].weight
        quantize_(model)
        quantize_(model)
        assert model.body[0].weight is weight and _int8(model) == BODY
        assert len(model.body[0]._state_dict_hooks) == 1
        assert len(model.body[0]._load_state_dict_pre_hooks) == 1
        assert len(model._load_state_dict_pre_hooks) == 1

    def test_whole_model_through_torch_save(self):
        model, file = quantize_(_Model()), io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        ids = torch.arange(5)
        assert torch.equal(loaded(ids), model(ids)) and _int8(loaded) == BODY
        assert list(loaded.state_dict()) == list(model.state_dict())

    def test_deepcopy_trains_on_its_own(self):
        model = quantize_(_Model())
        twin, ids = copy.deepcopy(model), torch.arange(5)
        expected = model(ids)
        with torch.no_grad():
            twin.body[0].weight.copy_(torch.zeros(300, 32))
        assert torch.equal(model(ids), expected) and not torch.equal(twin(ids), expected)


class TestDequantize:
    def test_values_and_dtype(self):
        model = quantize_(_Model())
        expected = model.body[0].weight.dequantize(torch.float32).detach()
        floats = dequantize_(copy.deepcopy(model), torch.bfloat16)
        assert floats.body[0].weight.dtype == torch.bfloat16 and floats.embed.weight.dtype == torch.float32
        assert dequantize_(model) is model
        assert type(model.body[0].weight) is nn.Parameter and torch.equal(model.body[0].weight, expected)
        assert list(model.state_dict()) == list(_Model().state_dict())
        _assert_untouched(model, _snapshot(model))

    def test_without_int8_weights(self):
        model = _Model()
        before = _snapshot(model)
        dequantize_(model)
        _assert_untouched(model, before)

    def test_dtype(self):
        with pytest.raises(TypeError, match=r"dtype: float32, bfloat16 or float16 expected, got torch\.int8"):
            dequantize_(_Model(), torch.int8)

    def test_quantising_again_moves_no_code_by_more_than_one(self):
        model = quantize_(_Model())
        codes = model.body[0].weight.codes.clone()
        again = quantize_(dequantize_(model)).body[0].weight
        # The range of the values that codes stand for may be one step short of the range of the floats.
        assert (again.codes.int() - codes.int()).abs().max() <= 1


class TestRefused:
    """Each before anything is changed."""

    def _refuses(self, error, message, prepare=lambda model: None, **options) -> None:
        model = _Model()
        prepare(model)
        before = _snapshot(model)
        with pytest.raises(error, match=message):
            quantize_(model, **options)
        _assert_untouched(model, before)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_non_finite(self, bad):
        def prepare(model):
            model.body[2].weight.data[3, 7] = bad

        self._refuses(ValueError, r"body\.2\.weight: has a NaN or infinite element", prepare)

    def test_meta(self):
        self._refuses(ValueError, r"body\.2\.weight: is on the meta", lambda m: m.body[2].to("meta"))

    def test_float64(self):
        self._refuses(TypeError, r"body\.2\.weight: .* got torch.float64", lambda m: m.body[2].double())

    def test_tied_to_an_embedding(self):
        def prepare(model):
            model.lm_head.weight = model.embed.weight

        message = r"lm_head\.weight: shared with embed\.weight of a Embedding"
        self._refuses(ValueError, message, prepare, target_modules="all-linear")

    def test_hooks(self):
        def prepare(model):
            model.body[2].weight.register_post_accumulate_grad_hook(print)

        self._refuses(ValueError, r"body\.2\.weight: has gradient hooks", prepare)

    def test_parametrized(self):
        def prepare(model):
            nn.utils.parametrizations.weight_norm(model.body[2])

        model = _Model()
        prepare(model)
        with pytest.raises(TypeError, match=r"body\.2\.weight: an ordinary nn\.Parameter expected, got none"):
            quantize_(model)
        assert _int8(model) == []

    def test_another_kind_of_parameter(self):
        class Other(nn.Parameter):
            pass

        def prepare(model):
            model.body[2].weight = Other(torch.zeros(32, 300))

        self._refuses(TypeError, "an ordinary nn.Parameter expected, got Other", prepare)

    def test_options(self):
        self._refuses(ValueError, "group_size: a positive integer expected, got 0", group_size=0)
        self._refuses(TypeError, "dtype: float32, bfloat16 or float16", dtype=torch.float64)
        self._refuses(TypeError, "target_modules: a string", target_modules=3)

    def test_another_group_size_than_before(self):
        model = quantize_(_Model(), ["body.0"])
        with pytest.raises(ValueError, match=r"body\.0\.weight is INT8 already in groups of 256, got 64"):
            quantize_(model, group_size=64)
        assert _int8(model) == BODY[:1]
