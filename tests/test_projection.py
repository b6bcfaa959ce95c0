"""project, projected_adam_step_, project_back_update_."""

from __future__ import annotations

import sys

import pytest
import torch

from frugalore import ops
from frugalore.reference import qgalore as reference

SHAPES = [(96, 64), (64, 96), (64, 64), (301, 130), (1, 5), (7, 1)]


def _basis(shape, rank, generator, device="cpu"):
    length = min(shape)
    return torch.linalg.qr(torch.randn(length, length, generator=generator)).Q[:rank].contiguous().to(device)


def _step(device, **options):
    lr = torch.tensor([options.pop("lr", 0.1)], dtype=torch.float64, device=device)
    progress = torch.tensor([1, 0, 1], device=device)
    return ops.Step(lr, progress, **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_project(shape, dtype, packed, device, generator):
    rank = min(5, *shape)
    grad = torch.randn(shape, generator=generator).to(dtype).to(device)
    dense = _basis(shape, rank, generator, device)
    basis = ops.int4_quantize(dense, 32) if packed else dense
    if packed:
        dense = ops.int4_dequantize(*basis, min(shape), 32)
    r = ops.project(grad, basis, group_size=32)
    exact = grad.double() @ dense.double().t() if shape[0] >= shape[1] else dense.double() @ grad.double()
    assert r.dtype == (torch.float32 if dtype == torch.float16 else dtype)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert (r.double() - exact).norm() <= tolerance * exact.norm() + 1e-12


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_makes_r_non_finite(bad, device, generator):
    grad = torch.randn(64, 32, generator=generator)
    grad[10, 3] = bad
    basis = ops.int4_quantize(_basis((64, 32), 4, generator))
    r = ops.project(grad.to(device), ops.Int4Groups(*(t.to(device) for t in basis)))
    assert not r.isfinite().all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("panel_bytes", [1, 4096, 1 << 24])
def test_back_update_of_a_float_weight(shape, panel_bytes, device, generator):
    rank = min(5, *shape)
    side = "right" if shape[0] >= shape[1] else "left"
    basis = _basis(shape, rank, generator, device)
    weight = torch.randn(shape, generator=generator).to(device)
    low = (shape[0], rank) if side == "right" else (rank, shape[1])
    direction = torch.randn(low, generator=generator).to(device)
    back = direction @ basis if side == "right" else basis.t() @ direction
    expected = (weight - 0.1 * 0.25 * back) * (1 - 0.1 * 0.5)
    step = _step(device, alpha=-0.25, weight_decay=0.5, decay="after")
    ops.project_back_update_(weight, direction, basis, step, panel_bytes=panel_bytes)
    assert torch.allclose(weight, expected, atol=1e-5)


def test_panels_do_not_change_the_bytes_of_an_int8_weight(device, generator):
    shape = (61, 300)
    basis = ops.int4_quantize(_basis(shape, 8, generator, device))
    direction = torch.randn(8, 300, generator=generator).to(device)
    results = []
    for panel_bytes in (1, 5000, 1 << 24):
        weight = ops.int8_quantize(torch.linspace(-1, 1, 61 * 300, device=device).reshape(shape) * 0.05)
        step = _step(device, lr=1e-3, tensor_id=3, seed=9)
        ops.project_back_update_(weight, direction, basis, step, panel_bytes=panel_bytes)
        results.append(weight)
    # The GEMM may sum in another order for another panel height: codes at most one apart, and rarely.
    for other in results[1:]:
        difference = (results[0].codes.int() - other.codes.int()).abs()
        assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3


@pytest.fixture
def torch_mm(monkeypatch):
    """The reference's own matrix product, so that sums are made in its order."""
    monkeypatch.setattr(sys.modules["frugalore.ops.gemm"], "float32_gemm", lambda: "torch")


@pytest.mark.parametrize("shape", [(320, 256), (256, 512), (130, 70)], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_qgalore_step_equals_the_reference(shape, weight_decay, torch_mm, generator):
    rank = 16
    basis = ops.int4_quantize(_basis(shape, rank, generator))
    weight = ops.int8_quantize(torch.randn(shape, generator=generator) * 0.02)
    expected = tuple(t.clone() for t in weight)
    numel = rank * max(shape)
    low = (shape[0], rank) if shape[0] >= shape[1] else (rank, shape[1])

    def moments():
        return [
            torch.zeros(low, dtype=torch.uint8),
            torch.zeros(-(-numel // 256)),
            torch.zeros(low, dtype=torch.uint8),
            torch.zeros(-(-numel // 256)),
        ]

    spec = reference.QGaLoreState(basis, *moments())
    ours, progress, powers = moments(), torch.zeros(3, dtype=torch.int64), torch.ones(2, dtype=torch.float64)
    for _ in range(3):
        grad = torch.randn(shape, generator=generator)
        reference.qgalore_step_(
            *expected,
            grad,
            spec,
            lr=1e-2,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=weight_decay,
            alpha=0.25,
            seed=5,
            tensor_id=2,
        )
        direction = ops.projected_adam_step_(grad, basis, *ours, progress, powers)
        lr = torch.tensor([1e-2], dtype=torch.float64)
        step = ops.Step(lr, progress, -0.25, weight_decay, "after", seed=5, tensor_id=2)
        ops.project_back_update_(weight, direction, basis, step)
    assert torch.equal(ours[0], spec.exp_avg) and torch.equal(ours[2], spec.exp_avg_sq)
    assert progress.tolist() == [3, 0, 1]
    difference = (weight.codes.int() - expected[0].int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3
    assert torch.allclose(weight.scale, expected[1], rtol=1e-6)


def test_a_skipped_step_writes_nothing(device, generator):
    weight = ops.int8_quantize(torch.randn(64, 64, generator=generator).to(device))
    before = [t.clone() for t in weight]
    basis = _basis((64, 64), 4, generator, device)
    step = _step(device)._replace(progress=torch.tensor([1, 1, 0], device=device))
    ops.project_back_update_(weight, torch.ones(64, 4, device=device), basis, step)
    assert all(torch.equal(a, b) for a, b in zip(before, weight, strict=True))


class TestBadInput:
    def test_basis(self):
        with pytest.raises(ValueError, match=r"basis: shape \('rank', 8\) expected for grad \(16, 8\)"):
            ops.project(torch.zeros(16, 8), torch.zeros(2, 16))
        with pytest.raises(ValueError, match=r"basis: shape \('rank', 4\) .* in packed INT4"):
            ops.project(torch.zeros(16, 8), ops.int4_quantize(torch.zeros(2, 16)))
        with pytest.raises(TypeError, match="basis: a float matrix expected"):
            ops.project(torch.zeros(16, 8), torch.zeros(2, 8, dtype=torch.uint8))
        with pytest.raises(ValueError, match=r"basis: .* expected, got 2 parts"):
            ops.project(torch.zeros(16, 8), tuple(ops.int4_quantize(torch.zeros(2, 8)))[:2])

    @pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.complex64], ids=str)
    def test_dtypes(self, dtype):
        with pytest.raises(
            TypeError, match=f"grad: dtype float32, bfloat16 or float16 expected, got {dtype}"
        ):
            ops.project(torch.zeros(16, 8, dtype=dtype), torch.zeros(2, 8))
        with pytest.raises(TypeError, match="basis: a float matrix expected"):
            ops.project(torch.zeros(16, 8), torch.zeros(2, 8, dtype=dtype))

    def test_devices(self):
        with pytest.raises(ValueError, match="basis: device cpu expected, got meta"):
            ops.project(torch.zeros(16, 8), torch.zeros(2, 8, device="meta"))
        with pytest.raises(ValueError, match="direction: device cpu expected, got meta"):
            direction = torch.zeros(16, 2, device="meta")
            ops.project_back_update_(torch.zeros(16, 8), direction, torch.zeros(2, 8), _step("cpu"))

    def test_side_and_shape(self):
        with pytest.raises(ValueError, match="side"):
            ops.project(torch.zeros(16, 8), torch.zeros(2, 8), side="up")
        with pytest.raises(ValueError, match="grad: a matrix expected"):
            ops.project(torch.zeros(16), torch.zeros(2, 8))

    def test_nothing_is_written_for_a_wrong_direction(self):
        weight = torch.ones(16, 8)
        with pytest.raises(ValueError, match=r"direction: shape \(16, 2\) expected .* got \(8, 2\)"):
            ops.project_back_update_(weight, torch.ones(8, 2), torch.ones(2, 8), _step("cpu"))
        assert torch.equal(weight, torch.ones(16, 8))


def test_opcheck(generator):
    grad = torch.randn(12, 8, generator=generator)
    packed, scale, zero = ops.int4_quantize(_basis((12, 8), 3, generator))
    torch.library.opcheck(torch.ops.frugalore.project.default, (grad, packed, scale, zero, "right", 256))
    step = _step("cpu")
    args = ([torch.randn(12, 8)], torch.randn(12, 3), packed, scale, zero, "right")
    torch.library.opcheck(torch.ops.frugalore.project_back_update_.default, (*args, *step, 256, 256, 1 << 20))
    numel = 12 * 3
    moments = [torch.zeros(numel, dtype=torch.uint8), torch.zeros(1)] * 2
    record = [torch.zeros(3, dtype=torch.int64), torch.ones(2, dtype=torch.float64)]
    state = [*(t.clone() for t in moments), *record]
    adam = (0.9, 0.999, 1e-8, "corrected")
    torch.library.opcheck(
        torch.ops.frugalore.projected_adam_step_.default,
        (grad, packed, scale, zero, *state, "right", 256, *adam),
    )
