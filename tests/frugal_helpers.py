"""Models, gradients and optimizers that the tests of FRUGAL's presets share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import frugalore

SHAPES = [(12, 20), (20, 12), (16, 16), (13, 7), (9, 300)]

PRESETS = {
    "adamw": frugalore.FrugalAdamW,
    "sgdm": frugalore.FrugalSGDM,
    "lion": frugalore.FrugalLion,
}


def parameters(shapes=SHAPES, dtype=torch.float32, seed=0, device="cpu") -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype).to(device)) for s in shapes]


def gradients(steps: int, shapes=SHAPES, seed=1) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(s, generator=generator) for s in shapes] for _ in range(steps)]


def feed(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], grads: list[Tensor | None]) -> None:
    """One step with these gradients."""
    for p, grad in zip(params, grads, strict=True):
        p.grad = None if grad is None else grad.to(p.dtype).to(p.device)
    optimizer.step()
    optimizer.zero_grad()


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.attn = nn.Linear(width, width, bias=False)
        self.mlp = nn.Linear(width, 3 * width)
        self.mlp_down = nn.Linear(3 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return x + self.mlp_down(torch.relu(self.mlp(self.norm(x + self.attn(x)))))


class Model(nn.Module):
    """Three layers, with names as transformers gives them."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.embed_tokens = nn.Linear(8, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(3))
        self.lm_head = nn.Linear(width, 8)

    def forward(self, x):
        x = self.embed_tokens(x)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


def make_model(*, quantized: bool = False, dtype=torch.float32, device="cpu") -> Model:
    torch.manual_seed(0)
    model = Model().to(dtype).to(device)
    if quantized:
        frugalore.quantize_(model, ["attn", "mlp"])
    return model


def make_frugal(model: nn.Module, preset: str = "adamw", **options):
    own = {name: options.pop(name) for name in ("state_bits", "weight_decay") if name in options}
    group = {"density": 0.25, "update_gap": 3, **options}
    groups = frugalore.param_groups(model, ["attn", "mlp"], **group)
    return PRESETS[preset](groups, lr=3e-3, seed=7, **own)


def loss_of(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 + step)
    p = next(model.parameters())
    x = torch.randn(16, 8, generator=generator).to(p.device).to(p.dtype)
    return (model(x) - x.roll(1, 1)).float().square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps) -> list[float]:
    losses = []
    for step in steps:
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def snapshot(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]
