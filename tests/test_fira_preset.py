"""frugalore.Fira beside its specification and, where it is installed, the published package (fira 1.0.2),
which then gets our bases: entries of singular vectors cannot be compared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import frugalore
from frugal_helpers import feed, gradients, loss_of, make_model, parameters, snapshot, train
from frugalore.reference.fira import FiraState, fira_step_

SHAPES = [(24, 40), (40, 24), (32, 32)]
GAP, RANK, LR, DECAY = 4, 8, 1e-2, 0.1


def optimizer_over(params, rest=(), **options):
    group = {"params": params, "rank": RANK, "update_proj_gap": GAP, "stagger": False, **options}
    groups = [group, {"params": list(rest)}] if rest else [group]
    return frugalore.Fira(groups, lr=LR, weight_decay=DECAY, seed=3)


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_trajectory_of_the_specification(alpha, mode, device):
    params, grads = parameters(SHAPES, device=device), gradients(11, SHAPES)
    optimizer = optimizer_over(params, alpha=alpha, fira_mode=mode)
    twins = [p.detach().cpu().double() for p in params]
    states = [None] * len(params)
    for of_step in grads:
        feed(optimizer, params, of_step)
        for i, (p, grad) in enumerate(zip(params, of_step, strict=True)):
            basis = optimizer.state[p]["basis"].cpu().double()
            shape = (p.shape[0], RANK) if p.shape[0] >= p.shape[1] else (RANK, p.shape[1])
            states[i] = states[i] or FiraState(torch.zeros(shape).double(), torch.zeros(shape).double())
            options = {"lr": LR, "weight_decay": DECAY, "scale": alpha, "mode": mode}
            fira_step_(twins[i], grad.double(), basis, states[i], **options)
            torch.testing.assert_close(p.detach().cpu().double(), twins[i], rtol=0, atol=3e-6)


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_trajectory_of_the_published_package(alpha, monkeypatch):
    published = pytest.importorskip("fira", reason="the published Fira is not installed")
    shapes = [*SHAPES, (7,)]
    ours, theirs, grads = parameters(shapes), parameters(shapes), gradients(11, shapes)
    bases = {}
    projector = published.fira_adamw.GradientProjector
    monkeypatch.setattr(projector, "get_orthogonal_matrix", lambda self, g, *options, **named: bases[g.shape])
    optimizer = optimizer_over(ours[:-1], ours[-1:], alpha=alpha)
    in_subspace = {"rank": RANK, "update_proj_gap": 1, "alpha": alpha, "proj_type": "std"}
    groups = [{"params": theirs[:-1], **in_subspace}, {"params": theirs[-1:]}]
    reference = published.FiraAdamW(groups, lr=LR, weight_decay=DECAY, no_deprecation_warning=True)
    for of_step in grads:
        feed(optimizer, ours, of_step)
        for p in ours[:-1]:
            basis = optimizer.state[p]["basis"]
            bases[p.shape] = basis.clone() if p.shape[0] >= p.shape[1] else basis.t().clone()
        feed(reference, theirs, of_step)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=3e-6)


@pytest.mark.parametrize("quantized", [False, True])
def test_it_trains_better_than_without_the_residual(quantized, device):
    losses = {}
    for preset in (frugalore.Fira, frugalore.GaLoreAdamW):
        model = make_model(quantized=quantized, device=device)
        groups = frugalore.param_groups(model, ["attn", "mlp"], rank=4, update_proj_gap=5)
        losses[preset] = train(model, preset(groups, lr=3e-3, seed=0), range(40))[-1]
    assert losses[frugalore.Fira] < losses[frugalore.GaLoreAdamW]


@pytest.mark.parametrize("options", [{}, {"state_bits": 8}, {"state_bits": 4}], ids=str)
@pytest.mark.parametrize("per_layer", [False, True])
def test_resume(per_layer, options, device):
    def make():
        model = make_model(device=device)
        groups = frugalore.param_groups(model, ["attn", "mlp"], rank=8, update_proj_gap=3)
        optimizer = frugalore.Fira(groups, lr=3e-3, seed=0, **options)
        if per_layer:
            frugalore.per_layer_updates(optimizer)
        return model, optimizer

    model, optimizer = make()
    train(model, optimizer, range(4))
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    losses = train(model, optimizer, range(4, 9))
    other, resumed = make()
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert train(other, resumed, range(4, 9)) == losses
    assert all(torch.equal(a, b) for a, b in zip(snapshot(model), snapshot(other), strict=True))


def test_a_gradient_that_is_not_finite_changes_nothing(device):
    model = make_model(device=device)
    groups = frugalore.param_groups(model, ["attn"], rank=4)
    optimizer = frugalore.Fira(groups, lr=3e-3, seed=0)
    train(model, optimizer, range(2))
    p = model.layers[0].attn.weight
    before = {k: v.clone() for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)}
    weight = p.detach().clone()
    loss_of(model, 2).backward()
    p.grad[0, 0] = float("nan")
    optimizer.step()
    assert torch.equal(p.detach(), weight)
    for name, value in before.items():
        if name != "progress":
            assert torch.equal(optimizer.state[p][name], value), name
    assert optimizer.statistics()["layers.0.attn.weight"]["skipped"] == 1


def test_a_convolution_trains_as_a_matrix(device):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3).to(device)
    groups = [{"params": [layer.weight], "rank": 2}, {"params": [layer.bias]}]
    optimizer = frugalore.Fira(groups, lr=1e-2, seed=0)
    x = torch.randn(2, 4, 8, 8, device=device)
    losses = []
    for _ in range(10):
        loss = layer(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
