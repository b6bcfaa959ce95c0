"""A small model with the parts that FusedQGaLore treats differently, and how the tests train it."""

from __future__ import annotations

import torch
from torch import nn

import frugalore

OPTIONS = {"rank": 16, "update_proj_gap": 3, "scale": 0.5}
_GROUP_OPTIONS = ("rank", "similarity", "cos_threshold", "stagger", "moments_at_refresh", "update_proj_gap")


def make_model(dtype=torch.float32, quantized=True, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential()
    model.add_module("embed", nn.Embedding(50, 64))
    model.add_module("attn", nn.Linear(64, 96))
    model.add_module("act", nn.Tanh())
    model.add_module("mlp", nn.Linear(96, 64, bias=False))
    model.add_module("norm", nn.LayerNorm(64))
    model.add_module("head", nn.Linear(64, 50))
    model = model.to(dtype)
    return frugalore.quantize_(model, target_modules=["attn", "mlp"]) if quantized else model


def make_optimizer(model, lr=2e-2, **options):
    group_options = {**OPTIONS, **{k: options.pop(k) for k in list(options) if k in _GROUP_OPTIONS}}
    return frugalore.FusedQGaLore(
        frugalore.param_groups(model, ["attn", "mlp"], **group_options), lr=lr, **options
    )


def batch_of(step, device="cpu"):
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 50, (32,), generator=generator)
    return tokens.to(device), ((tokens * 7 + 3) % 50).to(device)


def loss_of(model, step, device="cpu"):
    tokens, target = batch_of(step, device)
    return nn.functional.cross_entropy(model(tokens).float(), target)


def train(model, optimizer, steps, device="cpu"):
    losses = []
    for step in steps:
        loss = loss_of(model, step, device)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
