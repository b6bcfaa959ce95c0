"""A whole ``FusedQGaLore.step()`` over decoder layers of LLaMA, between refreshes, beside AdamW.

Weights INT8 with an INT4 basis and 8-bit moments; gradients bf16. The peers keep bf16 weights and step over
the same shapes: torch's fused AdamW, 8-bit AdamW of bitsandbytes. Optimizer state is counted in bytes.
"""

from __future__ import annotations

import torch
from torch import nn

import frugalore
from cases import peers as other
from cases import shapes
from harness import Calls, Case


def _layer(hidden: int, inner: int) -> list[tuple[int, int]]:
    return [(hidden, hidden)] * 4 + [(inner, hidden)] * 2 + [(hidden, inner)]


def _bytes_of(states) -> int:
    return sum(t.nbytes for state in states for t in _tensors(state))


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _step(hidden, inner, layers, rank, devices):
    matrices = _layer(hidden, inner) * layers

    def setup(device, peers) -> Calls:
        model = nn.Sequential(
            *(nn.Linear(n, m, bias=False, device=device, dtype=torch.bfloat16) for m, n in matrices)
        )
        frugalore.quantize_(model, target_modules="all-linear")
        groups = frugalore.param_groups(model, "all-linear", rank=rank, update_proj_gap=10**9)
        optimizer = frugalore.FusedQGaLore(groups, lr=shapes.LR, weight_decay=0.01, seed=1)
        for p in model.parameters():
            p.grad = shapes.normal(tuple(p.shape), device, torch.bfloat16)
        steps = other.adamw_steps(peers, matrices, device, torch.bfloat16)

        def state_bytes():
            counted = {name: _bytes_of(step.__self__.state.values()) for name, step in steps.items()}
            return {"frugalore": _bytes_of(optimizer.state.values()), **counted}

        return Calls(optimizer.step, None, steps, state_bytes)

    elements, moved, flops = 0, 0, 0
    for m, n in matrices:
        short, low = min(m, n), max(m, n) * rank
        elements += m * n
        basis = rank * -(-short // 2) + 5 * shapes.groups((rank, short))
        # Gradient read; weight, scale, zero-point, codes and absmax of both moments read and written; the
        # basis read for the way in and the way back; the direction written and read.
        moved += 2 * m * n + 2 * (m * n + 5 * shapes.groups((m, n)))
        moved += 2 * 2 * (low + 4 * -(-low // 256)) + 2 * basis + 2 * 2 * low
        flops += 2 * 2 * m * n * rank
    label = f"{layers} layers of {hidden}, rank {rank}, {elements / 1e6:.0f}M"
    return Case(
        "FusedQGaLore.step",
        label,
        "bf16 -> int8",
        moved,
        setup,
        flops=flops,
        flops_dtype=torch.bfloat16,
        devices=devices,
    )


def cases(size: str) -> list[Case]:
    if size == "small":
        return [_step(64, 160, 1, 8, ("cpu", "cuda"))]
    return [
        _step(1024, 2736, 2, 128, ("cpu", "cuda")),
        _step(4096, 11008, 2, 1024, ("cuda",)),
    ]
