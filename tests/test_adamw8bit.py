"""adamw8bit_step_ and adamw8bit_direction_."""

from __future__ import annotations

import math

import pytest
import torch

from frugalore import ops
from frugalore.reference import adamw8bit as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1,), (255,), (256,), (257,), (17, 61), (2, 3, 130), (0,), (5, 4096)]
OPTIONS = dict(lr=0.01, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
MODES = [(eps, decay) for eps in ("corrected", "raw") for decay in ("before", "after")]
NAMES = (
    "params",
    "grads",
    "exp_avgs",
    "exp_avg_absmaxs",
    "exp_avg_sqs",
    "exp_avg_sq_absmaxs",
    "progress",
    "beta_powers",
)


def _lists(shapes, param_dtype, grad_dtype, generator, device="cpu", size=0.02):
    def normal(shape, dtype, scale):
        return (torch.randn(shape, generator=generator) * scale).to(dtype).to(device)

    def zeros(length, dtype):
        return torch.zeros(length, dtype=dtype, device=device)

    counts = [math.prod(shape) for shape in shapes]
    codes = [[zeros(n, torch.uint8) for n in counts] for _ in range(2)]
    absmaxs = [[zeros(-(-n // 256), torch.float32) for n in counts] for _ in range(2)]
    return {
        "params": [normal(shape, param_dtype, 0.1) for shape in shapes],
        "grads": [normal(shape, grad_dtype, size) for shape in shapes],
        "exp_avgs": codes[0],
        "exp_avg_absmaxs": absmaxs[0],
        "exp_avg_sqs": codes[1],
        "exp_avg_sq_absmaxs": absmaxs[1],
        "progress": [zeros(3, torch.int64) for _ in shapes],
        "beta_powers": [zeros(2, torch.float64) + 1.0 for _ in shapes],
    }


def _copy(lists, device="cpu"):
    return {name: [t.clone().to(device) for t in tensors] for name, tensors in lists.items()}


def _state(lists, i=0):
    """The arguments of a direction: r and its state."""
    return [lists[name][i] for name in NAMES[1:]]


def _assert_equal(ours, spec):
    for name in NAMES:
        for a, b in zip(ours[name], spec[name], strict=True):
            assert torch.equal(a.cpu(), b.cpu()), name


@pytest.mark.parametrize("param_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("eps_mode", "decay"), MODES)
def test_step_equals_reference_to_the_bit(param_dtype, grad_dtype, eps_mode, decay, device, generator):
    spec = _lists(SHAPES, param_dtype, grad_dtype, generator)
    ours = _copy(spec, device)
    options = dict(OPTIONS, eps_mode=eps_mode, decay=decay, seed=2**40 + 5, tensor_ids=range(7, 15))
    for _ in range(3):
        ops.adamw8bit_step_(**ours, **options)
        reference.adamw8bit_step_(**spec, **options)
        _assert_equal(ours, spec)


@pytest.mark.parametrize("size", [1e-30, 1e-21, 1e-18, 1e-10, 1.0, 1e15])
def test_any_size_of_gradients(size, device, generator):
    spec = _lists([(700,)], torch.float32, torch.float32, generator, size=size)
    spec["grads"][0][:256] = 0.0  # a block of zeros
    ours = _copy(spec, device)
    for _ in range(3):
        ops.adamw8bit_step_(**ours, **OPTIONS)
        reference.adamw8bit_step_(**spec, **OPTIONS)
    _assert_equal(ours, spec)
    assert all(t.isfinite().all() for name in NAMES[:1] + NAMES[3:6:2] for t in ours[name])
    assert ours["exp_avg_absmaxs"][0][0] == 0.0 and (ours["exp_avgs"][0][:256] == 127).all()
    assert ours["exp_avg_sq_absmaxs"][0][0] == 0.0 and (ours["exp_avg_sqs"][0][:256] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("eps_mode", ["corrected", "raw"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_direction_equals_reference_to_the_bit(dtype, eps_mode, shape, device, generator):
    spec = _lists([shape], dtype, dtype, generator)
    ours = _copy(spec, device)
    for _ in range(3):
        r = (torch.randn(shape, generator=generator) * 0.02).to(dtype)
        for lists, module in ((ours, ops), (spec, reference)):
            lists["grads"][0].copy_(r)
            result = module.adamw8bit_direction_(
                *_state(lists), betas=(0.9, 0.95), eps=1e-6, eps_mode=eps_mode
            )
            assert result is lists["grads"][0]
        _assert_equal(ours, spec)


@pytest.mark.parametrize("param_dtype", DTYPES, ids=str)
def test_every_instruction_set_gives_the_same_bytes(isa, param_dtype, generator):
    spec = _lists([(3001,), (129,)], param_dtype, torch.bfloat16, generator)
    ours = _copy(spec)
    for _ in range(2):
        spec["grads"][0][17] = ours["grads"][0][17] = math.nan
        ops.adamw8bit_step_(**ours, **OPTIONS)
        reference.adamw8bit_step_(**spec, **OPTIONS)
    for lists in (ours, spec):
        lists["grads"][0][17] = 1.0
    _assert_equal(ours, spec)
    ops.adamw8bit_direction_(*_state(ours))
    reference.adamw8bit_direction_(*_state(spec))
    _assert_equal(ours, spec)


def test_thread_count_does_not_matter(generator):
    one = _lists([(70000,), (3,), (33333,)], torch.bfloat16, torch.float32, generator)
    one["grads"][0][::7] = math.inf
    five = _copy(one)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        ops.adamw8bit_step_(**one, **OPTIONS)
        torch.set_num_threads(5)
        ops.adamw8bit_step_(**five, **OPTIONS)
    finally:
        torch.set_num_threads(threads)
    _assert_equal(five, one)
    assert one["progress"][0].tolist() == [1, 10000, 1]


def test_a_list_is_its_tensors_one_by_one(device, generator):
    together = _lists(
        [(n,) for n in (1, 300, 0, 4097, 64)] * 9, torch.bfloat16, torch.float32, generator, device
    )
    single = _copy(together, device)
    ops.adamw8bit_step_(**together, **OPTIONS, seed=3)
    for i in range(len(single["params"])):
        one = {name: [tensors[i]] for name, tensors in single.items()}
        ops.adamw8bit_step_(**one, **OPTIONS, seed=3, tensor_ids=[i])
    _assert_equal(together, single)


def test_mixed_dtypes_in_one_list(device, generator):
    parts = [_lists([(300,)], p, g, generator) for p in DTYPES for g in DTYPES]
    spec = {name: [part[name][0] for part in parts] for name in NAMES}
    ours = _copy(spec, device)
    ops.adamw8bit_step_(**ours, **OPTIONS)
    reference.adamw8bit_step_(**spec, **OPTIONS)
    _assert_equal(ours, spec)


def test_unaligned_memory(device, generator):
    spec = _lists([(1001,)], torch.bfloat16, torch.float32, generator)
    ours = _copy(spec, device)
    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"):
        buffer = ours[name][0].new_empty(1002)
        buffer[1:] = ours[name][0]
        ours[name][0] = buffer[1:]
    ops.adamw8bit_step_(**ours, **OPTIONS)
    reference.adamw8bit_step_(**spec, **OPTIONS)
    _assert_equal(ours, spec)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_step_skips_elements_that_are_not_finite(bad, device, generator):
    ours = _lists([(600,)], torch.bfloat16, torch.float32, generator, device)
    ops.adamw8bit_step_(**ours, **OPTIONS)
    before = _copy(ours, device)
    ours["grads"][0][5] = ours["grads"][0][599] = bad
    ops.adamw8bit_step_(**ours, **OPTIONS)
    assert ours["progress"][0].tolist() == [2, 2, 1]
    assert all(t.isfinite().all() for name in ("params", *NAMES[3:6:2]) for t in ours[name])
    for codes, absmaxs, signed in (
        ("exp_avgs", "exp_avg_absmaxs", True),
        ("exp_avg_sqs", "exp_avg_sq_absmaxs", False),
    ):
        for i in (5, 599):
            assert ours["params"][0][i] == before["params"][0][i]
            old, new = (
                reference.dequantize_moment(s[codes][0].cpu(), s[absmaxs][0].cpu(), signed)[i]
                for s in (before, ours)
            )
            largest = ours[absmaxs][0][i // 256].item()
            assert abs(old - new) <= 0.0071 * largest  # half the widest gap of the maps


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_direction_skips_the_whole_call(bad, device, generator):
    lists = _lists([(5000,)], torch.float32, torch.float32, generator, device)
    r, *state = _state(lists)
    ops.adamw8bit_direction_(r, *state)
    kept = [t.clone() for t in (*state[:4], state[5])]
    r.normal_()
    r[4999] = bad
    ops.adamw8bit_direction_(r, *state)
    assert state[4].tolist() == [1, 1, 0]
    assert not r.any()
    assert all(torch.equal(a, b) for a, b in zip((*state[:4], state[5]), kept, strict=True))
    r.normal_()
    ops.adamw8bit_direction_(r, *state)
    assert state[4].tolist() == [2, 1, 1]
    assert r.any()


def test_bitsandbytes(generator):
    """The published 8-bit AdamW decays before the update on a CPU, and divides where we multiply."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    ours = _lists([(64, 128)], torch.float32, torch.float32, generator)
    theirs = torch.nn.Parameter(ours["params"][0].clone())
    options = dict(lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)
    optimizer = bitsandbytes.optim.AdamW8bit([theirs], **options, min_8bit_size=1)
    for _ in range(10):
        grad = torch.randn(64, 128, generator=generator) * 0.02
        theirs.grad = grad.clone()
        ours["grads"][0].copy_(grad)
        try:
            optimizer.step()
        except (NotImplementedError, RuntimeError) as error:
            pytest.skip(f"bitsandbytes has no 8-bit AdamW here: {error}")
        ops.adamw8bit_step_(**ours, **options)
    state = optimizer.state[theirs]
    for name, codes in (("state1", "exp_avgs"), ("state2", "exp_avg_sqs")):
        off = (state[name].flatten().int() - ours[codes][0].int()).abs()
        assert (off <= 1).float().mean() > 0.99
    assert (theirs.detach() - ours["params"][0]).abs().median() < 1e-5


def test_training_follows_float32(generator):
    """A quadratic: the 8-bit moments lead to the loss of float32 moments."""
    target = torch.randn(4096, generator=generator)
    losses = []
    for bits in (8, 32):
        lists = _lists([(4096,)], torch.float32, torch.float32, generator)
        w = lists["params"][0].zero_()
        m, v = [torch.zeros(4096)], [torch.zeros(4096)]
        for _ in range(200):
            lists["grads"][0].copy_(w - target)
            if bits == 8:
                ops.adamw8bit_step_(**lists, lr=0.02)
            else:
                records = (lists["progress"], lists["beta_powers"])
                ops.adamw_step_(lists["params"], lists["grads"], m, v, *records, lr=0.02)
        losses.append((w - target).square().mean().item())
    assert losses[0] < 1.1 * losses[1] + 1e-3


def test_empty_list():
    ops.adamw8bit_step_([], [], [], [], [], [], [], [], lr=0.1)


def test_autograd_sees_the_write(generator):
    lists = _lists([(4,)], torch.float32, torch.float32, generator)
    weight = torch.nn.Parameter(lists["params"][0])
    lists["params"] = [weight]
    loss = (weight * weight).sum()
    ops.adamw8bit_step_(**lists, **OPTIONS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class TestBadInput:
    @pytest.mark.parametrize(
        ("name", "tensor", "error", "match"),
        [
            ("exp_avgs", torch.zeros(300), TypeError, r"exp_avgs\[0\]: dtype uint8 expected, got float32"),
            (
                "exp_avg_absmaxs",
                torch.zeros(1),
                ValueError,
                r"exp_avg_absmaxs\[0\]: 2 elements expected, got 1",
            ),
            ("exp_avg_sqs", torch.zeros(5, dtype=torch.uint8), ValueError, r"exp_avg_sqs\[0\]: 300 elements"),
            (
                "exp_avg_sq_absmaxs",
                torch.zeros(2).double(),
                TypeError,
                r"exp_avg_sq_absmaxs\[0\]: dtype float32",
            ),
            ("progress", torch.zeros(2, dtype=torch.int64), ValueError, r"progress\[0\]: 3 elements"),
        ],
    )
    def test_state(self, name, tensor, error, match, generator):
        lists = _lists([(300,)], torch.float32, torch.float32, generator)
        lists[name] = [tensor]
        before = lists["params"][0].clone()
        with pytest.raises(error, match=match):
            ops.adamw8bit_step_(**lists, **OPTIONS)
        assert torch.equal(lists["params"][0], before)

    def test_list_length(self, generator):
        lists = _lists([(3,), (4,)], torch.float32, torch.float32, generator)
        lists["exp_avg_absmaxs"].pop()
        with pytest.raises(ValueError, match="exp_avg_absmaxs: 2 expected, one for each of params, got 1"):
            ops.adamw8bit_step_(**lists, **OPTIONS)

    def test_shared_memory(self, generator):
        r, codes, absmax, _, absmax_sq, *record = _state(
            _lists([(3,)], torch.float32, torch.float32, generator)
        )
        with pytest.raises(ValueError, match="exp_avg_sq: memory of its own expected"):
            ops.adamw8bit_direction_(r, codes, absmax, codes, absmax_sq, *record)

    def test_options(self, generator):
        lists = _lists([(3,)], torch.float32, torch.float32, generator)
        with pytest.raises(ValueError, match="decay: 'before' or 'after' expected, got 'never'"):
            ops.adamw8bit_step_(**lists, **OPTIONS, decay="never")


def test_opcheck(generator):
    lists = _lists([(6,), (300,)], torch.bfloat16, torch.float32, generator)
    namespace = torch.ops.frugalore
    lr = torch.full((1,), 0.1, dtype=torch.float64)
    options = (lr, 0.9, 0.99, 1e-8, 0.1, False, False, True, 0, [0, 1])
    torch.library.opcheck(namespace.adamw8bit_step_.default, (*lists.values(), *options))
    torch.library.opcheck(namespace.adamw8bit_direction_.default, (*_state(lists), 0.9, 0.99, 1e-8, True))
