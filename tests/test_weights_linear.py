"""nn.Linear with an INT8 weight: forward, backward, what is kept between them, and what surrounds a step."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from frugalore import Int8Weight, dequantize_, ops, quantize_

DTYPES = [torch.float32, torch.bfloat16]


def _pair(device="cpu", dtype=torch.float32, bias=True) -> tuple[nn.Module, nn.Module]:
    """A model in INT8, and the float model that it stands for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 40, bias=bias), nn.GELU(), nn.Linear(40, 7, bias=bias))
    quantized = quantize_(model.to(device=device, dtype=dtype))
    return quantized, dequantize_(copy.deepcopy(quantized))


def _input(shape, device="cpu", dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device=device, dtype=dtype)


def _grads(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters()]


def _assert_equal(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """To the bit on a CPU; on a GPU the library may choose another GEMM for the same product."""
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        assert type(a) is torch.Tensor and a.dtype == b.dtype
        if a.is_cuda:
            torch.testing.assert_close(a, b)
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(300,), (1, 300), (5, 300), (2, 3, 300), (0, 300)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_float_model(dtype, shape, bias, device):
    ours, floats = _pair(device, dtype, bias)
    x, y = (_input(shape, device, dtype).requires_grad_() for _ in range(2))
    out, expected = ours(x), floats(y)
    _assert_equal([out.detach()], [expected.detach()])
    gradient = torch.randn_like(out)
    out.backward(gradient)
    expected.backward(gradient)
    _assert_equal([x.grad, *_grads(ours)], [y.grad, *_grads(floats)])


def test_strided_input_and_gradient():
    ours, floats = _pair()
    x, y = (_input((300, 6, 2)).permute(2, 1, 0).requires_grad_() for _ in range(2))
    ours(x).transpose(0, 1).square().sum().backward()
    floats(y).transpose(0, 1).square().sum().backward()
    # torch may add in another order for other strides, so not to the bit.
    torch.testing.assert_close([x.grad, *_grads(ours)], [y.grad, *_grads(floats)])


def test_keywords_of_linear():
    weight = Int8Weight.quantize(_input((4, 300)))
    x = _input((2, 300))
    expected = F.linear(x, weight.dequantize())
    assert torch.equal(F.linear(input=x, weight=weight), expected)
    assert torch.equal(F.linear(x, weight=weight, bias=torch.zeros(4)), expected)
    assert torch.equal(F.linear(weight, x), F.linear(weight.dequantize(), x))


def test_gradients_accumulate():
    ours, floats = _pair()
    for model in (ours, floats):
        for seed in (2.0, 3.0):
            model(_input((5, 300)) * seed).sum().backward()
    _assert_equal(_grads(ours), _grads(floats))


def test_frozen_weight_has_no_gradient():
    ours, _ = _pair()
    ours[0].weight.requires_grad_(False)
    x = _input((5, 300)).requires_grad_()
    ours(x).sum().backward()
    assert ours[0].weight.grad is None and ours[2].weight.grad is not None and x.grad is not None


class TestSaved:
    """What a layer keeps between forward and backward."""

    def _saved(self, model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            model(x)
        return saved

    def test_the_codes_and_never_the_float_weight(self):
        layer = quantize_(nn.Linear(300, 40))
        x = _input((5, 300)).requires_grad_()
        saved = self._saved(layer, x)
        assert not [t for t in saved if t.is_floating_point() and t.shape in ((40, 300), (300, 40))]
        pointers = {t.data_ptr() for t in saved}
        assert pointers == {
            t.data_ptr() for t in (x, layer.weight.codes, layer.weight.scale, layer.weight.zero)
        }

    def test_only_what_the_wanted_gradients_need(self):
        layer = quantize_(nn.Linear(300, 40))
        x = _input((5, 300))
        assert [t.data_ptr() for t in self._saved(layer, x)] == [x.data_ptr()]
        layer.weight.requires_grad_(False)
        assert x.data_ptr() not in [t.data_ptr() for t in self._saved(layer, x.clone().requires_grad_())]

    def test_autocast_keeps_no_second_copy_of_the_codes(self):
        layer = quantize_(nn.Linear(300, 40))
        with torch.autocast("cpu", torch.bfloat16):
            saved = self._saved(layer, _input((5, 300)).requires_grad_())
        assert [t.data_ptr() for t in saved if t.dtype == torch.uint8 and t.shape == (40, 300)] == [
            layer.weight.codes.data_ptr()
        ]


class TestStaleWeight:
    def _forward(self):
        layer = quantize_(nn.Linear(300, 40))
        return layer, layer(_input((5, 300)).requires_grad_()).sum()

    def test_copy_between_forward_and_backward_raises(self):
        layer, loss = self._forward()
        with torch.no_grad():
            layer.weight.copy_(torch.zeros(40, 300))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_a_fused_update_between_forward_and_backward_raises(self):
        layer, loss = self._forward()
        torch.autograd.graph.increment_version((layer.weight.codes,))  # What every op that writes codes does.
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_a_second_derivative_is_refused(self):
        layer = quantize_(nn.Linear(300, 4))
        x = _input((5, 300)).requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


class TestSurroundings:
    def test_hooks(self):
        ours, _ = _pair()
        seen = []
        weight = ours[0].weight
        weight.register_hook(lambda gradient: seen.append(type(gradient)) or gradient * 2)
        weight.register_post_accumulate_grad_hook(lambda p: seen.append((p is weight, type(p.grad))))
        ours(_input((5, 300))).sum().backward()
        assert seen == [torch.Tensor, (True, torch.Tensor)]

    def test_gradient_may_be_freed_in_the_hook(self):
        ours, _ = _pair()
        for parameter in ours.parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        ours(_input((5, 300))).sum().backward()
        assert _grads(ours) == [None] * 4

    def test_clip_grad_norm(self):
        ours, floats = _pair()
        for model in (ours, floats):
            model(_input((5, 300))).sum().backward()
        norms = [nn.utils.clip_grad_norm_(model.parameters(), 0.1) for model in (ours, floats)]
        assert torch.equal(*norms)
        _assert_equal(_grads(ours), _grads(floats))

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_activation_checkpointing(self, reentrant):
        ours, floats = _pair()
        x, y = (_input((5, 300)).requires_grad_() for _ in range(2))
        checkpoint(ours, x, use_reentrant=reentrant).sum().backward()
        floats(y).sum().backward()
        _assert_equal([x.grad, *_grads(ours)], [y.grad, *_grads(floats)])

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_autocast(self, dtype, device):
        ours, floats = _pair(device, dtype)
        results = []
        for model in (ours, floats):
            with torch.autocast(device.type, torch.bfloat16):
                results.append(model(_input((5, 300), device)))
            results[-1].float().square().sum().backward()
        assert results[0].dtype == torch.bfloat16
        _assert_equal([results[0]], [results[1]])
        _assert_equal(_grads(ours), _grads(floats))

    def test_no_grad_and_inference_mode(self):
        ours, floats = _pair()
        x = _input((5, 300))
        with torch.no_grad():
            assert torch.equal(ours(x), floats(x))
        with torch.inference_mode():
            assert torch.equal(ours(x), floats(x))

    def test_meta(self):
        ours, _ = _pair()
        assert ours.to("meta")(_input((5, 300), "meta")).shape == (5, 7)

    def test_a_dtype_that_does_not_fit_is_torchs_own_error(self):
        ours, _ = _pair()
        with pytest.raises(RuntimeError, match="dtype"):
            ours(_input((5, 300), dtype=torch.bfloat16))

    def test_multi_head_attention(self):
        torch.manual_seed(0)
        ours = quantize_(nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True))
        floats = dequantize_(copy.deepcopy(ours))
        x = _input((2, 5, 32))
        for model in (ours, floats):
            model(x).square().sum().backward()
        _assert_equal(_grads(ours), _grads(floats))
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(x), floats.eval()(x))

    def test_distributed_data_parallel(self, tmp_path):
        """Its first broadcast sends floats, which quantises the weights once more, alike on every rank."""
        ours, _ = _pair()
        torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
        try:
            parallel = nn.parallel.DistributedDataParallel(ours)
            floats = dequantize_(copy.deepcopy(ours))
            parallel(_input((5, 300))).sum().backward()
            assert "module.0.weight.codes" in parallel.state_dict()
            # Its reducer would be the last to hold the process group, whose threads it then joins while it
            # keeps them from the interpreter: now and then they wait for each other.
            del parallel
            gc.collect()
        finally:
            torch.distributed.destroy_process_group()
        floats(_input((5, 300))).sum().backward()
        _assert_equal(_grads(ours), _grads(floats))

    def test_weight_averaging(self):
        ours, _ = _pair()
        first = ours[0].weight.dequantize().detach()
        average = torch.optim.swa_utils.AveragedModel(ours)
        for value in (first, first + 0.02):
            with torch.no_grad():
                ours[0].weight.copy_(value)
            average.update_parameters(ours)
        error = (average.module[0].weight.dequantize() - first - 0.01).abs().max()
        assert error < 2 * ours[0].weight.scale.max()

    def test_training_through_copy(self):
        """A plain training loop: dequantise, step, write back with copy_."""
        ours, _ = _pair()
        x, target = _input((32, 300)), _input((32, 7))
        losses = []
        for _ in range(30):
            loss = (ours(x) - target).square().mean()
            loss.backward()
            losses.append(loss.item())
            with torch.no_grad():
                for parameter in ours.parameters():
                    parameter.copy_(parameter - 0.1 * parameter.grad)
                    parameter.grad = None
        assert losses[-1] < 0.7 * losses[0]


class TestCompile:
    def test_forward_and_backward_in_one_graph(self):
        ours, floats = _pair()
        x, y = (_input((5, 300)).requires_grad_() for _ in range(2))
        torch.compile(ours, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
        floats(y).square().sum().backward()
        _assert_equal([x.grad, *_grads(ours)], [y.grad, *_grads(floats)])

    def test_other_operations(self):
        weight = nn.Parameter(Int8Weight.quantize(_input((40, 300))))
        x = _input((5, 300))
        compiled = torch.compile(lambda x: (x @ weight.t()) * 2, backend="aot_eager", fullgraph=True)
        result = compiled(x)
        assert torch.equal(result, (x @ weight.dequantize().t()) * 2)
        result.sum().backward()
        assert type(weight.grad) is torch.Tensor

    def test_a_compiled_model_sees_new_codes(self):
        layer = quantize_(nn.Linear(300, 4))
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        x = _input((2, 300))
        compiled(x)
        with torch.no_grad():
            layer.weight.copy_(_input((4, 300)))
        groups = ops.int8_quantize(_input((4, 300)))
        assert torch.equal(compiled(x), F.linear(x, ops.int8_dequantize(*groups), layer.bias))
