"""sgdm_step_, lion_step_ and their directions."""

from __future__ import annotations

import math

import pytest
import torch

from frugalore import ops
from frugalore.reference import momentum as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1,), (3,), (256,), (17, 61), (2, 3, 130), (0,), (5, 4096)]
RULES = [
    ("sgdm", {"momentum": 0.9}),
    ("sgdm", {"momentum": 0.9, "nesterov": True}),
    ("sgdm", {"momentum": 0.8, "dampening": 0.3}),
    ("sgdm", {"momentum": 0.0}),
    ("lion", {"betas": (0.9, 0.99)}),
]
WRITE = {"lr": 0.01, "weight_decay": 0.1}


def step_of(module, rule):
    return getattr(module, f"{rule}_step_")


def direction_of(module, rule):
    return getattr(module, f"{rule}_direction_")


class Lists:
    """The arguments of a step for parameters of the given shapes and dtypes."""

    def __init__(self, shapes, param_dtype, grad_dtype, generator, device="cpu"):
        def normal(shape, dtype):
            return (torch.randn(shape, generator=generator) * 0.1).to(dtype).to(device)

        self.params = [normal(shape, param_dtype) for shape in shapes]
        self.grads = [normal(shape, grad_dtype) for shape in shapes]
        self.momenta = [torch.zeros_like(p, dtype=torch.float32) for p in self.params]
        self.progress = [torch.zeros(3, dtype=torch.int64, device=device) for _ in shapes]

    def arguments(self):
        return self.params, self.grads, self.momenta, self.progress

    def copy(self, device="cpu"):
        other = Lists.__new__(Lists)
        for name, tensors in vars(self).items():
            setattr(other, name, [t.clone().to(device) for t in tensors])
        return other


def assert_equal(ours: Lists, spec: Lists):
    for name, tensors in vars(spec).items():
        for a, b in zip(getattr(ours, name), tensors, strict=True):
            a, b = a.cpu(), b.cpu()
            assert torch.equal(a.isfinite(), b.isfinite())
            if a.is_floating_point():
                integer = {2: torch.int16, 4: torch.int32}[a.element_size()]
                a, b = a.view(integer)[a.isfinite()], b.view(integer)[b.isfinite()]
            assert torch.equal(a, b), name


@pytest.mark.parametrize("param_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rule", "options"), RULES, ids=str)
def test_step_equals_reference_to_the_bit(rule, options, param_dtype, grad_dtype, device, generator):
    spec = Lists(SHAPES, param_dtype, grad_dtype, generator)
    ours = spec.copy(device)
    write = {**WRITE, "seed": 2**40 + 5, "tensor_ids": range(7, 14)}
    for decay, rounding in (("before", "stochastic"), ("after", "stochastic"), ("before", "nearest")):
        for module, lists in ((ops, ours), (reference, spec)):
            step_of(module, rule)(*lists.arguments(), **options, **write, decay=decay, rounding=rounding)
        assert_equal(ours, spec)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("rule", "options"), RULES, ids=str)
def test_direction_equals_reference_to_the_bit(rule, options, dtype, shape, device, generator):
    spec = Lists([shape], dtype, dtype, generator)
    ours = spec.copy(device)
    for step in range(4):
        r = torch.randn(shape, generator=generator).to(dtype)
        if step == 0 and r.numel() > 2:  # The first applied update is the second call.
            r.view(-1)[2] = math.nan
        for module, lists in ((ops, ours), (reference, spec)):
            lists.grads[0].copy_(r)
            state = [tensors[0] for tensors in lists.arguments()[1:]]
            assert direction_of(module, rule)(*state, **options) is lists.grads[0]
        assert_equal(ours, spec)


@pytest.mark.parametrize(("rule", "options"), RULES, ids=str)
def test_every_instruction_set_gives_the_same_bytes(isa, rule, options, generator):
    spec = Lists([(3001,), (129,)], torch.bfloat16, torch.bfloat16, generator)
    spec.grads[0][17] = math.nan
    ours = spec.copy()
    for module, lists in ((ops, ours), (reference, spec)):
        step_of(module, rule)(*lists.arguments(), **options, **WRITE)
        direction_of(module, rule)(*(tensors[1] for tensors in lists.arguments()[1:]), **options)
    assert_equal(ours, spec)


def test_thread_count_does_not_matter(generator):
    one = Lists([(70000,), (3,), (33333,)], torch.bfloat16, torch.float32, generator)
    one.grads[0][::7] = math.inf
    five = one.copy()
    threads = torch.get_num_threads()
    try:
        for count, lists in ((1, one), (5, five)):
            torch.set_num_threads(count)
            ops.sgdm_step_(*lists.arguments(), **WRITE)
            ops.lion_step_(*lists.arguments(), **WRITE)
    finally:
        torch.set_num_threads(threads)
    assert_equal(five, one)
    assert one.progress[0].tolist() == [2, 20000, 1]


def test_a_list_is_its_tensors_one_by_one(device, generator):
    together = Lists(
        [(n,) for n in (1, 300, 0, 4097, 64)] * 9, torch.bfloat16, torch.float32, generator, device
    )
    single = together.copy(device)
    ops.lion_step_(*together.arguments(), **WRITE, seed=3)
    for i, arguments in enumerate(zip(*single.arguments(), strict=True)):
        ops.lion_step_(*([tensor] for tensor in arguments), **WRITE, seed=3, tensor_ids=[i])
    assert_equal(together, single)


@pytest.mark.parametrize(
    "options",
    [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.8, "dampening": 0.3}],
    ids=str,
)
def test_torch_sgd(options, device, generator):
    ours = Lists([(40, 50), (9,)], torch.float32, torch.float32, generator, device)
    theirs = [torch.nn.Parameter(p.clone()) for p in ours.params]
    optimizer = torch.optim.SGD(theirs, lr=0.01, **options)
    for _ in range(30):
        for grad, parameter in zip(ours.grads, theirs, strict=True):
            grad.copy_(torch.randn(grad.shape, generator=generator))
            parameter.grad = grad.clone()
        ops.sgdm_step_(*ours.arguments(), lr=0.01, **options)
        optimizer.step()
    for a, b in zip(ours.params, theirs, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-5, atol=1e-6)


def test_lion_in_float64(generator):
    ours = Lists([(200,)], torch.float32, torch.float32, generator)
    w, m = ours.params[0].double(), torch.zeros(200).double()
    for _ in range(30):
        g = torch.randn(200, generator=generator)
        ours.grads[0].copy_(g)
        ops.lion_step_(*ours.arguments(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
        w = w * (1 - 0.01 * 0.1) - 0.01 * (0.9 * m + 0.1 * g).sign()
        m = 0.99 * m + 0.01 * g
    torch.testing.assert_close(ours.params[0].double(), w, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.momenta[0].double(), m, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("rule", "options"), RULES, ids=str)
def test_step_skips_elements_that_are_not_finite(rule, options, bad, device, generator):
    ours = Lists([(600,)], torch.float32, torch.float32, generator, device)
    step_of(ops, rule)(*ours.arguments(), **options, **WRITE)
    before, clean = ours.copy(device), ours.copy(device)
    ours.grads[0][5], ours.grads[0][599] = bad, bad
    for lists in (ours, clean):
        step_of(ops, rule)(*lists.arguments(), **options, **WRITE)
    skipped = torch.zeros(600, dtype=torch.bool, device=device)
    skipped[[5, 599]] = True
    for name in ("params", "momenta"):
        result, old, usual = getattr(ours, name)[0], getattr(before, name)[0], getattr(clean, name)[0]
        assert torch.equal(result, torch.where(skipped, old, usual))
    assert ours.progress[0].tolist() == [2, 2, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("rule", ["sgdm", "lion"])
def test_direction_skips_the_whole_call(rule, bad, device, generator):
    lists = Lists([(5000,)], torch.float32, torch.float32, generator, device)
    r, buffer, progress = (tensors[0] for tensors in lists.arguments()[1:])
    direction_of(ops, rule)(r, buffer, progress)
    kept = buffer.clone()
    r.normal_()
    r[4999] = bad
    direction_of(ops, rule)(r, buffer, progress)
    assert progress.tolist() == [1, 1, 0]
    assert not r.any() and torch.equal(buffer, kept)


class TestBadInput:
    @pytest.fixture
    def lists(self, generator):
        return Lists([(6,), (4,)], torch.float32, torch.float32, generator)

    def _raises(self, lists, error, match, step=ops.sgdm_step_, **changes):
        before = lists.copy()
        with pytest.raises(error, match=match):
            step(*lists.arguments(), **{**WRITE, **changes})
        for a, b in zip(lists.params + lists.progress, before.params + before.progress, strict=True):
            assert torch.equal(a, b)

    def test_tensors(self, lists):
        lists.momenta[1] = lists.momenta[1].double()
        self._raises(lists, TypeError, r"momenta\[1\]: dtype float32 expected, got float64")
        lists.momenta[1] = torch.zeros(5)
        self._raises(lists, ValueError, r"momenta\[1\]: 4 elements expected, got 5")
        lists.momenta.pop()
        self._raises(lists, ValueError, "momenta: 2 expected, one for each of params, got 1")

    def test_numbers(self, lists):
        self._raises(lists, ValueError, r"momentum: a number in \[0, 1\) expected, got 1", momentum=1.0)
        self._raises(lists, ValueError, r"dampening: a number in \[0, 1\) expected, got -1", dampening=-1.0)
        self._raises(lists, ValueError, "nesterov: momentum > 0", nesterov=True, dampening=0.5)
        self._raises(lists, ValueError, "betas: two numbers expected", ops.lion_step_, betas=(0.9,))
        self._raises(lists, ValueError, r"beta2: a number in \[0, 1\)", ops.lion_step_, betas=(0.9, 1.0))
        self._raises(lists, ValueError, "decay: 'before' or 'after' expected", decay="late")
