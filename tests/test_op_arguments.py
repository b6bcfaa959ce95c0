"""What every op refuses or accepts: memory shared between arguments, numbers out of range, devices that
differ, gradients, and torch.compile. What an op refuses is left as it was."""

from __future__ import annotations

import math

import pytest
import torch

from frugalore import ops

LIMIT = 2**63


def _record():
    return torch.zeros(3, dtype=torch.int64), torch.ones(2, dtype=torch.float64)


def _moments(bits: int, count: int) -> dict:
    moments = {}
    for name in ("exp_avg", "exp_avg_sq"):
        moments[name] = torch.zeros(count, dtype=torch.uint8 if bits == 8 else torch.float32)
        if bits == 8:
            moments[name + "_absmax"] = torch.zeros(-(-count // 256))
    return moments


def _step_arguments(bits: int) -> dict:
    """Lists of one tensor for adamw_step_ or adamw8bit_step_."""
    progress, powers = _record()
    moments = {name + "s": [tensor] for name, tensor in _moments(bits, 300).items()}
    records = {"progress": [progress], "beta_powers": [powers]}
    return {"params": [torch.zeros(300)], "grads": [torch.ones(300)], **moments, **records}


def _direction_arguments(bits: int) -> dict:
    progress, powers = _record()
    return {"r": torch.ones(300), **_moments(bits, 300), "progress": progress, "beta_powers": powers}


def _momentum_arguments() -> dict:
    tensors = {"params": torch.zeros(300), "grads": torch.ones(300), "momenta": torch.zeros(300)}
    return {name: [tensor] for name, tensor in tensors.items()} | {"progress": [_record()[0]]}


def _momentum_direction_arguments() -> dict:
    return {"r": torch.ones(300), "buffer": torch.zeros(300), "progress": _record()[0]}


def _split_step(params, grads, exp_avgs, exp_avg_sqs, **others) -> None:
    """split_step_ with everything inside, called as adamw_step_ is."""
    everything = [ops.Selection("all")] * len(params)
    ops.split_step_(params, grads, everything, (exp_avgs, exp_avg_sqs), **others)


def _write_arguments(kind: str) -> dict:
    if kind == "float":
        return {"weight": torch.zeros(3, 256), "update": torch.ones(3, 256)}
    return {**ops.int8_quantize(torch.ones(3, 256))._asdict(), "update": torch.ones(3, 256)}


def _residual_arguments() -> dict:
    return {name: torch.ones(3, 256) for name in ("update", "grad")}


CALLS = {
    "adamw_step_": lambda: (ops.adamw_step_, {**_step_arguments(32), "lr": 0.1}),
    "adamw8bit_step_": lambda: (ops.adamw8bit_step_, {**_step_arguments(8), "lr": 0.1}),
    "adamw_direction_": lambda: (ops.adamw_direction_, _direction_arguments(32)),
    "adamw8bit_direction_": lambda: (ops.adamw8bit_direction_, _direction_arguments(8)),
    "sgdm_step_": lambda: (ops.sgdm_step_, {**_momentum_arguments(), "lr": 0.1}),
    "lion_step_": lambda: (ops.lion_step_, {**_momentum_arguments(), "lr": 0.1}),
    "sgdm_direction_": lambda: (ops.sgdm_direction_, _momentum_direction_arguments()),
    "lion_direction_": lambda: (ops.lion_direction_, _momentum_direction_arguments()),
    "split_step_": lambda: (_split_step, {**_step_arguments(32), "lr": 0.1}),
    "weight_update_": lambda: (ops.weight_update_, _write_arguments("float")),
    "int8_stochastic_update_": lambda: (ops.int8_stochastic_update_, _write_arguments("int8")),
    "residual_add_": lambda: (ops.residual_add_, _residual_arguments()),
}
WRITES = ["weight_update_", "int8_stochastic_update_"]
STEPS = ["adamw_step_", "adamw8bit_step_", "split_step_"]


def _tensors(arguments: dict):
    for value in arguments.values():
        for tensor in value if isinstance(value, list) else [value]:
            if isinstance(tensor, torch.Tensor):
                yield tensor


def _refuses(name: str, error, match: str, **change) -> None:
    """The call with `change` raises, and writes into none of its tensors."""
    op, arguments = CALLS[name]()
    arguments |= change
    before = [tensor.clone() for tensor in _tensors(arguments)]
    with pytest.raises(error, match=match):
        op(**arguments)
    for tensor, copy in zip(_tensors(arguments), before, strict=True):
        assert tensor.is_meta or torch.equal(tensor, copy)


class TestSharedMemory:
    @pytest.mark.parametrize("name", CALLS)
    def test_any_two_arguments(self, name):
        """Every pair of tensors is put into one buffer, the second one element after the first."""
        _, arguments = CALLS[name]()
        tensors = [key for key, value in arguments.items() if not isinstance(value, float)]
        for i, first in enumerate(tensors):
            for second in tensors[i + 1 :]:
                change = self._overlapping(arguments, first, second)
                _refuses(name, ValueError, "memory of its own expected, got some of the memory of", **change)

    @staticmethod
    def _overlapping(arguments, first, second):
        buffer, change, offset = torch.zeros(1 << 13, dtype=torch.uint8), {}, 0
        for name in (first, second):
            value = arguments[name]
            like = value[0] if isinstance(value, list) else value
            size = like.numel() * like.element_size()
            view = buffer[offset : offset + size].view(like.dtype).view(like.shape)
            change[name] = [view] if isinstance(value, list) else view
            offset = 8 if size > 8 else 0
        return change

    def test_two_tensors_of_one_list(self):
        buffer = torch.zeros(301)
        for name in STEPS:
            _, arguments = CALLS[name]()
            lists = {key: [v[0].clone(), v[0].clone()] for key, v in arguments.items() if isinstance(v, list)}
            lists["params"] = [buffer[:300], buffer[1:]]
            _refuses(name, ValueError, r"params\[1\]: memory .* of params\[0\]", **lists)

    def test_neighbours_in_one_buffer_are_apart(self):
        buffer = torch.zeros(600)
        _, arguments = CALLS["adamw_step_"]()
        ops.adamw_step_(**arguments | {"params": [buffer[300:]], "exp_avgs": [buffer[:300]]})
        assert (buffer != 0).all()

    def test_one_update_may_be_read_twice(self):
        _, arguments = CALLS["adamw_step_"]()
        lists = {key: [v[0], v[0].clone()] for key, v in arguments.items() if isinstance(v, list)}
        lists["grads"][1] = lists["grads"][0]
        ops.adamw_step_(**lists, lr=0.1)
        assert torch.equal(*lists["params"])


class TestNumbers:
    @pytest.mark.parametrize("name", WRITES)
    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            ({"alpha": math.nan}, ValueError, "alpha: a finite number expected, got nan"),
            ({"alpha": math.inf}, ValueError, "alpha: a finite number expected, got inf"),
            ({"weight_decay": math.nan}, ValueError, "weight_decay: a finite number >= 0 expected, got nan"),
            ({"weight_decay": -0.5}, ValueError, "weight_decay: a finite number >= 0 expected, got -0.5"),
            ({"lr": math.nan}, ValueError, "lr: a finite number expected, got nan"),
            ({"lr": -math.inf}, ValueError, "lr: a finite number expected, got -inf"),
            ({"progress": -1}, ValueError, "progress: .* expected, got -1"),
            ({"progress": LIMIT}, ValueError, f"progress: .* expected, got {LIMIT}"),
            ({"progress": 1.5}, TypeError, "float"),
            (
                {"first_index": LIMIT - 768},
                ValueError,
                "first_index: at most .* 768 .* got 9223372036854775040",
            ),
            ({"tensor_id": 2**32}, ValueError, "tensor_id: .* got 4294967296"),
            ({"seed": 2**64}, ValueError, "seed: .* got 18446744073709551616"),
            ({"seed": -LIMIT - 1}, ValueError, "seed: .* got -9223372036854775809"),
        ],
        ids=str,
    )
    def test_write(self, name, change, error, match):
        _refuses(name, error, match, **change)

    @pytest.mark.parametrize("name", STEPS)
    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"betas": (0.9,)}, r"betas: two numbers expected, got \(0.9,\)"),
            ({"betas": (0.9, -1e-20)}, r"beta2: a number in \[0, 1\) expected, got -1e-20"),
            ({"lr": math.nan}, "lr: a finite number expected, got nan"),
            ({"tensor_ids": [2**32]}, r"tensor_ids\[0\]: .* got 4294967296"),
            ({"seed": 2**64}, "seed: .* got 18446744073709551616"),
        ],
        ids=str,
    )
    def test_step(self, name, change, match):
        _refuses(name, ValueError, match, **change)

    def test_the_last_index(self):
        ops.weight_update_(torch.zeros(4), torch.ones(4), first_index=LIMIT - 5)
        ops.rademacher_(torch.zeros(4), seed=0, tensor_id=0, period=0, first_index=LIMIT - 5)
        with pytest.raises(ValueError, match="first_index: at most"):
            ops.rademacher_(torch.zeros(4), seed=0, tensor_id=0, period=0, first_index=LIMIT - 4)

    @pytest.mark.parametrize(("seed", "same"), [(2**64 - 1, -1), (LIMIT, -LIMIT)])
    def test_seeds_are_64_bits(self, seed, same):
        results = []
        for value in (seed, same):
            out = ops.rademacher_(torch.zeros(100), seed=value, tensor_id=0, period=0)
            weight = torch.zeros(100, dtype=torch.bfloat16)
            ops.weight_update_(weight, torch.full((100,), 1.001), seed=value)
            basis = ops.randomized_svd(torch.arange(30.0).view(5, 6), 2, seed=value).vh
            results.append((out, weight, basis))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("group_size", [2**31, 2**62, LIMIT - 2])
    def test_a_group_may_be_longer_than_any_row(self, group_size, generator):
        x = torch.randn(3, 300, generator=generator)
        int8, int4 = ops.int8_quantize(x, group_size), ops.int4_quantize(x, group_size)
        for huge, exact in ((int8, ops.int8_quantize(x, 300)), (int4, ops.int4_quantize(x, 300))):
            assert all(torch.equal(a, b) for a, b in zip(huge, exact, strict=True))
        assert torch.equal(ops.int8_dequantize(*int8, group_size), ops.int8_dequantize(*int8, 300))
        assert torch.equal(ops.int4_dequantize(*int4, 300, group_size), ops.int4_dequantize(*int4, 300, 300))
        ops.int8_stochastic_update_(*int8, x, group_size=group_size)


class TestDevices:
    @pytest.mark.parametrize("name", CALLS)
    def test_a_meta_tensor_among_real_ones(self, name):
        """Such a call reaches the fake kernel, which writes nothing."""
        _, arguments = CALLS[name]()
        for key, value in arguments.items():
            if isinstance(value, float):
                continue
            meta = [value[0].to("meta")] if isinstance(value, list) else value.to("meta")
            _refuses(name, ValueError, "the device of .* expected, got (meta|cpu)", **{key: meta})

    def test_lr_on_another_device(self):
        lr = torch.ones(1, dtype=torch.float64, device="meta")
        for name in (*WRITES, *STEPS):
            _refuses(name, ValueError, "lr: the device of .*, cpu, expected, got meta", lr=lr)

    def test_dequantize(self):
        codes, scale, zero = ops.int8_quantize(torch.ones(2, 8))
        with pytest.raises(ValueError, match="scale: the device of codes, cpu, expected, got meta"):
            ops.int8_dequantize(codes, scale.to("meta"), zero)

    def test_all_meta(self):
        x = torch.ones(2, 300, device="meta")
        int8, int4 = ops.int8_quantize(x), ops.int4_quantize(x)
        assert int8.scale.shape == int4.scale.shape == (2, 2)
        assert ops.int8_dequantize(*int8).shape == ops.int4_dequantize(*int4, 300).shape == (2, 300)
        ops.int8_stochastic_update_(*int8, x)


class TestGradients:
    """Ops take tensors that require a gradient, and give none."""

    def test_results_require_none(self, generator):
        x = torch.randn(8, 6, generator=generator, requires_grad=True)
        basis = torch.randn(2, 6, generator=generator, requires_grad=True)
        codes, scale, zero = ops.int8_quantize(x)
        packed = ops.int4_quantize(x)
        results = [scale, packed.scale, ops.int8_dequantize(codes, scale.clone().requires_grad_(), zero)]
        results += [ops.project(x, basis), ops.subspace_iterate(x, basis), *ops.randomized_svd(x, 2)]
        results += [ops.coordinates_project(x, ops.Selection("all"))]
        assert not any(result.requires_grad for result in results)

    @pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
    def test_a_parameter_stays_a_leaf(self, rounding):
        weight = torch.nn.Parameter(torch.zeros(4))
        loss = (weight * weight).sum()
        ops.weight_update_(weight, torch.ones(4), rounding=rounding)
        assert weight.is_leaf and weight.grad_fn is None
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def _compiled(function, *arguments):
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")(*arguments)


class TestCompile:
    @pytest.mark.parametrize("name", CALLS)
    def test_ops_that_write(self, name):
        op, arguments = CALLS[name]()
        _, expected = CALLS[name]()
        options = {"seed": 3} if "direction" not in name and "residual" not in name else {}
        op(**expected, **options)
        _compiled(lambda given: [op(**given, **options)], arguments)
        for tensor, other in zip(_tensors(arguments), _tensors(expected), strict=True):
            assert torch.equal(tensor, other)

    def test_ops_that_return(self, generator):
        x = torch.randn(8, 6, generator=generator)
        basis = torch.randn(2, 6, generator=generator)

        def everything(x, basis):
            int8, int4 = ops.int8_quantize(x), ops.int4_quantize(x)
            return (
                *(ops.int8_dequantize(*int8), ops.int4_dequantize(*int4, 6)),
                ops.int4_unpack(ops.int4_pack(int8.codes), 6),
                ops.rademacher_(torch.empty(5), seed=1, tensor_id=2, period=3),
                ops.project(x, basis),
                *ops.randomized_svd(x, 2),
                ops.subspace_iterate(x, basis),
            )

        for result, expected in zip(_compiled(everything, x, basis), everything(x, basis), strict=True):
            assert torch.equal(result, expected)

    def test_projected_step_and_way_back(self, generator):
        grad = torch.randn(8, 6, generator=generator)
        basis = ops.int4_quantize(torch.randn(2, 6, generator=generator))

        def step(weight, progress, powers, lr):
            moments = [torch.zeros(16, dtype=torch.uint8), torch.zeros(1)]
            moments += [torch.zeros(16, dtype=torch.uint8), torch.zeros(1)]
            direction = ops.projected_adam_step_(grad, basis, *moments, progress, powers)
            ops.project_back_update_(weight, direction, basis, ops.Step(lr, progress, seed=7))

        weights = [torch.zeros(8, 6), torch.zeros(8, 6)]
        lr = torch.full((1,), 0.1, dtype=torch.float64)
        step(weights[0], *_record(), lr)
        _compiled(step, weights[1], *_record(), lr)
        assert torch.equal(*weights) and weights[0].any()

    @pytest.mark.parametrize("kind", ["columns", "randk"])
    def test_into_a_coordinate_subspace_and_back(self, kind, generator):
        grad = torch.randn(8, 6, generator=generator)

        def step(weight, lr, progress):
            names = {"seed": 1, "tensor_id": 2, "period": 3}
            if kind == "columns":
                selection = ops.Selection(kind, *ops.select(6, 2, **names))
            else:
                selection = ops.Selection(kind, density=0.25, **names)
            direction = ops.coordinates_project(grad, selection)
            ops.coordinates_back_update_(weight, direction, grad, selection, ops.Step(lr, progress, seed=7))

        weights = [torch.zeros(8, 6), torch.zeros(8, 6)]
        record = (torch.full((1,), 0.1, dtype=torch.float64), torch.tensor([1, 0, 1]))
        step(weights[0], *record)
        _compiled(step, weights[1], *record)
        assert torch.equal(*weights) and weights[0].any()

    def test_steps_with_a_residual(self, generator):
        grad = torch.randn(8, 6, generator=generator)
        basis = torch.linalg.qr(torch.randn(6, 2, generator=generator)).Q.t().contiguous()

        def step(weights, progress, powers, last_norm, lr):
            r = ops.split_project(grad, basis)
            moments = [torch.zeros(16), torch.zeros(16)]
            direction = ops.adamw_direction_(r.clone(), *moments, progress, powers, eps_mode="raw")
            write = ops.Step(lr, progress, seed=7)
            ops.split_back_update_(weights[0], direction, r, basis, grad, write)
            ops.fira_back_update_(weights[1], direction, r, basis, grad, write, last_norm, beta_powers=powers)

        results = []
        for run in (step, lambda *arguments: _compiled(step, *arguments)):
            weights, last = [torch.zeros(8, 6), torch.zeros(8, 6)], torch.full((), math.nan)
            run(weights, *_record(), last, torch.full((1,), 0.1, dtype=torch.float64))
            results.append((*weights, last))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b) and a.isfinite().all() and a.any()
