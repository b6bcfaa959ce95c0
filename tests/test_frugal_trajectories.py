"""FRUGAL's and BAdam's optimizers follow the specification in every subspace, with every rule and switch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import frugalore
from frugal_oracle import Basis, badam_trajectory, library_subspace, spec_trajectory, whole_tensors
from frugalore.ops.projection import short_side
from frugalore.reference.frugal import AdamW, Lion, Sgdm
from frugalore.subspace.blocks import MODES, ORDERS, active_blocks, block_count, layer_blocks

SHAPES = [(12, 20), (20, 12), (7, 13), (16, 16)]
STEPS, GAP, SEED, DENSITY = 14, 4, 3, 0.5
SCALES = {"proj_params_lr_scale": 0.7, "inactive_lr_scale": 0.1}
KINDS = {
    "FrugalAdamW": (AdamW(), {}),
    "FrugalSGDM": (Sgdm(0.9), {"momentum": 0.9}),
    "FrugalLion": (Lion(), {"betas": (0.9, 0.99)}),
}


def random_like(shapes, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * scale for shape in shapes]


def gradients(shapes, steps=STEPS):
    return [random_like(shapes, 100 + step, 0.3) for step in range(steps)]


def run(optimizer, params, grads, device, observe=lambda step: None):
    """Weights and moments after each step, in the order of the specification's names."""
    trajectory = []
    for step, of_step in enumerate(grads):
        for p, grad in zip(params, of_step, strict=True):
            p.grad = grad.to(device, copy=True) if grad is not None and p.requires_grad else None
        optimizer.step()
        observe(step)
        states = [{name: v.cpu().clone() for name, v in _moments(optimizer.state[p])} for p in params]
        trajectory.append([(p.detach().cpu().clone(), s) for p, s in zip(params, states, strict=True)])
    return trajectory


def _moments(state):
    names = ("exp_avg", "exp_avg_sq", "momentum_buffer")
    return [(name, state[name]) for name in names if name in state]


def check(ours, spec, tolerance=3e-6):
    for step, (of_step, expected) in enumerate(zip(ours, spec, strict=True)):
        for i, ((weight, state), snapshot) in enumerate(zip(of_step, expected, strict=True)):
            assert float((weight - snapshot.weight).abs().max()) < tolerance, (step, i)
            for name, moment in snapshot.state.items():
                if (step + 1) % GAP == 0 and state[name].numel() == 0:
                    continue  # a block whose turn ended with this step: its moments are gone already
                error = (state[name].flatten() - moment.flatten()).abs()
                assert not error.numel() or float(error.max()) < tolerance, (step, i, name)


def make(kind, device, subspace, shapes=SHAPES, **options):
    params = [nn.Parameter(w.to(device)) for w in random_like(shapes, 1)]
    group = {"params": params, "density": DENSITY, "subspace": subspace, "update_gap": GAP} | SCALES
    _, own = KINDS[kind]
    optimizer = getattr(frugalore, kind)([group | options], lr=1e-2, weight_decay=0.1, seed=SEED, **own)
    return params, optimizer


def specified(kind, grads, subspaces, shapes=SHAPES, **options):
    options = {"update_gap": GAP, "rule": KINDS[kind][0], "lr": 1e-2, "weight_decay": 0.1} | SCALES | options
    return spec_trajectory(random_like(shapes, 1), grads, subspaces, **options)


@pytest.mark.parametrize("at_switch", ["reset", "keep", "rotate"])
@pytest.mark.parametrize("outside", ["sign_sgd", "sgd", "no"])
@pytest.mark.parametrize("subspace", ["columns", "rows", "randk", "randperm"])
@pytest.mark.parametrize("kind", KINDS)
def test_drawn_coordinates(kind, subspace, outside, at_switch, device):
    options = {"inactive_update_rule": outside, "moments_at_refresh": at_switch}
    params, optimizer = make(kind, device, subspace, **options)

    def subspaces(period):
        return [
            library_subspace(subspace, shape, density=DENSITY, seed=SEED, tensor_id=i, period=period)
            for i, shape in enumerate(SHAPES)
        ]

    grads = gradients(SHAPES)
    check(run(optimizer, params, grads, device), specified(kind, grads, subspaces, **options))


@pytest.mark.parametrize("at_switch", ["reset", "rotate"])
@pytest.mark.parametrize("outside", ["sign_sgd", "sgd", "no"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks(kind, order, outside, at_switch, device):
    options = {"inactive_update_rule": outside, "moments_at_refresh": at_switch}
    params, optimizer = make(kind, device, "blocks", block_order=order, **options)
    n = len(SHAPES)

    def subspaces(period):
        return whole_tensors(active_blocks(order, n, block_count(n, DENSITY), period, seed=SEED), n)

    grads = gradients(SHAPES)
    check(run(optimizer, params, grads, device), specified(kind, grads, subspaces, **options))


@pytest.mark.parametrize("at_switch", ["reset", "rotate"])
def test_missing_gradients(at_switch, device):
    grads = gradients(SHAPES)
    for step, i in [(1, 0), (4, 2), (5, 2), (8, 1), (8, 3), (9, 0)]:
        grads[step][i] = None
    params, optimizer = make("FrugalAdamW", device, "columns", moments_at_refresh=at_switch)

    def subspaces(period):
        return [
            library_subspace("columns", shape, density=DENSITY, seed=SEED, tensor_id=i, period=period)
            for i, shape in enumerate(SHAPES)
        ]

    options = {"moments_at_refresh": at_switch, "at_first_gradient": True}
    check(run(optimizer, params, grads, device), specified("FrugalAdamW", grads, subspaces, **options))


@pytest.mark.parametrize("at_switch", ["reset", "keep", "rotate"])
@pytest.mark.parametrize("outside", ["sign_sgd", "sgd", "no"])
@pytest.mark.parametrize("subspace", ["svd", "random"])
@pytest.mark.parametrize("kind", KINDS)
def test_bases(kind, subspace, outside, at_switch, device):
    """The bases are the optimizer's own. (Short ones from random signs may hold a coordinate axis, whose
    residual is zero but for rounding and so has no sign to compare.)"""
    shapes = [(24, 40), (40, 24), (31, 33)]
    options = {"inactive_update_rule": outside, "moments_at_refresh": at_switch}
    params, optimizer = make(kind, device, subspace, shapes, **options)
    periods = []

    def observe(step):
        if step % GAP == 0:
            bases = [optimizer.state[p]["basis"].cpu().double() for p in params]
            sides = [short_side(p.shape) for p in params]
            periods.append([Basis(**{side: basis}) for side, basis in zip(sides, bases, strict=True)])

    grads = gradients(shapes)
    ours = run(optimizer, params, grads, device, observe)
    check(ours, specified(kind, grads, periods, shapes, **options), 1e-5)


# ---- BAdam --------------------------------------------------------------------------------------------

NAMES = [
    "embed.weight",
    *(f"layers.{i}.{x}.weight" for i in range(3) for x in ("attn", "norm")),
    "head.weight",
]
BADAM_SHAPES = [(11, 6), *[(6, 9), (6,)] * 3, (11, 6)]


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_badam(mode, include, device):
    params = [nn.Parameter(w.to(device)) for w in random_like(BADAM_SHAPES, 1)]
    which = {"include_embedding": include, "include_lm_head": include}
    optimizer = frugalore.BAdam(
        zip(NAMES, params, strict=True),
        lr=1e-2,
        weight_decay=0.1,
        switch_block_every=GAP,
        switch_mode=mode,
        seed=SEED,
        **which,
    )
    grads = gradients(BADAM_SHAPES, 27)
    held = []

    def observe(step):
        # At most the moments of one block, even right after a switch.
        elements = sum(v.numel() for state in optimizer.state.values() for _, v in _moments(state))
        held.append(elements)

    ours = run(optimizer, params, grads, device, observe)
    spec = badam_trajectory(
        random_like(BADAM_SHAPES, 1),
        grads,
        layer_blocks(NAMES, **which),
        switch_every=GAP,
        mode=mode,
        seed=SEED,
        lr=1e-2,
        weight_decay=0.1,
    )
    check(ours, spec)
    assert max(held) <= 2 * 66
