"""GaLoreSGDM and GaLoreLion: trajectories, skipped gradients, checkpoints, per-layer updates, bad input."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import nn

import frugalore
from qgalore_helpers import equal, loss_of, make_model, snapshot, train

PRESETS = {
    "sgdm": (frugalore.GaLoreSGDM, {"lr": 0.3}),
    "nesterov": (frugalore.GaLoreSGDM, {"lr": 0.3, "nesterov": True}),
    "lion": (frugalore.GaLoreLion, {"lr": 1e-2}),
}


def make_optimizer(model, name, **options):
    preset, defaults = PRESETS[name]
    names = ("rank", "update_proj_gap", "scale", "proj_type", "moments_at_refresh")
    group = {"rank": 16, "update_proj_gap": 3, "scale": 1.0}
    group |= {key: options.pop(key) for key in names if key in options}
    groups = frugalore.param_groups(model, ["attn", "mlp"], **group)
    return preset(groups, **{**defaults, "seed": 1, **options})


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantized", [True, False])
def test_it_trains_every_parameter(name, dtype, quantized, device):
    model = make_model(dtype, quantized).to(device)
    before = snapshot(model)
    optimizer = make_optimizer(model, name, moments_at_refresh="rotate")
    losses = train(model, optimizer, range(60), device)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    for key, value in snapshot(model).items():
        if not key.endswith((".scale", ".zero")) and value.dtype != torch.int64:
            assert not torch.equal(before[key], value), key
    counted = optimizer.statistics().values()
    assert {entry["applied"] for entry in counted} == {60} and {entry["skipped"] for entry in counted} == {0}


def test_sgdm_in_the_full_subspace_is_torch_sgd(generator):
    """At full rank, with one basis and scale 1, GaLore is the rule itself."""
    start = torch.randn(12, 8, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    group = {"params": [ours], "rank": 8, "scale": 1.0, "update_proj_gap": 1000}
    options = {"lr": 0.05, "momentum": 0.9, "nesterov": True}
    pair = (frugalore.GaLoreSGDM([group], **options), torch.optim.SGD([theirs], **options))
    for _ in range(25):
        ours.grad = torch.randn(12, 8, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in pair:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_lion_in_a_subspace_is_the_formula(generator):
    weight = nn.Parameter(torch.randn(12, 8, generator=generator))
    group = {"params": [weight], "rank": 4, "scale": 0.5, "update_proj_gap": 1000}
    optimizer = frugalore.GaLoreLion([group], lr=0.02, weight_decay=0.1)
    expected, m = weight.detach().double(), torch.zeros(12, 4).double()
    for _ in range(25):
        weight.grad = torch.randn(12, 8, generator=generator)
        optimizer.step()
        basis = optimizer.state[weight]["basis"].double()
        r = weight.grad.double() @ basis.t()
        direction = (0.9 * m + 0.1 * r).sign()
        m = 0.99 * m + 0.01 * r
        expected = expected * (1 - 0.02 * 0.1) - 0.02 * 0.5 * direction @ basis
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("quantized", [True, False])
def test_a_gradient_that_is_not_finite_poisons_nothing(name, bad, quantized, device):
    model = make_model(quantized=quantized).to(device)
    optimizer = make_optimizer(model, name, weight_decay=0.1)
    for step in range(6):
        optimizer.zero_grad()
        loss_of(model, step, device).backward()
        poisoned = step in (0, 3)
        before = snapshot(model)
        if poisoned:
            model.mlp.weight.grad[3, 5] = bad
            model.norm.weight.grad[2] = bad
        optimizer.step()
        after = snapshot(model)
        same = all(torch.equal(before[key], after[key]) for key in before if key.startswith("mlp.weight"))
        assert same == poisoned
    counted = optimizer.statistics()
    assert (counted["mlp.weight"]["applied"], counted["mlp.weight"]["skipped"]) == (4, 2)
    assert (counted["norm.weight"]["applied"], counted["norm.weight"]["skipped"]) == (6, 2)
    for state in optimizer.state.values():
        assert all(not isinstance(value, torch.Tensor) or value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("quantized", [True, False])
def test_resume_is_exact_through_weights_only(name, quantized, device):
    straight = make_model(torch.bfloat16, quantized).to(device)
    optimizer = make_optimizer(straight, name)
    train(straight, optimizer, range(5), device)
    file = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, file)
    rest = train(straight, optimizer, range(5, 12), device)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = make_model(torch.bfloat16, quantized, seed=99).to(device)
    again = make_optimizer(resumed, name, seed=7)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert train(resumed, again, range(5, 12), device) == rest
    assert equal(snapshot(straight), snapshot(resumed))


@pytest.mark.parametrize("name", PRESETS)
def test_per_layer_updates_are_the_same_to_the_bit(name, device):
    results = []
    for per_layer in (False, True):
        model = make_model().to(device)
        optimizer = make_optimizer(model, name)
        if per_layer:
            frugalore.per_layer_updates(optimizer)
        train(model, optimizer, range(6), device)
        results.append(snapshot(model))
    assert equal(*results)


@pytest.mark.parametrize("name", PRESETS)
def test_state_is_one_buffer(name):
    linear = nn.Linear(256, 128, bias=False)
    optimizer = PRESETS[name][0]([{"params": linear.parameters(), "rank": 16}])
    linear(torch.randn(4, 256)).sum().backward()
    optimizer.step()
    assert optimizer.state_bytes()["moments"] == 4 * 256 * 16


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("sgdm", {"state_bits": 8}, "state_bits: 32 expected, .* got 8"),
        ("lion", {"state_bits": 8}, "state_bits: 32 expected, .* got 8"),
        ("sgdm", {"momentum": 1.0}, r"momentum: a number in \[0, 1\) expected, got 1.0"),
        ("sgdm", {"nesterov": 1}, "nesterov: True or False expected, got 1"),
        ("nesterov", {"dampening": 0.1}, "nesterov: momentum > 0 and dampening 0 expected, got 0.9 and 0.1"),
        ("lion", {"betas": (0.9,)}, r"betas: two numbers in \[0, 1\) expected"),
        ("lion", {"weight_decay": -1.0}, "weight_decay: zero or more expected, got -1.0"),
    ],
    ids=str,
)
def test_bad_options(name, options, match):
    with pytest.raises((TypeError, ValueError), match=match):
        make_optimizer(make_model(), name, **options)


def test_a_state_of_another_shape():
    model = make_model()
    optimizer = make_optimizer(model, "sgdm")
    train(model, optimizer, [0])
    saved = optimizer.state_dict()
    position = next(i for i, state in saved["state"].items() if "basis" in state)
    saved["state"][position]["momentum_buffer"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"momentum_buffer \(.*\) .* expected, got \(3,\)"):
        make_optimizer(make_model(), "sgdm").load_state_dict(saved)
