"""int8_quantize, int8_dequantize."""

from __future__ import annotations

import pytest
import torch

from frugalore import ops
from frugalore.reference import int8 as reference

SHAPES = [(1, 1), (3, 255), (4, 256), (2, 257), (5, 700), (7,), (2, 3, 130), (0, 8), (2, 0), (33, 4096)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _matrix(shape, dtype, generator, device="cpu"):
    return (torch.randn(shape, generator=generator) * 0.02).to(dtype).to(device)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size", [1, 3, 64, 256])
def test_quantize_equals_reference_to_the_bit(shape, dtype, group_size, device, generator):
    x = _matrix(shape, dtype, generator, device)
    if 0 in shape:
        result = ops.int8_quantize(x, group_size)
        assert result.codes.shape == x.shape
        assert ops.int8_dequantize(*result, group_size).shape == x.shape
        return
    result, expected = ops.int8_quantize(x, group_size), reference.int8_quantize(x.cpu(), group_size)
    for ours, spec in zip(result, expected, strict=True):
        assert torch.equal(ours.cpu(), spec)
    for out in DTYPES:
        ours = ops.int8_dequantize(*result, group_size, out)
        assert torch.equal(ours.cpu(), reference.int8_dequantize(*expected, group_size, out))


def test_quantize_is_the_same_on_every_instruction_set(isa, generator):
    x = _matrix((37, 1001), torch.float32, generator)
    result, expected = ops.int8_quantize(x), reference.int8_quantize(x)
    for ours, spec in zip(result, expected, strict=True):
        assert torch.equal(ours, spec)
    for dtype in DTYPES:
        assert torch.equal(
            ops.int8_dequantize(*result, dtype=dtype), reference.int8_dequantize(*expected, dtype=dtype)
        )


def test_quantize_does_not_depend_on_the_thread_count(generator):
    x = _matrix((301, 1000), torch.float32, generator)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.int8_quantize(x)
        torch.set_num_threads(5)
        five = ops.int8_quantize(x)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, five, strict=True))


def test_error_is_at_most_half_a_code(device, generator):
    x = _matrix((8, 700), torch.float32, generator, device)
    groups = ops.int8_quantize(x)
    half = groups.scale.repeat_interleave(256, dim=-1)[:, :700] / 2
    assert ((ops.int8_dequantize(*groups) - x).abs() <= half * 1.0001).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_groups_of_one_sign_do_not_saturate(sign, device):
    x = sign * torch.linspace(0.5, 0.6, 256, device=device)
    back = ops.int8_dequantize(*ops.int8_quantize(x))
    assert (back - x).abs().max() <= 0.6 / 255 / 2 * 1.001


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_group_is_not_hidden(bad, device, generator):
    x = _matrix((2, 512), torch.float32, generator)
    x[1, 300] = bad
    result = ops.int8_quantize(x.to(device))
    assert result.scale.isnan().cpu().tolist() == [[False, False], [False, True]]
    back = ops.int8_dequantize(*result)
    assert back[1, 256:].isnan().all()
    assert back[1, :256].isfinite().all() and back[0].isfinite().all()


class TestQuantizeBadInput:
    def test_dtype(self):
        with pytest.raises(TypeError, match="x: dtype float32 or bfloat16 or float16 expected, got float64"):
            ops.int8_quantize(torch.zeros(4, dtype=torch.float64))

    def test_group_size(self):
        with pytest.raises(ValueError, match="group_size: a positive integer expected, got 0"):
            ops.int8_quantize(torch.zeros(4), 0)

    def test_stride(self):
        with pytest.raises(ValueError, match="x: a contiguous tensor expected, got strides"):
            ops.int8_quantize(torch.zeros(4, 6).t())

    def test_shape(self):
        codes, scale, zero = ops.int8_quantize(torch.zeros(2, 512))
        with pytest.raises(ValueError, match=r"scale: shape \(2, 2\).* expected, got \(2, 1\)"):
            ops.int8_dequantize(codes, scale[:, :1].contiguous(), zero)

    def test_scalar(self):
        with pytest.raises(ValueError, match="x: at least one dimension"):
            ops.int8_quantize(torch.tensor(1.0))

    def test_output_dtype(self):
        with pytest.raises(TypeError, match="got float64"):
            ops.int8_dequantize(*ops.int8_quantize(torch.zeros(2, 512)), 256, torch.float64)


def test_quantize_opcheck(generator):
    x = _matrix((3, 130), torch.float32, generator)
    namespace = torch.ops.frugalore
    torch.library.opcheck(namespace.int8_quantize.default, (x, 64))
    groups = ops.int8_quantize(x, 64)
    torch.library.opcheck(namespace.int8_dequantize.default, (*groups, 64, torch.float32))
