"""FusedQGaLore in a hand-written loop: prepare, train, save, continue.

    python examples/custom_loop.py --steps 100

A two-layer network learns to reverse short strings of digits. Nothing here but torch and frugalore.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import frugalore

LENGTH, DIGITS, HIDDEN = 8, 10, 512


class Network(nn.Module):
    """Digits in, digits out, all positions at once."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(DIGITS, 64)
        self.mlp_in = nn.Linear(LENGTH * 64, HIDDEN)
        self.mlp_out = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, LENGTH * DIGITS)

    def forward(self, digits: torch.Tensor) -> torch.Tensor:
        x = self.embed(digits).flatten(1)
        x = functional.gelu(self.mlp_in(x))
        x = functional.gelu(self.mlp_out(x))
        return self.head(x).view(-1, LENGTH, DIGITS)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    digits = torch.randint(DIGITS, (256, LENGTH), generator=torch.Generator().manual_seed(step))
    return digits, digits.flip(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--checkpoint", type=Path, help="file to continue from, if it exists, and to save to")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = Network()
    frugalore.quantize_(model, target_modules=["mlp"])  # these weights are INT8 from here on
    groups = frugalore.param_groups(model, target_modules=["mlp"], rank=64, update_proj_gap=50)
    optimizer = frugalore.FusedQGaLore(groups, lr=5e-3)

    first = 0
    if arguments.checkpoint and arguments.checkpoint.exists():
        saved = torch.load(arguments.checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]

    for step in range(first, arguments.steps):
        digits, target = batch(step)
        loss = functional.cross_entropy(model(digits).flatten(0, 1), target.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0 or step + 1 == arguments.steps:
            print(f"step {step + 1}: loss {loss.item():.4f}")

    if arguments.checkpoint:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": arguments.steps}
        torch.save(state, arguments.checkpoint)
    print({name: f"{size / 1024:.0f} KiB" for name, size in optimizer.state_bytes().items()})


if __name__ == "__main__":
    main()
