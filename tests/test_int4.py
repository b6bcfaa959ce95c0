"""int4_quantize, int4_dequantize, int4_pack, int4_unpack."""

from __future__ import annotations

import pytest
import torch

from frugalore import ops
from frugalore.reference import int4 as reference

SHAPES = [(1, 1), (3, 255), (4, 256), (2, 257), (5, 700), (7,), (2, 3, 130), (0, 8), (2, 0), (33, 4096)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _matrix(shape, dtype, generator, device="cpu"):
    return (torch.randn(shape, generator=generator) * 0.02).to(dtype).to(device)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size", [2, 64, 256])
def test_quantize_equals_reference_to_the_bit(shape, dtype, group_size, device, generator):
    x = _matrix(shape, dtype, generator, device)
    if 0 in shape:
        result = ops.int4_quantize(x, group_size)
        assert result.packed.numel() == 0
        assert ops.int4_dequantize(*result, shape[-1], group_size).shape == x.shape
        return
    result, expected = ops.int4_quantize(x, group_size), reference.int4_quantize(x.cpu(), group_size)
    for ours, spec in zip(result, expected, strict=True):
        assert torch.equal(ours.cpu(), spec)
    for out in DTYPES:
        ours = ops.int4_dequantize(*result, shape[-1], group_size, out)
        assert torch.equal(ours.cpu(), reference.int4_dequantize(*expected, shape[-1], group_size, out))


def test_every_instruction_set_gives_the_same_bytes(isa, generator):
    x = _matrix((37, 1001), torch.float32, generator)
    for ours, spec in zip(ops.int4_quantize(x), reference.int4_quantize(x), strict=True):
        assert torch.equal(ours, spec)


def test_thread_count_does_not_matter(generator):
    x = _matrix((301, 1000), torch.float32, generator)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.int4_quantize(x)
        torch.set_num_threads(5)
        five = ops.int4_quantize(x)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, five, strict=True))


@pytest.mark.parametrize("columns", [1, 2, 15, 256, 1001])
def test_pack_unpack_round_trip(columns, device, generator):
    codes = torch.randint(0, 16, (3, columns), generator=generator, dtype=torch.uint8).to(device)
    packed = ops.int4_pack(codes)
    assert packed.shape == (3, (columns + 1) // 2)
    assert torch.equal(packed.cpu(), reference.int4_pack(codes.cpu()))
    assert torch.equal(ops.int4_unpack(packed, columns), codes)


def test_every_pair_of_codes():
    codes = torch.cartesian_prod(torch.arange(16), torch.arange(16)).to(torch.uint8)
    assert torch.equal(ops.int4_unpack(ops.int4_pack(codes), 2), codes)


def test_groups_of_one_sign_do_not_saturate(device):
    x = torch.linspace(0.5, 0.6, 256, device=device)
    back = ops.int4_dequantize(*ops.int4_quantize(x), 256)
    assert (back - x).abs().max() <= 0.6 / 15 / 2 * 1.001


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_group_is_not_hidden(bad, device, generator):
    x = _matrix((2, 512), torch.float32, generator)
    x[1, 300] = bad
    x = x.to(device)
    result = ops.int4_quantize(x)
    assert result.scale.isnan().cpu().tolist() == [[False, False], [False, True]]
    back = ops.int4_dequantize(*result, 512)
    assert back[1, 256:].isnan().all()
    assert back[1, :256].isfinite().all() and back[0].isfinite().all()


class TestBadInput:
    def test_dtype(self):
        with pytest.raises(TypeError, match="x: dtype float32 or bfloat16 or float16 expected, got float64"):
            ops.int4_quantize(torch.zeros(4, dtype=torch.float64))

    def test_group_size(self):
        with pytest.raises(ValueError, match="group_size: a positive integer expected, got 0"):
            ops.int4_quantize(torch.zeros(4), 0)
        with pytest.raises(ValueError, match="group_size: an even number expected"):
            ops.int4_quantize(torch.zeros(4), 3)

    def test_stride(self):
        with pytest.raises(ValueError, match="x: a contiguous tensor expected, got strides"):
            ops.int4_quantize(torch.zeros(4, 6).t())

    def test_shape(self):
        packed, scale, zero = ops.int4_quantize(torch.zeros(2, 512))
        with pytest.raises(ValueError, match=r"scale: shape \(2, 2\).* expected, got \(2, 1\)"):
            ops.int4_dequantize(packed, scale[:, :1].contiguous(), zero, 512)

    def test_scalar(self):
        with pytest.raises(ValueError, match="x: at least one dimension"):
            ops.int4_quantize(torch.tensor(1.0))

    def test_output_dtype(self):
        packed, scale, zero = ops.int4_quantize(torch.zeros(2, 512))
        with pytest.raises(TypeError, match="got float64"):
            ops.int4_dequantize(packed, scale, zero, 512, 256, torch.float64)


def test_opcheck(generator):
    x = _matrix((3, 130), torch.float32, generator)
    packed, scale, zero = ops.int4_quantize(x, 64)
    namespace = torch.ops.frugalore
    torch.library.opcheck(namespace.int4_quantize.default, (x, 64))
    torch.library.opcheck(namespace.int4_dequantize.default, (packed, scale, zero, 130, 64, torch.float32))
    torch.library.opcheck(namespace.int4_pack.default, (ops.int4_unpack(packed, 130),))
    torch.library.opcheck(namespace.int4_unpack.default, (packed, 130))
