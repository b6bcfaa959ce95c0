"""residual_add_, and the two steps that are made of it: split_back_update_ (FRUGAL) and fira_back_update_, at
the shapes and ranks of GaLore's 7B runs. The reference makes the whole residual and every intermediate in
plain torch.
"""

from __future__ import annotations

import torch

from cases import shapes
from frugalore import ops
from frugalore.ops.projection import Step
from frugalore.reference import fira, residual
from harness import Calls, Case

OUTSIDE = (
    {"outside": "sign"},
    {"outside": "scaled", "axis": "columns"},
    {"outside": "scaled", "axis": "rows"},
)


def _residual_add(shape, dtype, options):
    scaled, by_rows = options["outside"] == "scaled", options.get("axis") == "rows"

    def setup(device, peers) -> Calls:
        update, grad = shapes.normal(shape, device), shapes.normal(shape, device, dtype)
        projected = None if scaled else shapes.normal(shape, device)
        factor = shapes.normal((shape[0 if by_rows else 1],), device) if scaled else None
        operands, inside_scale = (update, grad, projected, factor), 0.5  # keeps the update within bounds
        return Calls(
            lambda: ops.residual_add_(*operands, inside_scale=inside_scale, **options),
            lambda: residual.residual_add_(*operands, inside_scale=inside_scale, **options),
        )

    # The update read and written, the gradient read; for a sign also the projected gradient.
    moved = shape[0] * shape[1] * (8 + dtype.itemsize + (0 if scaled else 4))
    rule = options["outside"] + (f" {options['axis']}" if scaled else "")
    return Case("residual_add_", shapes.name(shape), f"{shapes.DTYPES[dtype]} {rule}", moved, setup)


def _low_rank(shape, rank) -> tuple[int, int]:
    return (shape[0], rank) if shape[0] >= shape[1] else (rank, shape[1])


def _operands(shape, rank, dtype, device):
    """The gradient, a basis with orthonormal rows, R and a direction."""
    grad = shapes.normal(shape, device, dtype)
    basis = torch.linalg.qr(shapes.normal((min(shape), rank), device)).Q.t().contiguous()
    return grad, basis, ops.split_project(grad, basis), shapes.normal(_low_rank(shape, rank), device, std=1.0)


def _back(x, basis, shape):
    return x @ basis if shape[0] >= shape[1] else basis.t() @ x


def _moved(shape, rank, dtype) -> int:
    """The weight read and written, the gradient read; direction, R and basis read, in float32."""
    m, n = _low_rank(shape, rank)
    return 3 * shape[0] * shape[1] * dtype.itemsize + 4 * (2 * m * n + rank * min(shape))


def _case(op, shape, rank, dtype, products, moved, setup):
    flops = products * 2 * shape[0] * shape[1] * rank
    name = f"{shapes.name(shape)} rank {rank}"
    return Case(op, name, shapes.DTYPES[dtype], moved, setup, flops=flops, flops_dtype=dtype)


def _split_back_update(shape, rank, dtype):
    def setup(device, peers) -> Calls:
        weight = shapes.normal(shape, device, dtype)
        grad, basis, r, direction = _operands(shape, rank, dtype, device)
        step = Step(shapes.device_lr(device), shapes.device_progress(device), seed=1)

        def plain():
            outside = (grad.float() - _back(r, basis, shape)).sign()
            weight.sub_((_back(direction, basis, shape) + outside).mul_(shapes.LR).to(dtype))

        return Calls(lambda: ops.split_back_update_(weight, direction, r, basis, grad, step), plain)

    # The direction back, and R. (That R goes in two parts for bfloat16 on a GPU is the op's affair.)
    return _case("split_back_update_", shape, rank, dtype, 2, _moved(shape, rank, dtype), setup)


def _fira_back_update(shape, rank, dtype):
    def setup(device, peers) -> Calls:
        weight = shapes.normal(shape, device, dtype)
        grad, basis, r, direction = _operands(shape, rank, dtype, device)
        step = Step(shapes.device_lr(device), shapes.device_progress(device), seed=1)
        last = torch.ones((), device=device)
        powers = torch.tensor([0.9, 0.999], dtype=torch.float64, device=device)
        side = "right" if shape[0] >= shape[1] else "left"

        def plain():
            factors = fira.column_factors(direction, r, side)
            s, _ = fira.limited(factors * (grad.float() - _back(r, basis, shape)), last, 1.01)
            weight.sub_((_back(direction, basis, shape) + s).mul_(shapes.LR).to(dtype))

        def ours():
            arguments = (weight, direction, r, basis, grad, step, last)
            ops.fira_back_update_(*arguments, beta_powers=powers)

        return Calls(ours, plain)

    # The gradient is read a second time, for its norms.
    moved = _moved(shape, rank, dtype) + shape[0] * shape[1] * dtype.itemsize
    return _case("fira_back_update_", shape, rank, dtype, 1, moved, setup)


def cases(size: str) -> list[Case]:
    if size == "small":
        chosen, dtypes = (((64, 256), 8), ((256, 130), 16)), (torch.float32,)
    else:
        chosen = (((1024, 1024), 128), (shapes.ATTENTION, 1024), (shapes.DOWN, 1024), (shapes.GATE, 1024))
        dtypes = (torch.float32, torch.bfloat16)
    found = [
        _residual_add(shape, dtype, options)
        for shape in shapes.matrices(size)
        for dtype in (torch.float32, torch.bfloat16)
        for options in OUTSIDE
    ]
    return found + [
        make(shape, rank, dtype)
        for make in (_split_back_update, _fira_back_update)
        for shape, rank in chosen
        for dtype in dtypes
    ]
