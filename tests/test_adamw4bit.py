"""Moments in 4 bits: the maps, what is stored, training, resume."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import frugalore
from frugalore.reference.adamw4bit import dequantize_moment4, map4bit, quantize_moment4
from qgalore_helpers import equal, snapshot, train

PRESETS = (frugalore.FusedQGaLore, frugalore.GaLoreAdamW, frugalore.GaLoreAdamW8bit)


def test_the_maps():
    signed = map4bit(True)
    magnitudes = [0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875]
    expected = [-x for x in reversed(magnitudes)] + [0.0, *magnitudes, 1.0]
    assert torch.allclose(signed, torch.tensor(expected)) and len(signed) == 16
    assert map4bit(False).tolist() == [k / 16 for k in range(1, 17)]


@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 1000])
@pytest.mark.parametrize("signed", [True, False])
def test_every_element_gets_the_nearest_value_of_its_block(count, signed, device, generator):
    x = torch.randn(count, generator=generator).to(device) * torch.logspace(-3, 3, count, device=device)
    x = x if signed else x.abs()
    packed, absmax = quantize_moment4(x, signed)
    assert packed.shape == (-(-count // 2),) and packed.dtype == torch.uint8
    assert absmax.shape == (-(-count // 128),)
    restored = dequantize_moment4(packed, absmax, signed, (count,))
    largest = absmax.repeat_interleave(128)[:count]
    candidates = map4bit(signed).to(device) * largest[:, None]
    nearest = (candidates - x[:, None]).abs().amin(1)
    assert torch.allclose((restored - x).abs(), nearest, rtol=1e-5, atol=1e-7)
    assert torch.equal(largest, torch.stack([x[i // 128 * 128 :][:128].abs().max() for i in range(count)]))


def test_zeros_stay_zeros():
    for signed in (True, False):
        packed, absmax = quantize_moment4(torch.zeros(200), signed)
        assert not dequantize_moment4(packed, absmax, signed, (200,)).any()
    state = torch.zeros(100, dtype=torch.uint8), torch.zeros(2)  # as an optimizer begins
    assert not dequantize_moment4(*state, False, (200,)).any()


def make(kind, moments="keep", seed=0, bits=4):
    torch.manual_seed(seed)
    model = nn.Sequential()
    model.add_module("embed", nn.Embedding(50, 128))
    model.add_module("attn", nn.Linear(128, 160))
    model.add_module("act", nn.Tanh())
    model.add_module("mlp", nn.Linear(160, 128, bias=False))
    model.add_module("head", nn.Linear(128, 50))
    options = {"rank": 48, "update_proj_gap": 5, "scale": 0.5, "moments_at_refresh": moments}
    groups = frugalore.param_groups(model, ["attn", "mlp"], **options)
    return model, kind(groups, lr=1e-2, state_bits=bits, seed=1)


@pytest.mark.parametrize("kind", PRESETS)
def test_it_trains_as_well_as_8_bits(kind):
    losses = {}
    for bits in (4, 8):
        model, optimizer = make(kind, bits=bits)
        losses[bits] = sum(train(model, optimizer, range(80))[-10:]) / 10
    assert losses[4] < losses[8] + 0.1 < 2.0


def test_the_state_takes_half_of_8_bits():
    sizes = {}
    for bits in (4, 8):
        model, optimizer = make(frugalore.GaLoreAdamW, bits=bits)
        train(model, optimizer, range(1))
        state = optimizer.state[model.attn.weight]
        sizes[bits] = sum(x.numel() * x.element_size() for name, x in state.items() if "exp_avg" in name)
        assert state["exp_avg"].dtype == torch.uint8
    assert sizes[8] == 160 * 48 * 2 + 30 * 8 and sizes[4] == 160 * 48 + 60 * 8


@pytest.mark.parametrize("kind", PRESETS)
@pytest.mark.parametrize("moments", ["keep", "rotate", "reset"])
def test_resume_is_exact(kind, moments):
    straight, optimizer = make(kind, moments)
    train(straight, optimizer, range(7))
    file = io.BytesIO()
    torch.save({"model": straight.state_dict(), "optimizer": optimizer.state_dict()}, file)
    rest = train(straight, optimizer, range(7, 16))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, again = make(kind, moments, seed=9)
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert train(resumed, again, range(7, 16)) == rest
    assert equal(snapshot(straight), snapshot(resumed))


def test_a_gradient_that_is_not_finite_changes_nothing_in_a_subspace():
    model, optimizer = make(frugalore.GaLoreAdamW)
    train(model, optimizer, range(3))
    p = model.attn.weight
    names = ("exp_avg", "exp_avg_absmax", "exp_avg_sq", "exp_avg_sq_absmax")
    before = {name: optimizer.state[p][name].clone() for name in names} | {"": p.detach().clone()}
    for other in model.parameters():
        other.grad = None
    p.grad = torch.full_like(p, torch.inf)
    optimizer.step()
    assert all(torch.equal(before[name], optimizer.state[p][name]) for name in names)
    assert torch.equal(before[""], p) and optimizer.statistics()["attn.weight"]["skipped"] == 1


def test_a_state_of_another_width_is_refused():
    model, optimizer = make(frugalore.GaLoreAdamW)
    train(model, optimizer, range(2))
    _, other = make(frugalore.GaLoreAdamW, bits=8)
    with pytest.raises(ValueError, match="state_bits 8 expected, got 4 in the state"):
        other.load_state_dict(optimizer.state_dict())
    assert not other.state
