"""project, projected_adam_step_ and project_back_update_, at the shapes and ranks of GaLore's 7B runs.

The reference makes the dense basis, the whole back-projected update and every intermediate in plain torch.
"""

from __future__ import annotations

import torch

from cases import shapes
from cases.adamw import ADAM, progress_of
from cases.adamw8bit import empty_states, state_bytes
from frugalore import ops
from frugalore.ops.projection import Step
from frugalore.reference import adamw8bit, int4, int8
from harness import Calls, Case


def _basis(shape, rank, device):
    """An INT4 basis of the short side, and its length."""
    short = min(shape)
    return ops.int4_quantize(shapes.normal((rank, short), device, std=short**-0.5))


def _basis_bytes(shape, rank) -> int:
    short = min(shape)
    return rank * -(-short // 2) + 5 * shapes.groups((rank, short))


def _dense(basis, shape, dtype):
    return int4.int4_dequantize(*basis, min(shape), shapes.GROUP, dtype)


def _plain_project(grad, basis):
    dense = _dense(basis, grad.shape, grad.dtype)
    return grad @ dense.t() if grad.shape[0] >= grad.shape[1] else dense @ grad


def _low_rank(shape, rank) -> tuple[int, int]:
    return (shape[0], rank) if shape[0] >= shape[1] else (rank, shape[1])


def _case(op, shape, rank, dtype, moved, setup):
    return Case(
        op,
        f"{shapes.name(shape)} rank {rank}",
        shapes.DTYPES[dtype],
        moved,
        setup,
        flops=2 * shape[0] * shape[1] * rank,
        flops_dtype=dtype,
    )


def _project(shape, rank, dtype):
    def setup(device, peers) -> Calls:
        grad, basis = shapes.normal(shape, device, dtype), _basis(shape, rank, device)
        return Calls(lambda: ops.project(grad, basis), lambda: _plain_project(grad, basis))

    m, n = _low_rank(shape, rank)
    # The gradient and the basis read, R written.
    moved = (shape[0] * shape[1] + m * n) * dtype.itemsize + _basis_bytes(shape, rank)
    return _case("project", shape, rank, dtype, moved, setup)


def _adam_step(shape, rank, dtype):
    def setup(device, peers) -> Calls:
        grad, basis = shapes.normal(shape, device, dtype), _basis(shape, rank, device)
        states = empty_states(torch.empty(_low_rank(shape, rank), device=device))
        progress, powers = progress_of(1, device)
        record = (*states, progress[0], powers[0])
        return Calls(
            lambda: ops.projected_adam_step_(grad, basis, *record, **ADAM),
            lambda: adamw8bit.adamw8bit_direction_(_plain_project(grad, basis), *record, **ADAM),
        )

    m, n = _low_rank(shape, rank)
    # As project, and the 8-bit state read and written.
    moved = (shape[0] * shape[1] + m * n) * dtype.itemsize + _basis_bytes(shape, rank) + state_bytes(m * n)
    return _case("projected_adam_step_", shape, rank, dtype, moved, setup)


def _back_update(shape, rank, dtype):
    def setup(device, peers) -> Calls:
        basis = _basis(shape, rank, device)
        weight = ops.int8_quantize(shapes.normal(shape, device))
        direction = shapes.normal(_low_rank(shape, rank), device, dtype, std=1.0)
        options = {"alpha": -0.25, "weight_decay": 0.01, "decay": "after", "seed": 1, "tensor_id": 3}
        step = Step(shapes.device_lr(device), shapes.device_progress(device), **options)

        def plain():
            dense = _dense(basis, shape, dtype)
            update = direction @ dense if shape[0] >= shape[1] else dense.t() @ direction
            int8.int8_stochastic_update_(*weight, update, lr=shapes.LR, progress=1, **options)

        return Calls(lambda: ops.project_back_update_(weight, direction, basis, step), plain)

    m, n = _low_rank(shape, rank)
    # Direction and basis read; codes, scales and zero-points of the weight read and written.
    moved = m * n * dtype.itemsize + _basis_bytes(shape, rank)
    moved += 2 * (shape[0] * shape[1] + 5 * shapes.groups(shape))
    return _case("project_back_update_", shape, rank, dtype, moved, setup)


def cases(size: str) -> list[Case]:
    if size == "small":
        chosen, dtypes = (((64, 256), 8), ((256, 130), 16)), (torch.float32,)
    else:
        chosen = (((1024, 1024), 128), (shapes.ATTENTION, 1024), (shapes.DOWN, 1024), (shapes.GATE, 1024))
        dtypes = (torch.float32, torch.bfloat16)
    return [
        make(shape, rank, dtype)
        for make in (_project, _adam_step, _back_update)
        for shape, rank in chosen
        for dtype in dtypes
    ]
