"""Int8Weight: what the tensor subclass does with each kind of operation."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from frugalore import Int8Weight, ops

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _matrix(generator, shape=(40, 300), device="cpu", dtype=torch.float32):
    return (torch.randn(shape, generator=generator) * 0.02).to(device=device, dtype=dtype)


def _weight(generator, device="cpu", dtype=torch.float32, group_size=256) -> Int8Weight:
    return Int8Weight.quantize(_matrix(generator, device=device), group_size, dtype)


def _parameter(generator, **options) -> nn.Parameter:
    return nn.Parameter(_weight(generator, **options))


def _same_codes(a: Int8Weight, b: Int8Weight) -> bool:
    return all(
        torch.equal(getattr(a, part).cpu(), getattr(b, part).cpu()) for part in ("codes", "scale", "zero")
    )


class TestLooks:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_those_of_a_float_parameter(self, dtype, device, generator):
        weight = _parameter(generator, device=device, dtype=dtype)
        assert isinstance(weight, nn.Parameter) and isinstance(weight, Int8Weight)
        assert weight.shape == (40, 300) and weight.dtype == dtype and weight.device.type == device.type
        assert weight.numel() == 12000 and weight.is_floating_point() and weight.is_contiguous()
        assert weight.requires_grad and weight.is_leaf and weight.grad is None
        assert weight.codes.shape == (40, 300) and weight.scale.shape == weight.zero.shape == (40, 2)

    def test_repr_names_the_format(self, generator):
        weight = _parameter(generator, dtype=torch.bfloat16, group_size=64)
        assert "Parameter of Int8Weight(shape=(40, 300), dtype=torch.bfloat16" in repr(weight)
        assert "group_size=64, requires_grad=True" in str(weight)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_quantize_and_dequantize_are_the_ops(self, dtype, device, generator):
        x = _matrix(generator, device=device, dtype=dtype)
        weight, groups = Int8Weight.quantize(x, 128), ops.int8_quantize(x, 128)
        assert weight.dtype == dtype and torch.equal(weight.codes, groups.codes)
        assert torch.equal(weight.dequantize(), ops.int8_dequantize(*groups, 128, dtype))
        assert torch.equal(weight.dequantize(torch.float32), ops.int8_dequantize(*groups, 128))

    def test_a_strided_matrix_is_quantised_by_its_rows(self, generator):
        x = _matrix(generator).t()
        assert _same_codes(Int8Weight.quantize(x), Int8Weight.quantize(x.contiguous()))


class TestReading:
    @pytest.mark.parametrize(
        "read",
        [
            lambda w: w + 1,
            lambda w: w.t(),
            lambda w: w[3:5, ::2],
            lambda w: w.view(-1),
            lambda w: torch.cat(w.split(7)),
            lambda w: w.norm(),
            lambda w: torch.stack([w, w]),
            lambda w: torch.zeros_like(w) + w,
            lambda w: w == w,
            lambda w: torch.nn.functional.embedding(torch.tensor([1, 3], device=w.device), w),
        ],
    )
    def test_any_other_operation_sees_the_floats(self, read, device, generator):
        weight = _parameter(generator, device=device)
        result = read(weight)
        assert type(result) is torch.Tensor
        assert torch.equal(result, read(weight.dequantize().detach()))

    def test_the_librarys_ops_see_the_floats(self, generator):
        weight = _weight(generator)
        for ours, spec in zip(ops.int4_quantize(weight), ops.int4_quantize(weight.dequantize()), strict=True):
            assert torch.equal(ours, spec)

    def test_gradients_come_back_through_any_operation(self, device, generator):
        weight = _parameter(generator, device=device)
        dense = weight.dequantize().detach().requires_grad_()
        x, bias = _matrix(generator, (5, 300), device), _matrix(generator, (40,), device)

        def loss(w):
            return (torch.addmm(bias, x, w.t()) + x @ w.t() + torch.matmul(x, w.mT)).square().sum() + w[
                2
            ].sum()

        loss(weight).backward()
        loss(dense).backward()
        assert type(weight.grad) is torch.Tensor and torch.equal(weight.grad, dense.grad)

    def test_gradients_come_back_through_dequantize(self, generator):
        weight = _parameter(generator, dtype=torch.bfloat16)
        weight.dequantize(torch.float32).sum().backward()
        assert weight.grad.dtype == torch.bfloat16 and (weight.grad == 1).all()

    @pytest.mark.parametrize("make", [torch.zeros_like, torch.ones_like, torch.empty_like, torch.rand_like])
    def test_like_gives_plain_floats(self, make, device, generator):
        weight = _weight(generator, device=device, dtype=torch.bfloat16)
        made = make(weight, memory_format=torch.preserve_format)
        assert type(made) is torch.Tensor and made.shape == weight.shape and made.is_contiguous()
        assert made.dtype == torch.bfloat16 and made.device == weight.device
        assert make(weight, dtype=torch.float32).dtype == torch.float32

    def test_new_gives_plain_floats(self, generator):
        weight = _weight(generator, dtype=torch.float16)
        for made in (
            weight.new_zeros(3),
            weight.new_full((3,), 2.0),
            weight.new_empty((3,)),
            weight.new_ones(3),
        ):
            assert type(made) is torch.Tensor and made.dtype == torch.float16 and made.shape == (3,)


class TestMoving:
    def test_dtype_changes_the_looks_only(self, generator):
        weight = _parameter(generator)
        for dtype in DTYPES:
            changed = weight.to(dtype)
            assert isinstance(changed, Int8Weight) and changed.dtype == dtype
            assert _same_codes(changed, weight)
        assert weight.half().dtype == torch.float16

    def test_module_conversions(self, device, generator):
        module = nn.Linear(300, 40)
        module.weight = _parameter(generator)
        before = module.weight.detach().clone()
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        for convert, dtype in ((module.half, torch.float16), (module.bfloat16, torch.bfloat16)):
            convert()
            assert module.weight.dtype == module.bias.dtype == dtype
        module.float().to(device)
        assert isinstance(module.weight, nn.Parameter) and isinstance(module.weight, Int8Weight)
        assert module.weight.codes.device.type == module.weight.device.type == device.type
        assert _same_codes(module.weight, before)
        assert optimizer.param_groups[0]["params"][0] is module.weight

    def test_gradient_follows_a_conversion(self, generator):
        weight = _parameter(generator)
        (weight.to(torch.bfloat16) * 2).sum().backward()
        assert weight.grad.dtype == torch.float32 and (weight.grad == 2).all()

    def test_to_meta(self, generator):
        assert _parameter(generator).to("meta").codes.is_meta

    def test_other_dtypes_are_refused(self, generator):
        with pytest.raises(TypeError, match=r"dequantize\(\) first.*got torch.float64"):
            _weight(generator).double()

    def test_detach_and_data_share_the_codes(self, generator):
        weight = _parameter(generator)
        for alias in (weight.detach(), weight.data):
            assert isinstance(alias, Int8Weight) and not alias.requires_grad
            assert alias.codes.data_ptr() == weight.codes.data_ptr()

    def test_clone_does_not(self, generator):
        weight = _parameter(generator)
        clone = weight.clone()
        assert clone.codes.data_ptr() != weight.codes.data_ptr() and _same_codes(clone, weight)

    def test_deepcopy_is_a_parameter_of_its_own(self, generator):
        weight = _parameter(generator, dtype=torch.bfloat16, group_size=64)
        twin = copy.deepcopy([weight, weight])
        assert twin[0] is twin[1] and isinstance(twin[0], nn.Parameter) and twin[0].requires_grad
        assert twin[0].codes.data_ptr() != weight.codes.data_ptr()
        assert _same_codes(twin[0], weight) and twin[0].dtype == torch.bfloat16 and twin[0].group_size == 64
        assert not copy.deepcopy(nn.Parameter(weight, requires_grad=False)).requires_grad

    def test_pickle(self, generator):
        file = io.BytesIO()
        torch.save(_parameter(generator, dtype=torch.float16, group_size=64), file)
        file.seek(0)
        weight = torch.load(file, weights_only=False)
        assert isinstance(weight, nn.Parameter) and isinstance(weight, Int8Weight) and weight.requires_grad
        assert weight.dtype == torch.float16 and weight.group_size == 64
        again = _weight(torch.Generator().manual_seed(0), group_size=64)
        assert _same_codes(weight, again)

    def test_shared_memory(self, generator):
        layer = nn.Linear(300, 40)
        layer.weight = _parameter(generator)
        assert not layer.weight.is_shared()
        layer.share_memory()
        assert layer.weight.is_shared() and layer.weight.codes.is_shared()


class TestWriting:
    def test_copy_from_floats_quantises(self, device, generator):
        weight, new = _parameter(generator, device=device), _matrix(generator, device=device)
        with torch.no_grad():
            assert weight.copy_(new) is weight
        assert _same_codes(weight, Int8Weight.quantize(new))

    def test_copy_broadcasts_and_converts(self, generator):
        weight, row = _weight(generator), torch.linspace(-1, 1, 300, dtype=torch.float64)
        weight.copy_(row)
        assert _same_codes(weight, Int8Weight.quantize(row.float().expand(40, 300)))

    def test_copy_from_int8_copies_the_codes(self, device, generator):
        target, source = _weight(generator, device=device), _weight(generator)
        target.copy_(source.bfloat16())
        assert _same_codes(target, source) and target.dtype == torch.float32

    def test_copy_between_group_sizes_requantises(self, generator):
        target, source = _weight(generator, group_size=64), _weight(generator)
        target.copy_(source)
        assert _same_codes(target, Int8Weight.quantize(source.dequantize(), 64))

    def test_copy_of_a_non_finite_element_is_not_hidden(self, generator):
        weight, new = _weight(generator), _matrix(generator)
        new[3, 290] = float("inf")
        weight.copy_(new)
        assert weight.dequantize()[3].isnan().tolist() == [False] * 256 + [True] * 44
        assert weight.dequantize().isnan().sum() == 44

    def test_copy_into_floats(self, generator):
        weight, dense = _weight(generator), torch.empty(40, 300)
        dense.copy_(weight)
        assert torch.equal(dense, weight.dequantize())

    def test_copy_counts_as_a_write_of_the_weight_and_its_parts(self, generator):
        weight = _weight(generator)
        watched = (weight, weight.codes, weight.scale, weight.zero)
        before = [tensor._version for tensor in watched]
        weight.copy_(_matrix(generator))
        assert all(tensor._version > version for tensor, version in zip(watched, before, strict=True))

    def test_a_leaf_that_trains_is_not_copied_into(self, generator):
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            _parameter(generator).copy_(_matrix(generator))

    def test_setting_data(self, device, generator):
        weight, new = _parameter(generator, device=device), _matrix(generator, device=device)
        weight.data = new
        assert _same_codes(weight, Int8Weight.quantize(new)) and weight.requires_grad
        other = Int8Weight.quantize(_matrix(generator, device=device), 64, torch.bfloat16)
        weight.data = other
        assert weight.codes is other.codes and weight.group_size == 64 and weight.dtype == torch.bfloat16
        with pytest.raises(ValueError, match=r"data: shape \(40, 300\) expected, got \(3,\)"):
            weight.data = torch.zeros(3)

    @pytest.mark.parametrize(
        "write",
        [
            lambda w: w.add_(1),
            lambda w: w.mul_(2),
            lambda w: w.zero_(),
            lambda w: w.normal_(),
            lambda w: torch._foreach_add_([w], 1.0),
            lambda w: torch.add(torch.ones(40, 300), 1, out=w),
            lambda w: w.__setitem__(0, 1.0),
            lambda w: w.data.__setitem__((slice(None), 2), 0.0),
        ],
    )
    def test_every_other_write_is_refused(self, write, generator):
        weight = _parameter(generator)
        before = weight.detach().clone()
        with torch.no_grad(), pytest.raises(TypeError, match=r"would write into an INT8 weight.*dequantize"):
            write(weight)
        assert _same_codes(weight, before)

    def test_an_optimizer_that_does_not_know_the_format_is_refused(self, generator):
        weight = _parameter(generator)
        optimizer = torch.optim.AdamW([weight])
        weight.grad = torch.ones(40, 300)
        with pytest.raises(TypeError, match="an optimizer of frugalore"):
            optimizer.step()


class TestBadInput:
    def _parts(self):
        return {
            "codes": torch.zeros(2, 300, dtype=torch.uint8),
            "scale": torch.ones(2, 2),
            "zero": torch.zeros(2, 2, dtype=torch.uint8),
        }

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (
                {"codes": torch.zeros(2, 300)},
                TypeError,
                "codes: dtype torch.uint8 expected, got torch.float32",
            ),
            ({"scale": torch.ones(2, 2).half()}, TypeError, "scale: dtype torch.float32 expected"),
            ({"zero": torch.zeros(2, 2)}, TypeError, "zero: dtype torch.uint8 expected"),
            ({"scale": torch.ones(2, 1)}, ValueError, r"scale: shape \(2, 2\) expected .* got \(2, 1\)"),
            ({"scale": [1.0]}, TypeError, "scale: a tensor expected, got list"),
            (
                {"codes": torch.zeros(300, dtype=torch.uint8)},
                ValueError,
                r"codes: two dimensions .* \(300,\)",
            ),
            ({"zero": torch.zeros(2, 2, dtype=torch.uint8).t()}, ValueError, "zero: a contiguous tensor"),
            ({"group_size": 0}, ValueError, "group_size: a positive integer expected, got 0"),
            ({"dtype": torch.float64}, TypeError, "dtype: float32, bfloat16 or float16 expected"),
            ({"zero": torch.zeros(2, 2, dtype=torch.uint8, device="meta")}, ValueError, "zero: device cpu"),
        ],
    )
    def test_parts(self, change, error, message):
        with pytest.raises(error, match=message):
            Int8Weight(**{**self._parts(), **change})

    def test_dequantize_dtype(self, generator):
        with pytest.raises(
            TypeError, match=r"dtype: float32, bfloat16 or float16 expected, got torch\.float64"
        ):
            _weight(generator).dequantize(torch.float64)

    def test_quantize_dtype(self):
        with pytest.raises(TypeError, match="got float64"):
            Int8Weight.quantize(torch.zeros(2, 2, dtype=torch.float64))
