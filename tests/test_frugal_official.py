"""The specification of FRUGAL and BAdam against the published packages: trajectories and schedules.

The published subspaces are read from the published optimizer and given to the specification, so that only
draws and singular vectors are not compared.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from frugal_oracle import badam_trajectory, spec_trajectory, whole_tensors
from frugalore.reference.frugal import AdamW, Lion
from frugalore.reference.frugal_subspaces import Basis, Columns, Elements, Rows, Whole
from frugalore.subspace.blocks import active_blocks, block_count, layer_blocks

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import official

SHAPES = [(12, 20), (20, 12), (16, 16), (7, 13), (9, 1), (1, 9)]
STEPS, GAP = 14, 4
OPTIONS = {"weight_decay": 0.1, "proj_params_lr_scale": 0.7, "inactive_lr_scale": 0.1}
RULES = ["sign_sgd", "sgd", "no"]
DTYPES = {torch.float64: 1e-12, torch.float32: 2e-6}
KINDS = {"columns": Columns, "rows": Rows}


@pytest.fixture(scope="module")
def frugal():
    pytest.importorskip("transformers", reason="the published FRUGAL needs transformers")
    try:
        return official.Frugal()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def badam():
    pytest.importorskip("transformers", reason="the published BAdam needs transformers")
    return pytest.importorskip("badam")


def random_like(shapes, seed, dtype, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) * scale for shape in shapes]


def gradients(shapes, dtype, steps=STEPS):
    return [random_like(shapes, 100 + step, dtype, 0.3) for step in range(steps)]


def run(optimizer, params, grads, observe):
    """Weights and state after each step; ``observe(step)`` is called after it."""
    trajectory = []
    for step, of_step in enumerate(grads):
        for p, grad in zip(params, of_step, strict=True):
            p.grad = None if grad is None else grad.clone()
        optimizer.step()
        observe(step)
        trajectory.append([_copy(p, optimizer.state[p]) for p in params])
    return trajectory


def _copy(p, state):
    tensors = {name: value.clone() for name, value in state.items() if isinstance(value, torch.Tensor)}
    return p.detach().clone(), tensors, state.get("step", 0), state.get("active", True)


def check(published, spec, tolerance):
    for step, (theirs, ours) in enumerate(zip(published, spec, strict=True)):
        for (weight, state, t, active), expected in zip(theirs, ours, strict=True):
            assert float((weight.double() - expected.weight).abs().max()) < tolerance, step
            if not active:
                assert not state and not expected.state
                continue
            assert t == expected.t, step
            assert state.keys() == expected.state.keys()
            for name, value in state.items():
                assert value.shape == expected.state[name].shape
                if value.numel():
                    assert float((value.double() - expected.state[name]).abs().max()) < tolerance, (
                        step,
                        name,
                    )


def subspace_of(state, kind):
    """The published projector's, as the specification takes it."""
    projector = state["projector"]
    if kind == "randk":
        rows, columns = projector.indices
        return Elements((rows * projector.grad_shape[1] + columns).tolist())
    if kind in KINDS:
        return KINDS[kind](projector.indices.tolist())
    matrix = projector.ortho_matrix
    if projector.proj_side == "full":
        return Basis(matrix[0].double().t(), matrix[1].double())
    return Basis(right=matrix.double()) if projector.proj_side == "right" else Basis(left=matrix.double().t())


def compare(optimizer, params, kind, grads, tolerance, *, rule=None, lr=1e-2, **options):
    start = [p.detach().clone() for p in params]
    periods = []

    def observe(step):
        if step % GAP == 0:
            periods.append([subspace_of(optimizer.state[p], kind) for p in params])

    published = run(optimizer, params, grads, observe)
    spec = spec_trajectory(start, grads, periods, update_gap=GAP, rule=rule, lr=lr, **options)
    assert len(periods) == 4
    check(published, spec, tolerance)


def parameters(shapes, dtype):
    return [nn.Parameter(w) for w in random_like(shapes, 1, dtype)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outside", RULES)
@pytest.mark.parametrize("kind", ["columns", "rows", "randk", "svd", "random", "randperm"])
def test_a_trajectory_is_the_published_one(frugal, kind, outside, dtype):
    torch.manual_seed(0)
    params = parameters(SHAPES, dtype)
    optimizer = frugal.adamw(
        *(params, [], 1e-2), kind=kind, density=0.4, update_gap=GAP, inactive_update_rule=outside, **OPTIONS
    )
    grads = gradients(SHAPES, dtype)
    compare(optimizer, params, kind, grads, DTYPES[dtype], inactive_update_rule=outside, **OPTIONS)


@pytest.mark.parametrize("kind", ["columns", "rows", "randk", "svd", "random"])
def test_moments_that_are_kept(frugal, kind):
    torch.manual_seed(0)
    params = parameters(SHAPES, torch.float64)
    optimizer = frugal.adamw(
        *(params, [], 1e-2), kind=kind, density=0.5, update_gap=GAP, reset_statistics=False, **OPTIONS
    )
    grads = gradients(SHAPES, torch.float64)
    compare(optimizer, params, kind, grads, 1e-12, moments_at_refresh="keep", **OPTIONS)


@pytest.mark.parametrize("side", ["reverse_std", "left", "right", "full"])
def test_the_other_sides_of_a_basis(frugal, side):
    torch.manual_seed(0)
    params = parameters(SHAPES[:4], torch.float64)
    optimizer = frugal.adamw(*(params, [], 1e-2), kind="svd", proj_side=side, update_gap=GAP, **OPTIONS)
    grads = gradients(SHAPES[:4], torch.float64)
    if side == "full":
        # A first R that is diagonal but for rounding noise, whose sign Adam would take.
        for group in optimizer.param_groups:
            group["eps"] = 1e-3
    rule = AdamW(eps=optimizer.param_groups[0]["eps"])
    compare(optimizer, params, "svd", grads, 1e-12, rule=rule, **OPTIONS)


@pytest.mark.parametrize("kind", ["columns", "svd"])
def test_lion_moves_as_published(frugal, kind):
    torch.manual_seed(0)
    params = parameters(SHAPES, torch.float64)
    groups = [{"params": params, "is_proj_params": True}]
    common = {"lr": 1e-2, "density": 0.5, "update_gap": GAP, "betas": (0.8, 0.95)}
    if kind == "svd":
        optimizer = frugal.GaloreLion(groups, **common, **OPTIONS)
    else:
        optimizer = frugal.CoordLion(groups, coord_choice=kind, **common, **OPTIONS)
    grads = gradients(SHAPES, torch.float64)
    compare(optimizer, params, kind, grads, 1e-12, rule=Lion((0.8, 0.95)), **OPTIONS)


# ---- blocks -------------------------------------------------------------------------------------------

BLOCK_SHAPES = [*SHAPES, (5,), (3, 4)]


def block_run(frugal, order, density, grads, dtype=torch.float64, n=8, **options):
    torch.manual_seed(0)
    params = parameters(BLOCK_SHAPES[:n], dtype)
    start = [p.detach().clone() for p in params]
    optimizer = frugal.adamw(
        *(params, [], 1e-2), kind="block", block_order=order, density=density, update_gap=GAP, **options
    )
    periods = []

    def observe(step):
        if step % GAP == 0:
            periods.append([i for i, p in enumerate(params) if optimizer.state[p]["active"]])

    return start, run(optimizer, params, grads, observe), periods


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outside", RULES)
@pytest.mark.parametrize("order", ["random", "descending"])
def test_blocks_move_as_published(frugal, order, outside, dtype):
    options = OPTIONS | {"inactive_update_rule": outside}
    grads = gradients(BLOCK_SHAPES, dtype)
    start, published, periods = block_run(frugal, order, 0.375, grads, dtype, **options)
    n = len(start)
    subspaces = [whole_tensors(active, n) for active in periods]
    spec = spec_trajectory(start, grads, subspaces, update_gap=GAP, lr=1e-2, **options)
    check(published, spec, DTYPES[dtype])


def test_a_block_without_gradient_waits_as_published(frugal):
    grads = gradients(BLOCK_SHAPES, torch.float64)
    for step, i in [(0, 3), (1, 7), (4, 5), (5, 4), (6, 4), (9, 2)]:
        grads[step][i] = None
    start, published, periods = block_run(frugal, "ascending", 0.5, grads, **OPTIONS)
    subspaces = [whole_tensors(active, len(start)) for active in periods]
    spec = spec_trajectory(start, grads, subspaces, update_gap=GAP, lr=1e-2, **OPTIONS)
    check(published, spec, 1e-12)


@pytest.mark.parametrize(
    ("order", "n", "density"),
    [
        *(("ascending", 7, 0.3), ("descending", 7, 0.3), ("ascending", 8, 0.4), ("descending", 5, 0.5)),
        *(("mirror", 8, 0.25), ("mirror", 8, 0.5), ("mirror", 6, 0.67), ("mirror", 6, 1.0)),
        *(("ascending", 6, 1.0), ("descending", 6, 1.0), ("descending", 7, 0.0)),
    ],
)
def test_the_schedule_of_blocks_is_the_published_one(frugal, order, n, density):
    grads = gradients(BLOCK_SHAPES[:n], torch.float64, steps=12 * GAP)
    _, _, periods = block_run(frugal, order, density, grads, n=n)
    count = block_count(n, density)
    assert periods == [active_blocks(order, n, count, period, seed=0) for period in range(12)]


def test_parameters_that_are_not_projected_move_as_published(frugal):
    params = parameters([(12, 20), (6,)], torch.float64)
    start = [p.detach().clone() for p in params]
    optimizer = frugal.adamw(params[:1], params[1:], 1e-2, kind="columns", update_gap=GAP, **OPTIONS)
    grads = gradients([(12, 20), (6,)], torch.float64)
    published = run(optimizer, params, grads, lambda step: None)
    spec = spec_trajectory(
        *(start[1:], [of_step[1:] for of_step in grads], lambda period: [Whole()]),
        update_gap=GAP,
        lr=1e-2,
        weight_decay=0.1,
        moments_at_refresh="keep",
    )
    check([of_step[1:] for of_step in published], spec, 1e-12)


# ---- BAdam --------------------------------------------------------------------------------------------

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{leaf}.weight" for i in range(3) for leaf in ("attn", "norm")),
    "model.norm.weight",
    "lm_head.weight",
]
BADAM_SHAPES = [(11, 6), *[(6, 9), (6,)] * 3, (6,), (11, 6)]


@pytest.mark.parametrize(
    "include", [{"include_embedding": e, "include_lm_head": h} for e, h in ((0, 0), (1, 0), (1, 1))]
)
def test_layers_are_the_published_blocks(badam, include):
    find = badam.BlockOptimizer.infer_param_groups
    published = find(None, NAMES, include["include_embedding"], include["include_lm_head"])
    expected = [[i for i, n in enumerate(NAMES) if any(prefix in n for prefix in b)] for b in published]
    assert layer_blocks(NAMES, **include) == expected


@pytest.mark.filterwarnings("ignore:BAdam expect model")
@pytest.mark.parametrize(
    ("mode", "start"), [("ascending", None), ("descending", None), ("descending", 1), ("fixed", 2)]
)
def test_badam_moves_as_published(badam, mode, start):
    """Published, the first block is trained one step less: here the first step has no gradient."""
    switch_every, decay = 4, 0.05
    params = parameters(BADAM_SHAPES, torch.float32)
    begin = [p.detach().clone() for p in params]
    base = torch.optim.AdamW(params, lr=1e-2, weight_decay=decay)
    optimizer = official.badam(
        base,
        list(zip(NAMES, params, strict=True)),
        switch_block_every=switch_every,
        switch_mode=mode,
        start_block=start,
        include_embedding=True,
        include_lm_head=True,
    )
    grads = gradients(BADAM_SHAPES, torch.float32, steps=23)
    published = []
    for of_step in grads:
        for p, grad in zip(params, of_step, strict=True):
            p.grad = grad.clone() if p.requires_grad else None
        optimizer.step()
        published.append([p.detach().clone() for p in params])
    blocks = layer_blocks(NAMES, include_embedding=True, include_lm_head=True)
    spec = badam_trajectory(
        begin,
        [[None] * len(params), *grads],
        blocks,
        switch_every=switch_every,
        mode=mode,
        start=start,
        lr=1e-2,
        weight_decay=decay,
    )
    moved = set()
    for theirs, ours in zip(published, spec[1:], strict=True):
        for i, (weight, expected) in enumerate(zip(theirs, ours, strict=True)):
            assert float((weight - expected.weight).abs().max()) < DTYPES[torch.float32]
            if not torch.equal(weight, begin[i]):
                moved.add(i)
    assert len(moved) == (2 if mode == "fixed" else len(params))
