"""adamw_step_ and adamw_direction_."""

from __future__ import annotations

import math

import pytest
import torch

from frugalore import ops
from frugalore.reference import adamw as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1,), (3,), (255,), (256,), (17, 61), (2, 3, 130), (0,), (5, 4096)]
OPTIONS = dict(lr=0.01, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
MODES = [(eps, decay) for eps in ("corrected", "raw") for decay in ("before", "after")]


class Lists:
    """The arguments of a step for parameters of the given shapes and dtypes."""

    def __init__(self, shapes, param_dtype, grad_dtype, generator, device="cpu"):
        def normal(shape, dtype, scale):
            return (torch.randn(shape, generator=generator) * scale).to(dtype).to(device)

        self.params = [normal(shape, param_dtype, 0.1) for shape in shapes]
        self.grads = [normal(shape, grad_dtype, 0.02) for shape in shapes]
        self.exp_avgs = [torch.zeros_like(p, dtype=torch.float32) for p in self.params]
        self.exp_avg_sqs = [torch.zeros_like(p, dtype=torch.float32) for p in self.params]
        self.progress = [torch.zeros(3, dtype=torch.int64, device=device) for _ in shapes]
        self.beta_powers = [torch.ones(2, dtype=torch.float64, device=device) for _ in shapes]

    def arguments(self):
        return (
            self.params,
            self.grads,
            self.exp_avgs,
            self.exp_avg_sqs,
            self.progress,
            self.beta_powers,
        )

    def copy(self, device="cpu"):
        other = Lists.__new__(Lists)
        for name, tensors in vars(self).items():
            setattr(other, name, [t.clone().to(device) for t in tensors])
        return other


def _same_bits(a, b):
    a, b = a.cpu(), b.cpu()
    if a.is_floating_point():
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        finite = a.isfinite()
        assert torch.equal(finite, b.isfinite())
        assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        a, b = a.view(integer)[finite], b.view(integer)[finite]
    assert torch.equal(a, b)


def _assert_equal(ours: Lists, spec: Lists):
    for name, tensors in vars(spec).items():
        for a, b in zip(getattr(ours, name), tensors, strict=True):
            _same_bits(a, b)


@pytest.mark.parametrize("param_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("eps_mode", "decay"), MODES)
def test_step_equals_reference_to_the_bit(param_dtype, grad_dtype, eps_mode, decay, device, generator):
    spec = Lists(SHAPES, param_dtype, grad_dtype, generator)
    ours = spec.copy(device)
    options = dict(OPTIONS, eps_mode=eps_mode, decay=decay, seed=2**40 + 5, tensor_ids=range(7, 15))
    for _ in range(3):
        ops.adamw_step_(*ours.arguments(), **options)
        reference.adamw_step_(*spec.arguments(), **options)
        _assert_equal(ours, spec)


@pytest.mark.parametrize("param_dtype", DTYPES, ids=str)
def test_nearest(param_dtype, device, generator):
    spec = Lists([(300,), (7, 9)], param_dtype, torch.float32, generator)
    ours = spec.copy(device)
    for _ in range(2):
        ops.adamw_step_(*ours.arguments(), **OPTIONS, rounding="nearest")
        reference.adamw_step_(*spec.arguments(), **OPTIONS, rounding="nearest")
    _assert_equal(ours, spec)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("eps_mode", ["corrected", "raw"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_direction_equals_reference_to_the_bit(dtype, eps_mode, shape, device, generator):
    spec = Lists([shape], dtype, dtype, generator)
    ours = spec.copy(device)
    for _ in range(3):
        r = (torch.randn(shape, generator=generator) * 0.02).to(dtype)
        for lists, module in ((ours, ops), (spec, reference)):
            lists.grads[0].copy_(r)
            state = [tensors[0] for tensors in lists.arguments()[1:]]
            result = module.adamw_direction_(*state, betas=(0.9, 0.95), eps=1e-6, eps_mode=eps_mode)
            assert result is lists.grads[0]
        _assert_equal(ours, spec)


@pytest.mark.parametrize("param_dtype", DTYPES, ids=str)
def test_every_instruction_set_gives_the_same_bytes(isa, param_dtype, generator):
    spec = Lists([(3001,), (129,)], param_dtype, torch.bfloat16, generator)
    spec.grads[0][17] = math.nan
    ours = spec.copy()
    ops.adamw_step_(*ours.arguments(), **OPTIONS)
    reference.adamw_step_(*spec.arguments(), **OPTIONS)
    _assert_equal(ours, spec)
    state = [tensors[1] for tensors in ours.arguments()[1:]]
    expected = [tensors[1] for tensors in spec.arguments()[1:]]
    _same_bits(ops.adamw_direction_(*state), reference.adamw_direction_(*expected))


@pytest.mark.parametrize("param_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_thread_count_does_not_matter(param_dtype, generator):
    one = Lists([(70000,), (3,), (33333,)], param_dtype, torch.float32, generator)
    one.grads[0][::7] = math.inf
    one.grads[2][1::5] = math.nan
    five = one.copy()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        ops.adamw_step_(*one.arguments(), **OPTIONS)
        torch.set_num_threads(5)
        ops.adamw_step_(*five.arguments(), **OPTIONS)
    finally:
        torch.set_num_threads(threads)
    _assert_equal(five, one)
    assert one.progress[0].tolist() == [1, 10000, 1]
    assert one.progress[2].tolist() == [1, 6667, 1]


def test_a_list_is_its_tensors_one_by_one(device, generator):
    together = Lists(
        [(n,) for n in (1, 300, 0, 4097, 64)] * 9, torch.bfloat16, torch.float32, generator, device
    )
    single = together.copy(device)
    ops.adamw_step_(*together.arguments(), **OPTIONS, seed=3)
    for i, arguments in enumerate(zip(*single.arguments(), strict=True)):
        ops.adamw_step_(*([tensor] for tensor in arguments), **OPTIONS, seed=3, tensor_ids=[i])
    _assert_equal(together, single)


def test_mixed_dtypes_in_one_list(device, generator):
    parts = [Lists([(300,)], p, g, generator) for p in DTYPES for g in DTYPES]
    spec = parts[0].copy()
    for part in parts[1:]:
        for name, tensors in vars(part).items():
            getattr(spec, name).extend(tensors)
    ours = spec.copy(device)
    ops.adamw_step_(*ours.arguments(), **OPTIONS)
    reference.adamw_step_(*spec.arguments(), **OPTIONS)
    _assert_equal(ours, spec)


def test_unaligned_memory(device, generator):
    spec = Lists([(1001,)], torch.bfloat16, torch.float32, generator)
    ours = spec.copy(device)
    for tensors in ours.arguments()[:4]:
        buffer = tensors[0].new_empty(1002)
        buffer[1:] = tensors[0]
        tensors[0] = buffer[1:]
    ops.adamw_step_(*ours.arguments(), **OPTIONS)
    reference.adamw_step_(*spec.arguments(), **OPTIONS)
    _assert_equal(ours, spec)


def test_torch_adamw_in_float32(device, generator):
    ours = Lists([(40, 50), (9,)], torch.float32, torch.float32, generator, device)
    theirs = [torch.nn.Parameter(p.clone()) for p in ours.params]
    options = dict(lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    optimizer = torch.optim.AdamW(theirs, **options)
    for _ in range(50):
        for grad, parameter in zip(ours.grads, theirs, strict=True):
            grad.copy_(torch.randn(grad.shape, generator=generator))
            parameter.grad = grad.clone()
        ops.adamw_step_(*ours.arguments(), **options)
        optimizer.step()
    for a, b in zip(ours.params, theirs, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-6, atol=1e-6)


def test_galore_convention_in_float64(generator):
    ours = Lists([(200,)], torch.float32, torch.float32, generator)
    lr, beta1, beta2, eps, weight_decay = 0.01, 0.9, 0.999, 1e-6, 0.1
    w, m, v = ours.params[0].double(), torch.zeros(200).double(), torch.zeros(200).double()
    for t in range(1, 51):
        g = torch.randn(200, generator=generator) * 1e-5  # so small that the place of eps matters
        ours.grads[0].copy_(g)
        ops.adamw_step_(
            *ours.arguments(),
            lr=lr,
            betas=(beta1, beta2),
            eps=eps,
            weight_decay=weight_decay,
            eps_mode="raw",
            decay="after",
        )
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g.double() ** 2
        w = w - lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (v.sqrt() + eps)
        w = w * (1 - lr * weight_decay)
    torch.testing.assert_close(ours.params[0].double(), w, rtol=1e-5, atol=1e-6)


def test_stochastic_rounding_keeps_small_updates(device):
    def moved(rounding):
        lists = Lists([(4096,)], torch.bfloat16, torch.float32, torch.Generator(), device)
        lists.params[0].fill_(1.0)
        lists.grads[0].fill_(1.0)
        for _ in range(20):  # 20 steps of 1e-4; half a unit in the last place of 1.0 is 2e-3 downwards
            ops.adamw_step_(*lists.arguments(), lr=1e-4, betas=(0.0, 0.0), eps=0.0, rounding=rounding)
        return (1.0 - lists.params[0].float()).mean().item()

    assert moved("nearest") == 0.0
    assert moved("stochastic") == pytest.approx(20e-4, rel=0.1)


def test_progress_and_beta_powers(device, generator):
    lists = Lists([(10,)], torch.float32, torch.float32, generator, device)
    powers = [1.0, 1.0]
    for t in range(1, 4):
        ops.adamw_step_(*lists.arguments(), **OPTIONS)
        powers = [powers[0] * 0.9, powers[1] * 0.95]
        assert lists.progress[0].tolist() == [t, 0, 1]
        assert lists.beta_powers[0].tolist() == powers


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("param_dtype", DTYPES, ids=str)
def test_step_skips_elements_that_are_not_finite(bad, param_dtype, device, generator):
    ours = Lists([(600,)], param_dtype, torch.float32, generator, device)
    ops.adamw_step_(*ours.arguments(), **OPTIONS)
    before = ours.copy(device)
    ours.grads[0][5], ours.grads[0][599] = bad, bad
    clean = before.copy(device)
    ops.adamw_step_(*ours.arguments(), **OPTIONS)
    ops.adamw_step_(*clean.arguments(), **OPTIONS)
    skipped = torch.zeros(600, dtype=torch.bool, device=device)
    skipped[[5, 599]] = True
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        result, old, usual = getattr(ours, name)[0], getattr(before, name)[0], getattr(clean, name)[0]
        assert torch.equal(result, torch.where(skipped, old, usual))
        assert result.isfinite().all()
    assert ours.progress[0].tolist() == [2, 2, 1]
    assert ours.beta_powers[0].tolist() == clean.beta_powers[0].tolist()


def test_a_weight_never_becomes_nan(device):
    lists = Lists([(5,)], torch.float32, torch.float32, torch.Generator(), device)
    lists.grads[0].zero_()
    weight = lists.params[0].clone()
    ops.adamw_step_(*lists.arguments(), lr=0.1, eps=0.0)  # 0 / 0
    assert torch.equal(lists.params[0], weight)
    assert lists.progress[0].tolist() == [1, 5, 1]


@pytest.mark.parametrize("param_dtype", DTYPES, ids=str)
def test_a_broken_weight_is_not_hidden(param_dtype, device, generator):
    spec = Lists([(8,)], param_dtype, torch.float32, generator)
    spec.params[0][:3] = torch.tensor([math.nan, math.inf, -math.inf])
    ours = spec.copy(device)
    ops.adamw_step_(*ours.arguments(), **OPTIONS)
    reference.adamw_step_(*spec.arguments(), **OPTIONS)
    _assert_equal(ours, spec)
    assert ours.params[0][0].isnan() and ours.params[0][1] == math.inf and ours.params[0][2] == -math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_direction_skips_the_whole_call(bad, device, generator):
    lists = Lists([(5000,)], torch.float32, torch.float32, generator, device)
    r, *state = (tensors[0] for tensors in lists.arguments()[1:])
    m, v, progress, powers = state
    ops.adamw_direction_(r, *state)
    assert progress.tolist() == [1, 0, 1]
    kept = [t.clone() for t in (m, v, powers)]
    r.normal_()
    r[4999] = bad
    ops.adamw_direction_(r, *state)
    assert progress.tolist() == [1, 1, 0]
    assert not r.any()
    assert all(torch.equal(a, b) for a, b in zip((m, v, powers), kept, strict=True))
    r.normal_()
    ops.adamw_direction_(r, *state)
    assert progress.tolist() == [2, 1, 1]
    assert r.all()


def test_direction_takes_the_largest_gradient_that_it_may(device):
    r = torch.tensor([2.0**63, -(2.0**63)], device=device)
    state = [torch.zeros(2, device=device), torch.full((2,), 2.0**126, device=device)]
    record = [
        torch.zeros(3, dtype=torch.int64, device=device),
        torch.ones(2, dtype=torch.float64, device=device),
    ]
    for _ in range(20):
        r.copy_(torch.tensor([2.0**63, -(2.0**63)]))
        ops.adamw_direction_(r, *state, *record, betas=(0.9, 0.95))
    assert record[0].tolist() == [20, 0, 1]
    assert r.isfinite().all() and all(t.isfinite().all() for t in state)


def test_lr_as_a_tensor(device, generator):
    number = Lists([(30,)], torch.float32, torch.float32, generator, device)
    tensor = number.copy(device)
    options = dict(OPTIONS)
    lr = options.pop("lr")
    ops.adamw_step_(*number.arguments(), lr=lr, **options)
    ops.adamw_step_(*tensor.arguments(), lr=torch.tensor([lr], dtype=torch.float64, device=device), **options)
    _assert_equal(tensor, number)


def test_empty_list():
    ops.adamw_step_([], [], [], [], [], [], lr=0.1)


def test_autograd_sees_the_write(generator):
    weight = torch.nn.Parameter(torch.randn(4, generator=generator))
    lists = Lists([(4,)], torch.float32, torch.float32, generator)
    lists.params = [weight]
    loss = (weight * weight).sum()
    ops.adamw_step_(*lists.arguments(), **OPTIONS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert weight.requires_grad and weight.is_leaf


class TestBadInput:
    @pytest.fixture
    def lists(self, generator):
        return Lists([(6,), (4,)], torch.float32, torch.float32, generator)

    def _raises(self, lists, error, match, **changes):
        before = lists.copy()
        with pytest.raises(error, match=match):
            ops.adamw_step_(*lists.arguments(), **{**OPTIONS, **changes})
        for a, b in zip(lists.params + lists.progress, before.params + before.progress, strict=True):
            assert torch.equal(a, b)

    def test_dtypes(self, lists):
        lists.exp_avgs[1] = lists.exp_avgs[1].double()
        self._raises(lists, TypeError, r"exp_avgs\[1\]: dtype float32 expected, got float64")
        lists.grads[0] = lists.grads[0].to(torch.int32)
        self._raises(lists, TypeError, r"grads\[0\]: dtype float32 or .* expected, got int32")

    def test_shapes(self, lists):
        lists.grads[1] = lists.grads[1][:3]
        self._raises(lists, ValueError, r"grads\[1\]: the shape of params\[1\], \(4,\) expected, got \(3,\)")

    def test_state_length(self, lists):
        lists.exp_avg_sqs[0] = torch.zeros(5)
        self._raises(lists, ValueError, r"exp_avg_sqs\[0\]: 6 elements expected, got 5")

    def test_list_length(self, lists):
        lists.grads.pop()
        self._raises(lists, ValueError, "grads: 2 expected, one for each of params, got 1")

    def test_stride(self, lists):
        lists.params[0] = torch.zeros(12)[::2]
        self._raises(lists, ValueError, r"params\[0\]: a contiguous tensor expected")

    def test_shared_memory(self, lists):
        lists.progress[1] = lists.progress[0]
        self._raises(
            lists,
            ValueError,
            r"progress\[1\]: memory of its own .* of progress\[0\]",
        )
        lists.progress[1] = torch.zeros(3, dtype=torch.int64)
        lists.grads[0] = lists.params[0]
        self._raises(lists, ValueError, r"grads\[0\]: memory of its own expected, .* of params\[0\]")

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (dict(betas=(1.0, 0.9)), r"beta1: a number in \[0, 1\) expected, got 1"),
            (dict(betas=(0.9, math.nan)), r"beta2: a number in \[0, 1\) expected, got nan"),
            (dict(eps=-1.0), "eps: a finite number >= 0 expected, got -1"),
            (dict(weight_decay=math.inf), "weight_decay: a finite number >= 0 expected, got inf"),
            (dict(eps_mode="both"), "eps_mode: 'corrected' or 'raw' expected, got 'both'"),
            (dict(decay="never"), "decay: 'before' or 'after' expected, got 'never'"),
            (dict(rounding="up"), "rounding: 'nearest' or 'stochastic' expected, got 'up'"),
            (dict(tensor_ids=[0, -1]), r"tensor_ids\[1\]: 0 to 4294967295 expected, got -1"),
            (dict(lr=torch.ones(2, dtype=torch.float64)), "lr: 1 elements expected, got 2"),
        ],
    )
    def test_options(self, lists, change, match):
        self._raises(lists, ValueError, match, **change)

    def test_lr_dtype(self, lists):
        self._raises(lists, TypeError, "lr: dtype float64 expected, got float32", lr=torch.ones(1))


def test_opcheck(generator):
    lists = Lists([(6,), (300,)], torch.bfloat16, torch.float32, generator)
    namespace = torch.ops.frugalore
    lr = torch.full((1,), 0.1, dtype=torch.float64)
    torch.library.opcheck(
        namespace.adamw_step_.default,
        (*lists.arguments(), lr, 0.9, 0.99, 1e-8, 0.1, False, False, True, 0, [0, 1]),
    )
    state = [tensors[0] for tensors in lists.arguments()[1:]]
    torch.library.opcheck(namespace.adamw_direction_.default, (*state, 0.9, 0.99, 1e-8, True))
