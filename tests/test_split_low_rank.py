"""split_project and split_back_update_."""

from __future__ import annotations

import math
import sys

import pytest
import torch

import frugalore.ops.scaled
from frugalore import ops
from frugalore.ops.split_low_rank import high_and_low, operand_dtype

SHAPES = [(96, 64), (64, 96), (64, 64), (301, 130), (130, 301), (1, 5), (7, 1)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def bfloat16_operands(monkeypatch):
    """The operands of a GPU, on any device."""

    def dtype_of(grad):
        return torch.bfloat16 if grad.dtype == torch.bfloat16 else torch.float32

    monkeypatch.setattr(sys.modules["frugalore.ops.split_low_rank"], "operand_dtype", dtype_of)


def _side(shape):
    return "right" if shape[0] >= shape[1] else "left"


def _low_rank(shape, rank):
    return (shape[0], rank) if _side(shape) == "right" else (rank, shape[1])


def _basis(shape, rank, generator, device="cpu"):
    length = min(shape)
    return torch.linalg.qr(torch.randn(length, length, generator=generator)).Q[:rank].contiguous().to(device)


def _step(device, **options):
    lr = torch.tensor([options.pop("lr", 0.1)], dtype=torch.float64, device=device)
    return ops.Step(lr, torch.tensor([1, 0, 1], device=device), **options)


def _project(grad, basis):
    grad, basis = grad.double(), basis.double()
    return grad @ basis.t() if _side(grad.shape) == "right" else basis @ grad


def _back(r, basis, shape):
    r, basis = r.double(), basis.double()
    return r @ basis if _side(shape) == "right" else basis.t() @ r


def _moved(weight, direction, basis, grad, step, outside="sign", inside_scale=1.0, outside_scale=1.0):
    """What the weight becomes, in float64."""
    residual = grad.double() - _back(_project(grad, basis), basis, grad.shape)
    f = residual.sign() if outside == "sign" else residual
    update = inside_scale * _back(direction, basis, grad.shape) + outside_scale * f
    lr = step.lr.item()
    return (1 - lr * step.weight_decay) * weight.double() + lr * step.alpha * update


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("panel_bytes", [1, 5000, 1 << 24])
def test_split_project(shape, dtype, packed, panel_bytes, device, monkeypatch, generator):
    monkeypatch.setattr(frugalore.ops.scaled, "PANEL_BYTES", panel_bytes)
    rank = min(5, *shape)
    grad = torch.randn(shape, generator=generator).to(dtype).to(device)
    dense = _basis(shape, rank, generator, device)
    basis = ops.int4_quantize(dense, 32) if packed else dense
    dense = ops.int4_dequantize(*basis, min(shape), 32) if packed else dense
    r = ops.split_project(grad, basis, group_size=32)
    exact = _project(grad, dense.to(operand_dtype(grad)))
    assert r.dtype == torch.float32 and r.is_contiguous()
    assert (r - exact).norm() <= 1e-6 * exact.norm() + 1e-12


def test_split_project_of_nothing(device):
    basis = torch.ones(2, 0, device=device)
    for shape, side in (((3, 0), "right"), ((0, 3), "left")):
        for dtype in DTYPES:
            r = ops.split_project(torch.ones(shape, dtype=dtype, device=device), basis, side=side)
            assert torch.equal(r, torch.zeros_like(r)) and r.numel() == 6


def test_high_and_low(generator):
    r = torch.randn(3000, generator=generator) * 10.0 ** torch.randint(-6, 6, (3000,), generator=generator)
    high, low = high_and_low(r)
    assert high.dtype == low.dtype == torch.bfloat16
    error = (high.double() + low.double() - r.double()).abs() / r.double().abs()
    assert error.max() <= 2.0**-17


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("panel_bytes", [1, 8192, 1 << 24])
def test_back_update_of_a_float_weight(shape, dtype, panel_bytes, device, generator):
    rank = max(1, min(5, min(shape) - 1))
    basis = _basis(shape, rank, generator, device)
    grad = torch.randn(shape, generator=generator).to(dtype).to(device)
    direction = torch.randn(_low_rank(shape, rank), generator=generator).to(device)
    start = torch.randn(shape, generator=generator).to(device)
    used = basis.to(operand_dtype(grad))
    r = ops.split_project(grad, basis)
    step = _step(device, weight_decay=0.5)
    for outside, scales in (("sign", (1.0, 1.0)), ("sgd", (0.25, 2.0)), ("sgd", (0.0, 1.0))):
        options = {"outside": outside, "inside_scale": scales[0], "outside_scale": scales[1]}
        weight = start.clone()
        ops.split_back_update_(weight, direction, r, basis, grad, step, panel_bytes=panel_bytes, **options)
        expected = _moved(start, direction.to(used.dtype), used, grad, step, **options)
        if outside == "sign":  # Where the subspace is everything, the residual is rounding.
            residual = grad.double() - _back(_project(grad, used), used, shape)
            clear = residual.abs() > 1e-5 * grad.abs().max()
            assert (weight - expected)[clear].abs().max() <= 1e-5 if clear.any() else min(shape) == 1
        else:
            assert (weight - expected).abs().max() <= 1e-5


def _gradient(decay, generator):
    """1024 x 1024 with singular values i^-decay, and its 256 leading right vectors."""
    u, v = (torch.linalg.qr(torch.randn(1024, 1024, generator=generator)).Q for _ in range(2))
    return u * torch.arange(1.0, 1025.0) ** -decay @ v.t(), v.t()[:256].contiguous()


def _sign_errors(grad, basis, device):
    """Where the outside moved a weight against the sign of the residual in float64."""
    grad, basis = grad.to(device), basis.to(device)
    weight = torch.zeros_like(grad, dtype=torch.float32)
    r = ops.split_project(grad, basis)
    ops.split_back_update_(weight, torch.zeros_like(r), r, basis, grad, _step(device, lr=1.0))
    used = basis.to(sys.modules["frugalore.ops.split_low_rank"].operand_dtype(grad)).double()
    residual = grad.double() - grad.double() @ used.t() @ used
    return -weight != residual.sign(), residual.abs() / grad.abs().max()


@pytest.mark.parametrize("decay", [0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_signs_of_the_residual(decay, dtype, device, generator):
    grad, basis = _gradient(decay, generator)
    wrong, size = _sign_errors(grad.to(dtype), basis, device)
    two_terms = operand_dtype(grad.to(dtype).to(device)) == torch.bfloat16
    assert wrong.double().mean() <= (3e-5 if two_terms else 1e-5) and not (wrong & (size >= 1e-5)).any()


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_signs_of_the_residual_with_bfloat16_operands(decay, bfloat16_operands, generator):
    grad, basis = _gradient(decay, generator)
    wrong, size = _sign_errors(grad.bfloat16(), basis, "cpu")
    # 16 bits of R, whose largest entries are 20 times the residual if decay is 1.
    assert wrong.double().mean() <= 1e-5 * (1 if decay < 1 else 3) and not (wrong & (size >= 1e-5)).any()


@pytest.mark.parametrize("shape", [(96, 64), (64, 96)], ids=str)
def test_back_update_with_bfloat16_operands(shape, bfloat16_operands, generator):
    basis = _basis(shape, 9, generator)
    grad = torch.randn(shape, generator=generator).bfloat16()
    r = ops.split_project(grad, basis)
    assert (r - _project(grad, basis.bfloat16())).norm() <= 1e-6 * r.norm()
    direction = torch.randn(r.shape, generator=generator).bfloat16()
    start = torch.randn(shape, generator=generator)
    step, weight = _step("cpu"), start.clone()
    ops.split_back_update_(weight, direction, r, basis, grad, step, outside="sgd", panel_bytes=4096)
    expected = _moved(start, direction, basis.bfloat16(), grad, step, "sgd")
    assert (weight - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("shape", [(61, 300), (300, 61)], ids=str)
def test_an_int8_weight(shape, device, generator):
    start = ops.int8_quantize(torch.randn(shape, generator=generator).to(device) * 0.05)
    basis = _basis(shape, 8, generator, device)
    packed = ops.int4_quantize(basis)
    dense = ops.int4_dequantize(*packed, min(shape))
    grad = torch.randn(shape, generator=generator).to(device)
    r = ops.split_project(grad, packed)
    direction = torch.randn(r.shape, generator=generator).to(device)
    results = []
    for panel_bytes in (1, 9000, 1 << 24):
        weight = ops.Int8Groups(*(t.clone() for t in start))
        step = _step(device, lr=1e-2, tensor_id=3, seed=9)
        ops.split_back_update_(weight, direction, r, packed, grad, step, panel_bytes=panel_bytes)
        results.append(weight)
    expected = _moved(ops.int8_dequantize(*start), direction, dense, grad, step)
    error = (ops.int8_dequantize(*results[0]) - expected).abs()
    assert (error <= 1.01 * results[0].scale.repeat_interleave(256, 1)[:, : shape[1]]).all()
    for other in results[1:]:  # The product may sum in another order for another panel height.
        difference = (results[0].codes.int() - other.codes.int()).abs()
        assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_element_whose_gradient_is_not_finite_stays(bad, dtype, device, generator):
    grad = torch.randn(12, 8, generator=generator).to(device)
    basis = _basis((12, 8), 3, generator, device)
    r = ops.split_project(grad, basis)
    grad[5, 2] = bad
    weight = torch.randn(12, 8, generator=generator).to(dtype).to(device)
    before = weight.clone()
    ops.split_back_update_(weight, torch.ones_like(r), r, basis, grad, _step(device, lr=1.0))
    stays = weight == before
    assert stays[5, 2] and stays.sum() == 1


def test_a_skipped_step_writes_nothing(device, generator):
    grad = torch.randn(64, 64, generator=generator).to(device)
    basis = _basis((64, 64), 4, generator, device)
    r = ops.split_project(grad, basis)
    step = _step(device)._replace(progress=torch.tensor([1, 1, 0], device=device))
    weight = ops.int8_quantize(grad)
    before = [t.clone() for t in weight]
    ops.split_back_update_(weight, torch.ones_like(r), r, basis, grad, step)
    assert all(torch.equal(a, b) for a, b in zip(before, weight, strict=True))


def test_stochastic_rounding_continues_over_panels(device, generator):
    grad = torch.randn(40, 24, generator=generator).to(device)
    basis = _basis((40, 24), 4, generator, device)
    r = torch.zeros(40, 4, device=device)
    results = []
    for panel_bytes in (1, 1000, 1 << 20):
        results.append(torch.ones(40, 24, dtype=torch.bfloat16, device=device))
        step = _step(device, lr=1e-3, seed=4)
        ops.split_back_update_(results[-1], r, r, basis, grad, step, panel_bytes=panel_bytes)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert 0 < (results[0] != 1).float().mean() < 1


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"outside": "scaled"}, ValueError, "outside: 'sign' or 'sgd' expected, got 'scaled'"),
            ({"side": "up"}, ValueError, "side: 'right' or 'left' expected, got 'up'"),
            ({"direction": torch.ones(8, 2)}, ValueError, r"direction: shape \(16, 2\) expected"),
            ({"r": torch.ones(16, 3)}, ValueError, r"r: the shape of direction \(16, 2\) .* got \(16, 3\)"),
            ({"r": torch.ones(16, 2).bfloat16()}, TypeError, "r: dtype .* got torch.bfloat16"),
            ({"r": torch.ones(16, 2, device="meta")}, ValueError, "r: device cpu expected, got meta"),
            ({"grad": torch.ones(8, 16)}, ValueError, r"grad: the shape of weight \(16, 8\) .* \(8, 16\)"),
            ({"grad": torch.ones(8, 16).t()}, ValueError, "grad: a contiguous tensor expected"),
            ({"grad": torch.ones(16, 8).double()}, TypeError, "grad: dtype .* got torch.float64"),
            ({"grad": torch.ones(16, 8, device="meta")}, ValueError, "grad: device cpu expected, got meta"),
            ({"inside_scale": math.nan}, ValueError, "inside_scale: a finite number expected, got nan"),
            ({"outside_scale": math.inf}, ValueError, "outside_scale: a finite number expected, got inf"),
        ],
        ids=str,
    )
    def test_nothing_is_written(self, change, error, message):
        arguments = {
            "weight": torch.ones(16, 8),
            "direction": torch.ones(16, 2),
            "r": torch.ones(16, 2),
            "basis": torch.ones(2, 8),
            "grad": torch.ones(16, 8),
            "step": _step("cpu"),
        } | change
        with pytest.raises(error, match=message):
            ops.split_back_update_(**arguments)
        assert torch.equal(arguments["weight"], torch.ones(16, 8))

    def test_split_project(self):
        with pytest.raises(ValueError, match=r"basis: shape \('rank', 8\) expected for grad \(16, 8\)"):
            ops.split_project(torch.zeros(16, 8), torch.zeros(2, 16))
        with pytest.raises(TypeError, match=r"grad: dtype .* got torch.float64"):
            ops.split_project(torch.zeros(16, 8).double(), torch.zeros(2, 8))
        with pytest.raises(ValueError, match="side: 'right' or 'left' expected, got 'up'"):
            ops.split_project(torch.zeros(16, 8), torch.zeros(2, 8), side="up")
        with pytest.raises(ValueError, match="basis: device cpu expected, got meta"):
            ops.split_project(torch.zeros(16, 8), torch.zeros(2, 8, device="meta"))


def test_opcheck(generator):
    grad = torch.randn(12, 8, generator=generator)
    packed = ops.int4_quantize(_basis((12, 8), 3, generator))
    for dtype in DTYPES:
        arguments = (grad.to(dtype), *packed, "right", 256)
        torch.library.opcheck(torch.ops.frugalore.split_project.default, arguments)
    r = ops.split_project(grad, packed)
    arguments = ([torch.randn(12, 8)], torch.randn(12, 3), r, *packed, grad, "right", "sign", 1.0, 0.5)
    torch.library.opcheck(
        torch.ops.frugalore.split_back_update_.default, (*arguments, *_step("cpu"), 256, 256, 1 << 20)
    )
