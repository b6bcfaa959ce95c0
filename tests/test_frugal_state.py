"""FRUGAL's presets: resuming, per-layer updates, state-free parameters during backward."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import frugalore
from frugal_helpers import loss_of, make_frugal, make_model, snapshot, train

KINDS = [
    {"subspace": "columns"},
    {"subspace": "columns", "state_bits": 8},
    {"subspace": "rows", "moments_at_refresh": "rotate"},
    {"subspace": "randk", "inactive_update_rule": "sgd"},
    {"subspace": "randperm", "moments_at_refresh": "keep"},
    {"subspace": "blocks", "block_order": "random"},
    {"subspace": "blocks", "block_order": "mirror", "block_budget": "bytes", "state_bits": 8},
    {"subspace": "svd", "density": 0.5},
    {"subspace": "random", "state_bits": 4},
    {"subspace": "svd", "inactive_update_rule": "fira"},
    {"subspace": "columns", "density": 0.0},
]


def saved_and_loaded(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_resume_in_the_middle_of_a_period(kind, quantized, device):
    model = make_model(quantized=quantized, device=device)
    optimizer = make_frugal(model, **kind)
    train(model, optimizer, range(5))
    weights, state = copy.deepcopy(model.state_dict()), saved_and_loaded(optimizer.state_dict())
    losses = train(model, optimizer, range(5, 12))

    torch.manual_seed(123)
    other = make_model(quantized=quantized, device=device)
    other.load_state_dict(weights)
    resumed = make_frugal(other, **kind)
    resumed.load_state_dict(state)
    assert train(other, resumed, range(5, 12)) == losses
    assert all(torch.equal(a, b) for a, b in zip(snapshot(model), snapshot(other), strict=True))


@pytest.mark.parametrize("preset", ["sgdm", "lion"])
@pytest.mark.parametrize("subspace", ["columns", "blocks", "svd"])
def test_resume_of_the_other_rules(preset, subspace, device):
    model = make_model(device=device)
    optimizer = make_frugal(model, preset, subspace=subspace)
    train(model, optimizer, range(4))
    weights, state = copy.deepcopy(model.state_dict()), saved_and_loaded(optimizer.state_dict())
    losses = train(model, optimizer, range(4, 9))
    other = make_model(device=device)
    other.load_state_dict(weights)
    resumed = make_frugal(other, preset, subspace=subspace)
    resumed.load_state_dict(state)
    assert train(other, resumed, range(4, 9)) == losses


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_per_layer_updates_equal_the_standard_mode(kind, device):
    results = []
    for per_layer in (False, True):
        model = make_model(device=device)
        optimizer = make_frugal(model, **kind)
        if per_layer:
            frugalore.per_layer_updates(optimizer)
        train(model, optimizer, range(8))
        results.append((snapshot(model), optimizer.param_groups[1].get("period")))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(a, b)
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("subspace", ["columns", "randk", "blocks"])
def test_accumulation_adds_gradients_up(subspace, device):
    """Two micro-batches of half the loss: the sign is that of the sum."""
    results = []
    for per_layer in (False, True):
        model = make_model(device=device)
        optimizer = make_frugal(model, subspace=subspace)
        if per_layer:
            frugalore.per_layer_updates(optimizer, accumulation_steps=2)
        for step in range(4):
            for part in range(2):
                (loss_of(model, 2 * step + part) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(snapshot(model))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_resume_in_the_middle_of_a_round(device):
    def rounds(model, optimizer, micro_steps):
        for micro in micro_steps:
            (loss_of(model, micro) / 2).backward()
            if micro % 2:
                optimizer.step()

    def make():
        model = make_model(device=device)
        optimizer = make_frugal(model, subspace="columns")
        frugalore.per_layer_updates(optimizer, accumulation_steps=2)
        return model, optimizer

    model, optimizer = make()
    rounds(model, optimizer, range(7))
    weights, state = copy.deepcopy(model.state_dict()), saved_and_loaded(optimizer.state_dict())
    rounds(model, optimizer, range(7, 14))
    other, resumed = make()
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    rounds(other, resumed, range(7, 14))
    assert all(torch.equal(a, b) for a, b in zip(snapshot(model), snapshot(other), strict=True))


class TestStateFreeDuringBackward:
    @pytest.mark.parametrize("options", [{"density": 0.0}, {"subspace": "blocks", "density": 0.3}], ids=str)
    def test_their_gradients_are_gone_and_the_weights_are_those_of_the_standard_mode(self, options, device):
        results = []
        for early in (False, True):
            model = make_model(device=device)
            optimizer = make_frugal(model, **options)
            if early:
                frugalore.per_layer_updates(optimizer, state_free_only=True)
            for step in range(8):
                loss_of(model, step).backward()
                if early:
                    group = optimizer.param_groups[1]
                    treatment = optimizer.treatment(group)
                    for p in group["params"]:
                        assert (p.grad is None) == treatment.is_state_free(p, group)
                    assert all(p.grad is not None for p in optimizer.param_groups[0]["params"])
                optimizer.step()
                optimizer.zero_grad()
            results.append(snapshot(model))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_clipping_before_the_step_works_on_the_others(self):
        model = make_model()
        optimizer = make_frugal(model, density=0.0)
        frugalore.per_layer_updates(optimizer, state_free_only=True)
        loss_of(model, 0).backward()
        before = model.embed_tokens.weight.grad.clone()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        assert not torch.equal(model.embed_tokens.weight.grad, before)
        optimizer.step()

    def test_a_norm_to_clip_at_is_refused(self):
        optimizer = make_frugal(make_model(), density=0.0)
        with pytest.raises(ValueError, match=r"max_norm: None expected with state_free_only, got 1\.0"):
            frugalore.per_layer_updates(optimizer, max_norm=1.0, state_free_only=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subspace": "rows"}, "subspace 'columns' expected, got 'rows' in the state"),
        ({"state_bits": 8}, "state_bits 32 expected, got 8 in the state"),
    ],
)
def test_a_state_of_other_options_is_refused_whole(change, message):
    model = make_model()
    optimizer = make_frugal(model, subspace="columns")
    train(model, optimizer, range(2))
    before = copy.deepcopy(optimizer.state_dict())
    other = make_model()
    theirs = make_frugal(other, **({"subspace": "columns"} | change))
    train(other, theirs, range(2))
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(theirs.state_dict())
    for key, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(value, before["state"][key][name])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("period"), "period as int expected, got None"),
        (lambda state: state.update(density=1.5), "a density in \\[0, 1\\] expected, got 0 and 1.5"),
        (lambda state: state.update(density=0.5), "exp_avg .* expected, got"),
        (lambda state: state["exp_avg"].fill_(float("nan")), "exp_avg has a NaN or infinite element"),
    ],
)
def test_a_damaged_state_is_refused(damage, message):
    model = make_model()
    optimizer = make_frugal(model)
    train(model, optimizer, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    position = next(
        i for i, entry in state["state"].items() if "period" in entry and entry["exp_avg"].numel()
    )
    damage(state["state"][position])
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)


def test_a_copy_goes_its_own_way(device):
    model = make_model(device=device)
    optimizer = make_frugal(model, subspace="blocks")
    train(model, optimizer, range(4))
    twin_model, twin = copy.deepcopy((model, optimizer))
    losses = train(model, optimizer, range(4, 8))
    assert train(twin_model, twin, range(4, 8)) == losses


def random_steps(optimizer, p, steps):
    for step in steps:
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).to(p.device)
        optimizer.step()


@pytest.mark.parametrize("state_bits", [32, 8, 4])
@pytest.mark.parametrize(("before", "after"), [(0.5, 0.25), (0.5, 0.02), (0.02, 0.5)])
def test_rotated_moments_of_another_density_keep_their_width(before, after, state_bits, device):
    """Also where packed moments become so few that they are float32, and back."""
    p = nn.Parameter(torch.ones(64, 512, device=device))
    group = {"params": [p], "density": before, "update_gap": 2, "moments_at_refresh": "rotate"}
    optimizer = frugalore.FrugalAdamW([group], lr=0.01, seed=1, state_bits=state_bits)
    random_steps(optimizer, p, range(2))
    optimizer.param_groups[0]["density"] = after
    random_steps(optimizer, p, range(2, 5))
    optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    random_steps(optimizer, p, range(5, 7))


def test_a_state_of_another_seed_brings_its_blocks(device):
    def make(seed):
        params = [nn.Parameter(torch.ones(4, 4, device=device)) for _ in range(8)]
        group = {"params": params, "density": 0.25, "update_gap": 5, "subspace": "blocks"}
        return params, frugalore.FrugalAdamW([group | {"block_order": "random"}], lr=0.01, seed=seed)

    for seed in range(4):
        _, saved = make(seed)
        params, optimizer = make(seed + 10)
        for opt in (saved, optimizer):
            for p in opt.param_groups[0]["params"]:
                p.grad = torch.ones_like(p)
            opt.step()
        optimizer.load_state_dict(saved_and_loaded(saved.state_dict()))
        active = [optimizer.state[p]["exp_avg"].numel() > 0 for p in params]
        free = [optimizer.treatment(g).is_state_free(p, g) for g in optimizer.param_groups for p in params]
        assert active == [not is_free for is_free in free]


@pytest.mark.parametrize(
    ("option", "value"),
    [("block_order", "ascending"), ("active_blocks", 3), ("freeze_inactive", True), ("blocks", "layers")],
)
def test_options_of_blocks_cannot_change(option, value, device):
    """Whose state there is in a period follows from them, and what is frozen."""
    named = [(f"layers.{i}.weight", nn.Parameter(torch.ones(2, 2, device=device))) for i in range(4)]
    group = {"params": named, "density": 0.5, "subspace": "blocks", "update_gap": 2}
    optimizer = frugalore.FrugalAdamW([group], lr=0.01, seed=1)
    state = saved_and_loaded(optimizer.state_dict())
    optimizer.param_groups[0][option] = value
    with pytest.raises(ValueError, match=f"{option} was .* cannot change, got {value!r}"):
        optimizer.step()
    other = frugalore.FrugalAdamW([group | {option: value}], lr=0.01, seed=1)
    with pytest.raises(ValueError, match=f"{option} {value!r} expected, got"):
        other.load_state_dict(state)


def test_a_fresh_momentum_is_the_gradient_on_either_path(device, monkeypatch):
    results = []
    for in_one_pass in (True, False):
        monkeypatch.setattr(frugalore.rules.SGDM, "is_fusable", staticmethod(lambda state, r=in_one_pass: r))
        p = nn.Parameter(torch.ones(64, 32, device=device))
        group = {"params": [p], "density": 0.5, "update_gap": 2}
        optimizer = frugalore.FrugalSGDM([group], lr=0.1, momentum=0.9, dampening=0.9, seed=1)
        random_steps(optimizer, p, range(5))
        results.append((p.detach(), optimizer.state[p]["momentum_buffer"]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
