"""GaLoreAdafactor: the published trajectory, skipped updates, checkpoints, per-layer updates, bad input."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

import frugalore
from frugalore.ops.projection import short_side
from frugalore.reference import adafactor as reference
from frugalore.rules import adafactor as rule
from qgalore_helpers import equal, loss_of, make_model, snapshot, train

MANUAL = {"lr": 1e-2, "relative_step": False}
CONVENTIONS = [
    {},
    {"warmup_init": True},
    {"beta1": 0.9},
    {"weight_decay": 0.1, "scale_parameter": False},
    {**MANUAL, "scale_parameter": False, "weight_decay": 0.1, "clip_threshold": 0.5},
    {**MANUAL, "beta1": 0.9, "decay_rate": -0.5, "eps": (1e-6, 0.5)},
]


def make_optimizer(model, **options):
    names = ("rank", "update_proj_gap", "proj_type", "moments_at_refresh")
    group = {"rank": 16, "update_proj_gap": 3, "scale": 0.5}
    group |= {name: options.pop(name) for name in names if name in options}
    return frugalore.GaLoreAdafactor(frugalore.param_groups(model, ["attn", "mlp"], **group), **options)


def tensors(shapes, generator, scale):
    return [torch.randn(shape, generator=generator) * scale for shape in shapes]


class Trajectory:
    """Two matrices in a subspace, one on each side, and whole parameters of one, two and four dimensions."""

    SHAPES = ((40, 24), (24, 40), (30,), (20, 12), (4, 3, 3, 3))
    STEPS = 25

    def __init__(self, **options):
        generator = torch.Generator().manual_seed(0)
        self.start = tensors(self.SHAPES, generator, 0.1)
        self.gradients = [tensors(self.SHAPES, generator, 0.01 * (1 + t % 3)) for t in range(self.STEPS)]
        self.params = [nn.Parameter(x.clone()) for x in self.start]
        self.optimizer = frugalore.GaLoreAdafactor(self.groups(self.params), seed=0, **options)

    @staticmethod
    def groups(params):
        in_subspace = {"rank": 8, "update_proj_gap": 1000, "scale": 0.25, "proj_type": "std"}
        return [{"params": params[2:]}, {"params": params[:2], **in_subspace}]

    def step(self, t):
        for p, grad in zip(self.params, self.gradients[t], strict=True):
            p.grad = grad.clone()
        self.optimizer.step()

    def basis(self, i):
        return self.optimizer.state[self.params[i]].get("basis")

    def compare(self, others, **tolerance):
        for p, other, start in zip(self.params, others, self.start, strict=True):
            assert not torch.equal(p, start)
            torch.testing.assert_close(p.detach().to(other.dtype), other, **tolerance)


@pytest.mark.parametrize("panel", [rule.PANEL_ELEMENTS["cpu"], 100], ids=["whole", "panels"])
@pytest.mark.parametrize("options", CONVENTIONS, ids=str)
def test_a_trajectory_equals_the_specification(options, panel, monkeypatch):
    monkeypatch.setitem(rule.PANEL_ELEMENTS, "cpu", panel)
    run = Trajectory(**options)
    weights = [x.double() for x in run.start]
    states = [{} for _ in weights]
    for t in range(run.STEPS):
        run.step(t)
        for i, weight in enumerate(weights):
            bases = {}
            if run.basis(i) is not None:
                bases = {short_side(weight.shape): run.basis(i).double(), "scale": 0.25}
            grad = run.gradients[t][i].double()
            reference.adafactor_step_(weight, grad, states[i], step=t + 1, **bases, **options)
    run.compare(weights, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("options", CONVENTIONS, ids=str)
def test_a_trajectory_is_the_published_one_given_the_basis(options):
    galore_torch = pytest.importorskip("galore_torch")
    from galore_torch.galore_projector import GaLoreProjector

    run = Trajectory(**options)
    theirs = [nn.Parameter(x.clone()) for x in run.start]
    published = galore_torch.GaLoreAdafactor(run.groups(theirs), **options)
    for t in range(run.STEPS):
        run.step(t)
        for i, (p, grad) in enumerate(zip(theirs, run.gradients[t], strict=True)):
            p.grad = grad.clone()
            if t == 0 and run.basis(i) is not None:
                projector = GaLoreProjector(8, update_proj_gap=1000, scale=0.25, proj_type="std")
                side = short_side(p.shape)
                basis = run.basis(i).clone() if side == "right" else run.basis(i).t().clone()
                projector.get_orthogonal_matrix = lambda *_, basis=basis, **__: basis
                published.state[p]["projector"] = projector
        published.step()
    run.compare([p.detach() for p in theirs], rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("beta1", [None, 0.9])
def test_it_trains_every_parameter(dtype, quantized, beta1, device):
    model = make_model(dtype, quantized).to(device)
    before = snapshot(model)
    options = {"lr": 2e-2, "relative_step": False, "scale_parameter": False, "beta1": beta1}
    optimizer = make_optimizer(model, seed=1, moments_at_refresh="rotate", **options)
    losses = train(model, optimizer, range(60), device)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    for name, value in snapshot(model).items():
        if not name.endswith((".scale", ".zero")) and value.dtype != torch.int64:
            assert not torch.equal(before[name], value), name
    counted = optimizer.statistics()
    assert {entry["applied"] for entry in counted.values()} == {60}
    assert {entry["skipped"] for entry in counted.values()} == {0}


def test_rms_of_an_int8_weight_needs_no_float_copy(generator, monkeypatch):
    weight = frugalore.quantize_(nn.Linear(300, 70)).weight
    expected = weight.dequantize().double().square().mean().sqrt().float()
    for panel in (rule.PANEL_ELEMENTS["cpu"], 1000):
        monkeypatch.setitem(rule.PANEL_ELEMENTS, "cpu", panel)
        torch.testing.assert_close(rule.root_mean_square(weight).float(), expected)


@pytest.mark.parametrize("proj_type", ["std", "reverse_std", "full"])
@pytest.mark.parametrize("moments", ["keep", "rotate", "reset"])
def test_every_projection_type(proj_type, moments):
    model = make_model(quantized=False)
    options = {"lr": 2e-2, "relative_step": False, "scale_parameter": False, "beta1": 0.9}
    optimizer = make_optimizer(model, proj_type=proj_type, moments_at_refresh=moments, seed=0, **options)
    losses = train(model, optimizer, range(50))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("beta1", [None, 0.9])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, quantized, beta1, device):
    model = make_model(quantized=quantized).to(device)
    optimizer = make_optimizer(model, weight_decay=0.1, beta1=beta1, seed=0)
    watched = {
        name: p
        for name, p in model.named_parameters()
        if name in ("mlp.weight", "norm.weight", "head.weight")
    }
    moments = ("exp_avg", "exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col")
    for step in range(6):
        optimizer.zero_grad()
        loss_of(model, step, device).backward()
        poisoned = step in (0, 2, 4)
        before = snapshot(model)
        known = {name: copy.deepcopy(dict(optimizer.state[p])) for name, p in watched.items()}
        if poisoned:
            for p in watched.values():
                p.grad.view(-1)[5] = bad
        optimizer.step()
        after = snapshot(model)
        for name, p in watched.items():
            same = [torch.equal(before[key], after[key]) for key in before if key.startswith(name)]
            assert all(same) if poisoned else not all(same)
            for key in moments if poisoned and known[name] else ():
                if key in known[name]:
                    assert torch.equal(known[name][key], optimizer.state[p][key]), (name, key)
    counted = optimizer.statistics()
    for name in watched:
        assert (counted[name]["applied"], counted[name]["skipped"]) == (3, 3)
    assert counted["embed.weight"]["skipped"] == 0


def test_zero_gradients_and_empty_parameters(device):
    params = [nn.Parameter(torch.ones(shape, device=device)) for shape in ((6, 5), (7,), (0,), (0, 3), ())]
    optimizer = frugalore.GaLoreAdafactor(params, beta1=0.9)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(torch.equal(p, torch.ones_like(p)) for p in params)
    assert {entry["applied"] for entry in optimizer.statistics().values()} == {1}


def test_momentum_goes_on_at_a_learning_rate_of_zero():
    weight = nn.Parameter(torch.ones(4))
    optimizer = frugalore.GaLoreAdafactor([weight], beta1=0.5, scale_parameter=False, **MANUAL)
    for lr, expected in ((1e-2, 0.5e-2), (0.0, 0.25e-2), (0.0, 0.125e-2)):
        optimizer.param_groups[0]["lr"] = lr
        before = weight.detach().clone()
        weight.grad = torch.ones(4)
        optimizer.step()
        torch.testing.assert_close(before - weight.detach(), torch.full((4,), expected), rtol=1e-4, atol=0)


def test_stochastic_rounding_keeps_small_updates(device):
    def moved(rounding):
        weight = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16, device=device))
        options = {"lr": 1e-4, "relative_step": False, "scale_parameter": False, "rounding": rounding}
        optimizer = frugalore.GaLoreAdafactor([weight], seed=0, **options)
        for _ in range(20):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return (1.0 - weight.detach().float()).mean().item()

    assert moved("nearest") == 0.0
    assert moved("stochastic") == pytest.approx(20e-4, rel=0.1)


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("beta1", [None, 0.9])
def test_resume_is_exact_through_weights_only(quantized, beta1, device):
    straight = make_model(torch.bfloat16, quantized).to(device)
    optimizer = make_optimizer(straight, beta1=beta1, seed=4)
    train(straight, optimizer, range(5), device)
    file = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, file)
    rest = train(straight, optimizer, range(5, 12), device)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = make_model(torch.bfloat16, quantized, seed=99).to(device)
    again = make_optimizer(resumed, beta1=beta1)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert train(resumed, again, range(5, 12), device) == rest
    assert equal(snapshot(straight), snapshot(resumed))


def test_per_layer_updates_are_the_same_to_the_bit(device):
    results = []
    for per_layer in (False, True):
        model = make_model().to(device)
        optimizer = make_optimizer(model, beta1=0.9, seed=2)
        if per_layer:
            frugalore.per_layer_updates(optimizer)
        train(model, optimizer, range(6), device)
        results.append(snapshot(model))
    assert equal(*results)


def test_state_is_small():
    linear = nn.Linear(1024, 512, bias=False)
    optimizer = frugalore.GaLoreAdafactor([{"params": linear.parameters(), "rank": 64}])
    linear(torch.randn(4, 1024)).sum().backward()
    optimizer.step()
    assert optimizer.state_bytes()["moments"] == 4 * (1024 + 64)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"lr": 1e-3}, "lr: None expected with relative_step=True, got 0.001"),
            ({"relative_step": False}, "lr: a number or a tensor expected, got None"),
            (
                {**MANUAL, "warmup_init": True},
                "warmup_init: False expected with relative_step=False, got True",
            ),
            ({"eps": 1e-8}, "eps: two numbers of zero or more expected, got 1e-08"),
            ({"eps": (1e-30, -1.0)}, "eps: two numbers of zero or more expected"),
            ({"clip_threshold": 0.0}, "clip_threshold: a positive number expected, got 0.0"),
            ({"decay_rate": 0.8}, "decay_rate: zero or less expected, got 0.8"),
            ({"beta1": 1.0}, r"beta1: None or a number in \[0, 1\) expected, got 1.0"),
            ({"weight_decay": -0.1}, "weight_decay: zero or more expected, got -0.1"),
            ({"scale_parameter": "yes"}, "scale_parameter: True or False expected, got 'yes'"),
        ],
        ids=str,
    )
    def test_options(self, options, match):
        with pytest.raises((TypeError, ValueError), match=match):
            frugalore.GaLoreAdafactor([nn.Parameter(torch.ones(3))], **options)

    def test_momentum_cannot_come_later(self):
        model = make_model()
        optimizer = make_optimizer(model)
        train(model, optimizer, [0])
        optimizer.param_groups[0]["beta1"] = 0.9
        before = snapshot(model)
        with pytest.raises(
            ValueError, match=r"beta1 was None when it joined the optimizer and cannot change"
        ):
            train(model, optimizer, [1])
        assert equal(before, snapshot(model))

    def test_a_state_of_another_shape(self):
        model = make_model()
        optimizer = make_optimizer(model)
        train(model, optimizer, [0])
        saved = optimizer.state_dict()
        position = next(i for i, state in saved["state"].items() if "basis" in state)
        saved["state"][position]["exp_avg_sq_row"] = torch.zeros(3)
        with pytest.raises(ValueError, match=r"exp_avg_sq_row \(\d+,\) .* expected, got \(3,\)"):
            make_optimizer(make_model()).load_state_dict(saved)

    def test_a_state_of_another_rule(self):
        model = make_model()
        adamw = frugalore.GaLoreAdamW(frugalore.param_groups(model, ["attn", "mlp"], rank=16))
        train(model, adamw, [0])
        with pytest.raises(ValueError, match=r"the state has no .*clip_threshold"):
            make_optimizer(make_model()).load_state_dict(adamw.state_dict())
