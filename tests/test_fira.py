"""fira_back_update_."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from frugalore import ops
from frugalore.ops.fira import squared_norms
from frugalore.reference import fira as reference

SHAPES = [(96, 64), (64, 96), (64, 64), (77, 35), (35, 77), (7, 3), (1, 5), (5, 1)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BETAS, EPS = (0.9, 0.999), 1e-6


def _side(shape):
    return "right" if shape[0] >= shape[1] else "left"


def _low_rank(shape, rank):
    return (shape[0], rank) if _side(shape) == "right" else (rank, shape[1])


def _basis(shape, rank, generator):
    length = min(shape)
    q = torch.linalg.qr(torch.randn(length, length, generator=generator, dtype=torch.float64)).Q
    return q[:rank].contiguous()


class Fira:
    """A weight that Fira's step moves, and its state."""

    def __init__(self, weight, rank, device="cpu", lr=0.01, **options):
        self.weight = weight
        self.shape = weight.shape if isinstance(weight, torch.Tensor) else weight[0].shape
        zeros = [torch.zeros(_low_rank(self.shape, rank), device=device) for _ in range(2)]
        self.moments = zeros
        self.progress = torch.zeros(3, dtype=torch.int64, device=device)
        self.powers = torch.ones(2, dtype=torch.float64, device=device)
        self.last_norm = torch.full((), torch.nan, dtype=torch.float64, device=device)
        self.step = ops.Step(torch.full((1,), lr, dtype=torch.float64, device=device), self.progress)
        self.step = self.step._replace(**options)

    def __call__(self, grad, basis, **options):
        r = ops.split_project(grad, basis)
        state = (*self.moments, self.progress, self.powers)
        direction = ops.adamw_direction_(r.clone(), *state, betas=BETAS, eps=EPS, eps_mode="raw")
        powers = None if options.get("mode") == "paper" else self.powers
        arguments = (self.weight, direction, r, basis, grad, self.step, self.last_norm)
        ops.fira_back_update_(*arguments, beta_powers=powers, **options)


class Spec:
    """The same in float64 with the reference."""

    def __init__(self, weight, rank, lr=0.01, weight_decay=0.0):
        self.weight = weight.double()
        zeros = [torch.zeros(_low_rank(weight.shape, rank), dtype=torch.float64) for _ in range(2)]
        self.state = reference.FiraState(*zeros)
        self.options = {"lr": lr, "weight_decay": weight_decay, "betas": BETAS, "eps": EPS}

    def __call__(self, grad, basis, **options):
        reference.fira_step_(
            self.weight, grad.double(), basis.double(), self.state, **self.options, **options
        )


def _gradients(shape, dtype, generator, steps=8):
    """Of a size that jumps, so that the limiter acts in some steps only."""
    for i in range(steps):
        yield ((1 + 3 * (i % 3)) * torch.randn(shape, generator=generator)).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_equals_the_reference(shape, dtype, mode, scale, device, generator):
    rank = max(1, min(9, min(shape) // 2))
    start = torch.randn(shape, generator=generator) * 0.02
    ours = Fira(start.to(device), rank, device, weight_decay=0.1, decay="after")
    spec = Spec(start, rank, weight_decay=0.1)
    low_precision = device.type == "cuda" and dtype == torch.bfloat16
    for i, grad in enumerate(_gradients(shape, dtype, generator)):
        if i % 3 == 0:  # The subspace changes; the moments stay.
            basis = _basis(shape, rank, generator)
        ours(grad.to(device), basis.float().to(device), mode=mode, scale=scale)
        spec(grad, basis, mode=mode, scale=scale)
        tolerance = 1e-2 if low_precision else 1e-6
        error = (ours.weight.cpu() - spec.weight).norm()
        assert error <= tolerance * spec.weight.norm()
        assert (
            abs(ours.last_norm.item() - spec.state.last_norm) <= 10 * tolerance * spec.state.last_norm + 1e-7
        )


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_the_limiter(mode, generator):
    """The second residual is a hundred times the first: its norm grows by the limit. The third is small."""
    shape, rank = (40, 24), 6
    basis, grad = _basis(shape, rank, generator).float(), torch.randn(shape, generator=generator)
    free = Fira(torch.zeros(shape), rank)
    tight = Fira(torch.zeros(shape), rank)
    norms = []
    for factor in (1.0, 100.0, 1e-3):
        outside = grad - grad @ basis.t() @ basis
        made = grad @ basis.t() @ basis + factor * outside
        tight(made, basis, mode=mode, limit=1.5)
        free.last_norm.fill_(-1.0)  # none yet
        free(made, basis, mode=mode)
        norms.append((tight.last_norm.item(), free.last_norm.item()))
    assert norms[0][0] == norms[0][1]
    assert norms[1][1] > 50 * norms[0][1]
    assert norms[1][0] == pytest.approx(1.5 * norms[0][0], rel=1e-6)
    assert norms[2][0] == norms[2][1] < norms[0][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_last_norm_in_either_dtype(dtype, device, generator):
    grad = torch.randn(8, 6, generator=generator).to(device)
    basis = _basis((8, 6), 2, generator).float().to(device)
    fira = Fira(torch.zeros(8, 6, device=device), 2, device)
    fira.last_norm = fira.last_norm.to(dtype)
    for _ in range(2):
        fira(grad, basis)
    assert fira.last_norm.dtype == dtype and fira.last_norm > 0


@pytest.mark.parametrize("shape", [(61, 300), (300, 61)], ids=str)
@pytest.mark.parametrize("mode", ["code", "paper"])
def test_panels(shape, mode, device, generator):
    """They change nothing but the rounding of the product; neither does a packed basis' way in."""
    start = torch.randn(shape, generator=generator).to(device)
    packed = ops.int4_quantize(_basis(shape, 8, generator).float().to(device))
    results = []
    for panel_bytes in (1, 9000, 1 << 24):
        fira = Fira(start.clone(), 8, device)
        for grad in _gradients(shape, torch.float32, torch.Generator().manual_seed(1), 3):
            fira(grad.to(device), packed, mode=mode, panel_bytes=panel_bytes)
        results.append(fira.weight)
    for other in results[1:]:
        assert (results[0] - other).abs().max() <= 1e-6


@pytest.mark.parametrize("shape", [(61, 300), (300, 61)], ids=str)
def test_an_int8_weight(shape, device, generator):
    start = ops.int8_quantize(torch.randn(shape, generator=generator).to(device) * 0.05)
    dense = ops.int8_dequantize(*start).cpu()
    basis, grad = _basis(shape, 8, generator), torch.randn(shape, generator=generator)
    ours = Fira(ops.Int8Groups(*(t.clone() for t in start)), 8, device, tensor_id=3, seed=9)
    spec = Spec(dense, 8)
    ours(grad.to(device), basis.float().to(device))
    spec(grad, basis)
    error = (ops.int8_dequantize(*ours.weight).cpu() - spec.weight).abs()
    one = ours.weight.scale.cpu().repeat_interleave(256, 1)[:, : shape[1]]
    assert (error <= 1.01 * one).all() and not torch.equal(ours.weight.codes, start.codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_short_weight(dtype, device, generator):
    shape = (40, 24)
    start = torch.randn(shape, generator=generator).to(dtype)
    basis, grad = _basis(shape, 6, generator), torch.randn(shape, generator=generator).to(dtype)
    ours = Fira(start.clone().to(device), 6, device, rounding="nearest")
    spec = Spec(start, 6)
    ours(grad.to(device), basis.float().to(device))
    spec(grad, basis)
    last_place = torch.finfo(dtype).eps * spec.weight.abs()
    assert ((ours.weight.cpu() - spec.weight).abs() <= 0.51 * last_place + 1e-4).all()


@pytest.mark.parametrize("shape", [(96, 64), (64, 96)], ids=str)
def test_bfloat16_operands(shape, monkeypatch, generator):
    """Those of a GPU: both products round their operands, and nothing else does."""
    for name in ("split_low_rank", "fira"):
        monkeypatch.setattr(
            sys.modules[f"frugalore.ops.{name}"], "operand_dtype", lambda grad: torch.bfloat16
        )
    start = torch.randn(shape, generator=generator) * 0.02
    ours, spec = Fira(start.clone(), 9), Spec(start, 9)
    basis = _basis(shape, 9, generator)
    for grad in _gradients(shape, torch.bfloat16, generator):
        ours(grad, basis.float())
        spec(grad, basis)
    assert (ours.weight - spec.weight).norm() <= 1e-2 * (spec.weight - start).norm()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("packed", [False, True])
def test_a_skipped_step_writes_nothing(bad, packed, device, generator):
    grad = torch.randn(64, 64, generator=generator).to(device)
    basis = _basis((64, 64), 4, generator).float().to(device)
    weight = ops.int8_quantize(grad) if packed else grad.clone()
    fira = Fira(weight, 4, device)
    for applied in (0, 1):  # The first step may be the skipped one.
        parts = list(weight) if packed else [weight]
        before = [t.clone() for t in (*parts, *fira.moments, fira.powers, fira.last_norm)]
        poisoned = grad.clone()
        poisoned[5, 2] = bad
        fira(poisoned, basis)
        after = (*parts, *fira.moments, fira.powers, fira.last_norm)
        assert all(
            torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(before, after, strict=True)
        )
        assert fira.progress.tolist() == [applied, applied + 1, 0]
        fira(grad, basis)
    assert fira.progress.tolist() == [2, 2, 1]
    clean = Fira(ops.int8_quantize(grad) if packed else grad.clone(), 4, device)
    for _ in range(2):
        clean(grad, basis)
    assert torch.equal(clean.last_norm, fira.last_norm)


def test_a_gradient_inside_of_the_subspace(device, generator):
    """The residual is rounding, its squared norm may be a negative one: no NaN comes of it."""
    basis = _basis((32, 16), 16, generator).float().to(device)
    fira = Fira(torch.zeros(32, 16, device=device), 16, device)
    for _ in range(3):
        grad = torch.randn(32, 16, generator=generator).to(device)
        fira(grad, basis)
        assert fira.last_norm >= 0 and fira.last_norm < 0.1
    assert fira.weight.isfinite().all() and (fira.weight != 0).all()


def test_a_zero_gradient(device, generator):
    basis = _basis((32, 16), 4, generator).float().to(device)
    fira = Fira(torch.ones(32, 16, device=device), 4, device)
    for _ in range(2):
        fira(torch.zeros(32, 16, device=device), basis)
    assert torch.equal(fira.weight, torch.ones_like(fira.weight)) and fira.last_norm == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1000, 700), (3, 5000), (5000, 3), (0, 4), (4, 0)], ids=str)
def test_squared_norms(dtype, shape, device, generator):
    x = torch.randn(shape, generator=generator).to(dtype).to(device)
    for axis, dim in (("columns", 0), ("rows", 1)):
        exact = x.double().square().sum(dim)
        assert torch.allclose(squared_norms(x, axis), exact, rtol=1e-6)


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"mode": "book"}, ValueError, "mode: 'code' or 'paper' expected, got 'book'"),
            ({"limit": 0.5}, ValueError, "limit: a finite number >= 1 expected, got 0.5"),
            ({"limit": math.nan}, ValueError, "limit: a finite number >= 1 expected, got nan"),
            ({"scale": math.inf}, ValueError, "scale: a finite number expected, got inf"),
            ({"beta_powers": None}, ValueError, "beta_powers: the record .* mode 'code', got None"),
            ({"beta_powers": torch.ones(2)}, TypeError, "beta_powers: dtype float64 .* got torch.float32"),
            ({"beta_powers": torch.ones(3).double()}, ValueError, r"beta_powers: shape \(2,\) .* got \(3,\)"),
            ({"last_norm": torch.zeros(1)}, ValueError, r"last_norm: .* without dimensions .* got \(1,\)"),
            ({"last_norm": torch.zeros(()).half()}, TypeError, "last_norm: dtype .* got torch.float16"),
            ({"last_norm": torch.zeros((), device="meta")}, ValueError, "last_norm: device cpu expected"),
            ({"r": torch.ones(16, 3)}, ValueError, r"r: the shape of direction \(16, 2\) .* got \(16, 3\)"),
            ({"grad": torch.ones(8, 16)}, ValueError, r"grad: the shape of weight \(16, 8\) .* \(8, 16\)"),
            ({"grad": torch.ones(8, 16).t()}, ValueError, "grad: a contiguous tensor expected"),
            ({"side": "up"}, ValueError, "side: 'right' or 'left' expected, got 'up'"),
        ],
        ids=str,
    )
    def test_nothing_is_written(self, change, error, message):
        lr, progress = torch.ones(1, dtype=torch.float64), torch.tensor([1, 0, 1])
        arguments = {
            "weight": torch.ones(16, 8),
            "direction": torch.ones(16, 2),
            "r": torch.ones(16, 2),
            "basis": torch.ones(2, 8),
            "grad": torch.ones(16, 8),
            "step": ops.Step(lr, progress),
            "last_norm": torch.zeros(()),
            "beta_powers": torch.full((2,), 0.5, dtype=torch.float64),
        } | change
        with pytest.raises(error, match=message):
            ops.fira_back_update_(**arguments)
        assert torch.equal(arguments["weight"], torch.ones(16, 8))


def test_opcheck(generator):
    grad = torch.randn(12, 8, generator=generator)
    packed = ops.int4_quantize(_basis((12, 8), 3, generator).float())
    r = ops.split_project(grad, packed)
    lr, progress = torch.ones(1, dtype=torch.float64), torch.tensor([1, 0, 1])
    for powers in (None, torch.full((2,), 0.5, dtype=torch.float64)):
        state = (torch.ones(()), powers, "right", 0.25, 1.01)
        arguments = ([torch.randn(12, 8)], torch.randn(12, 3), r, *packed, grad, *state)
        torch.library.opcheck(
            torch.ops.frugalore.fira_back_update_.default,
            (*arguments, *ops.Step(lr, progress), 256, 256, 1 << 20),
        )
