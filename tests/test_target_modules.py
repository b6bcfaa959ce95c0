"""frugalore.target_modules.matching_linears."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frugalore.target_modules import matching_linears


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "o_proj": nn.Linear(4, 4)})
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.norm = nn.LayerNorm(4)


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.ModuleList([_Block(), _Block()])
        self.lm_head = nn.Linear(4, 5)


def _names(target_modules) -> list[str]:
    return [name for name, _ in matching_linears(_Model(), target_modules)]


ATTENTION = [f"layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qo"]
MLP = [f"layers.{i}.mlp.{j}" for i in (0, 1) for j in (0, 2)]


@pytest.mark.parametrize("spelling", ["all-linear", "all_linear"])
def test_all_linear(spelling):
    assert _names(spelling) == [*ATTENTION[:2], *MLP[:2], *ATTENTION[2:], *MLP[2:], "lm_head"]


def test_a_string_is_a_regular_expression_for_the_whole_name():
    assert _names(r".*\.self_attn\..*") == ATTENTION
    assert _names("lm_head") == ["lm_head"]
    assert _names(r"layers\.1\.mlp\.\d") == MLP[2:]
    with pytest.raises(ValueError, match="matches no"):
        _names("self_attn")  # a part of a name, not the whole


def test_a_list_takes_names_parts_and_regular_expressions():
    assert _names(["lm_head"]) == ["lm_head"]
    assert _names(["attn"]) == ATTENTION
    assert _names([r".*q_proj"]) == [ATTENTION[0], ATTENTION[2]]
    assert _names(("layers.0.mlp.0", r"lm_.*")) == ["layers.0.mlp.0", "lm_head"]
    assert _names(["lm_head", "no such name"]) == ["lm_head"]


def test_the_modules_are_those_of_the_model():
    model = _Model()
    ((name, module),) = matching_linears(model, "lm_head")
    assert name == "lm_head" and module is model.lm_head


def test_a_module_in_two_places_is_found_once():
    model = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])
    model.append(model[0])
    assert [name for name, _ in matching_linears(model)] == ["0"]


@pytest.mark.parametrize(
    "target_modules",
    [
        "lm_head",
        r".*attn.*",
        ["attn", "mlp"],
        [".*attn.*", ".*mlp.*"],
        ["lm_head"],
        ["layers.1"],
        [r"layers\.\d\..*q.*"],
    ],
    ids=str,
)
def test_agrees_with_transformers(target_modules):
    check = pytest.importorskip("transformers.trainer_utils").check_target_module_exists
    expected = [
        name
        for name, module in _Model().named_modules()
        if isinstance(module, nn.Linear) and check(target_modules, name)
    ]
    assert _names(target_modules) == expected


class TestBadInput:
    def test_no_match_names_the_patterns_and_the_modules(self):
        with pytest.raises(
            ValueError, match=r"\['attention'\] matches no nn.Linear; the model has 'layers.0.*1 more"
        ):
            _names(["attention"])

    def test_only_linear_layers_count(self):
        with pytest.raises(ValueError, match=r"matches no nn\.Linear"):
            _names(["norm", "embed"])

    def test_a_model_without_linear_layers(self):
        with pytest.raises(ValueError, match="the model has none"):
            matching_linears(nn.ReLU())

    def test_malformed_regular_expression(self):
        with pytest.raises(ValueError, match=r"target_modules: '\(' is not a regular expression"):
            _names("(")

    def test_types(self):
        with pytest.raises(TypeError, match="a string or a list of strings expected, got int"):
            _names(3)
        with pytest.raises(TypeError, match="got an entry 3 of type int"):
            _names(["mlp", 3])
        with pytest.raises(TypeError, match="got an entry tensor"):
            _names(torch.zeros(1))
        with pytest.raises(ValueError, match="an empty entry"):
            _names(["mlp", ""])
