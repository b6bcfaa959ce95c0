"""BAdam: one layer at a time; its trajectory: tests/test_frugal_trajectories.py."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import frugalore
from frugal_helpers import loss_of, make_model, snapshot, train

GAP = 3


def make(model, **options):
    options = {"switch_block_every": GAP, "seed": 1} | options
    return frugalore.BAdam(model.named_parameters(), lr=1e-2, **options)


def trainable(model) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def moved(before, model) -> set[str]:
    return {name for name, p in model.state_dict().items() if not torch.equal(p, before[name])}


def of_layer(model, number: int) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(f"layers.{number}.")}


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_layers_take_turns_and_backward_makes_their_gradients_only(quantized, per_layer, device):
    model = make_model(quantized=quantized, device=device)
    optimizer = make(model)
    if per_layer:
        frugalore.per_layer_updates(optimizer)
    for turn in (2, 1, 0, 2):
        before = copy.deepcopy(model.state_dict())
        for step in range(GAP):
            assert set(trainable(model)) == of_layer(model, turn)
            loss_of(model, step).backward()
            if not per_layer:
                assert {n for n, p in model.named_parameters() if p.grad is not None} == of_layer(model, turn)
            optimizer.step()
            optimizer.zero_grad()
        expected = {f"{name}.codes" if f"{name}.codes" in before else name for name in of_layer(model, turn)}
        assert expected <= moved(before, model)
        assert all(name.startswith(f"layers.{turn}.") for name in moved(before, model))


def test_moments_are_those_of_one_layer(device):
    model = make_model(device=device)
    optimizer = make(model)
    one_layer = sum(p.numel() for p in model.layers[0].parameters())
    most = 0
    for step in range(4 * GAP):
        train(model, optimizer, [step])
        most = max(most, optimizer.state_bytes()["moments"])
    assert most == 8 * one_layer


def test_memory_of_gradients_and_moments():
    """Bytes for each parameter besides the weights: 16 / layers with float32 here, AdamW's are 12."""
    model = make_model()
    optimizer = make(model)
    loss_of(model, 0).backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    optimizer.step()
    parameters = sum(p.numel() for p in model.parameters())
    assert gradients + optimizer.state_bytes()["moments"] < 12 * parameters / 3


class TestBlocks:
    def test_embedding_and_head_on_demand(self):
        model = make_model()
        optimizer = make(model, include_embedding=True, include_lm_head=True, switch_mode="ascending")
        turns = []
        for step in range(5 * GAP):
            if step % GAP == 0:
                turns.append(trainable(model)[0].split(".")[0:2])
            train(model, optimizer, [step])
        # Blocks are in the order of the parameters, the head last.
        assert [turn[0] for turn in turns] == ["embed_tokens", "layers", "layers", "layers", "lm_head"]

    def test_active_modules_always_train(self):
        model = make_model()
        optimizer = make(model, active_modules=["lm_head", "norm"])
        for step in range(2 * GAP):
            before = copy.deepcopy(model.state_dict())
            train(model, optimizer, [step])
            assert {"lm_head.weight", "lm_head.bias"} <= moved(before, model)
            assert "embed_tokens.weight" not in moved(before, model)

    def test_start_block_and_prefixes(self):
        model = make_model()
        make(model, start_block=1)
        assert set(trainable(model)) == of_layer(model, 1)
        prefixes = ["layers.0.attn", "layers.2"]
        make(model, block_prefix_list=prefixes, switch_mode="ascending")
        assert trainable(model) == ["layers.0.attn.weight"]

    def test_random_turns_visit_every_layer_in_a_round(self):
        model = make_model()
        optimizer = make(model, switch_mode="random")
        turns = []
        for step in range(9 * GAP):
            if step % GAP == 0:
                turns.append(trainable(model)[0].split(".")[1])
            train(model, optimizer, [step])
        assert [sorted(turns[i : i + 3]) for i in (0, 3, 6)] == [["0", "1", "2"]] * 3
        assert len({tuple(turns[i : i + 3]) for i in (0, 3, 6)}) > 1


def test_inactive_weights_do_not_decay_even_with_a_gradient():
    model = make_model()
    optimizer = make(model, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert moved(before, model) == of_layer(model, 2)


@pytest.mark.parametrize("mode", ["descending", "random"])
def test_resume_in_the_middle_of_a_turn(mode, device):
    model = make_model(device=device)
    optimizer = make(model, switch_mode=mode)
    train(model, optimizer, range(4))
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    losses = train(model, optimizer, range(4, 11))
    other = make_model(device=device)
    other.load_state_dict(weights)
    resumed = make(other, switch_mode=mode)
    resumed.load_state_dict(state)
    assert trainable(other) != trainable(make_model())
    assert train(other, resumed, range(4, 11)) == losses
    assert all(torch.equal(a, b) for a, b in zip(snapshot(model), snapshot(other), strict=True))


def test_a_block_without_gradients_is_named_once():
    model = make_model()
    optimizer = make(model)
    with pytest.warns(UserWarning, match=r"layers\.2\.attn\.weight and 6 more: active for 3 steps and never"):
        for _ in range(GAP):
            optimizer.step()  # nothing had a gradient
    for step in range(2 * GAP):
        train(model, optimizer, [step])
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(GAP):
            optimizer.step()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"switch_mode": "mirror"}, ValueError, "switch_mode: one of descending, ascending, random, fixed"),
        ({"switch_block_every": 0}, ValueError, "update_gap: a positive integer expected, got 0"),
        ({"start_block": 3}, ValueError, "start_block: at most 2 expected, as there are 3 blocks, got 3"),
        ({"start_block": -1}, ValueError, "start_block: zero or more, or None, expected, got -1"),
        ({"block_prefix_list": ["layers.7"]}, ValueError, "'layers.7' is in none of the names"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        make(make_model(), **options)


def test_names_are_needed():
    with pytest.raises(TypeError, match="pairs of a name and a parameter expected"):
        frugalore.BAdam(make_model().parameters())
    with pytest.raises(ValueError, match="numbered layers expected"):
        frugalore.BAdam(nn.Linear(3, 3).named_parameters())


def test_a_failed_construction_freezes_nothing():
    """The first group is in order, the second has no layers."""
    first = [(f"layers.{i}.weight", nn.Parameter(torch.ones(2, 2))) for i in range(3)]
    second = [("head", nn.Parameter(torch.ones(2, 2)))]
    with pytest.raises(ValueError, match="numbered layers expected"):
        frugalore.BAdam([{"params": first, "density": 1.0}, {"params": second, "density": 1.0}])
    assert all(p.requires_grad for _, p in first)


def test_prefixes_may_be_a_tuple_or_a_list():
    model = make_model()
    first = frugalore.BAdam(model.named_parameters(), block_prefix_list=("layers.0", "layers.2"))
    other = frugalore.BAdam(model.named_parameters(), block_prefix_list=["layers.0", "layers.2"])
    other.load_state_dict(first.state_dict())
