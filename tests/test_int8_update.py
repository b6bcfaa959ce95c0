"""int8_stochastic_update_."""

from __future__ import annotations

import pytest
import torch

from frugalore import ops
from frugalore.reference import int8 as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 50.0, "decay": "after", "alpha": -0.25},
    {"rounding": "nearest", "weight_decay": 0.1},
]


def _weight(shape, generator, group_size=256, device="cpu"):
    x = torch.randn(shape, generator=generator) * 0.02
    return [part.to(device) for part in ops.int8_quantize(x, group_size)]


def _copy(groups):
    return [part.clone() for part in groups]


def _same(a, b) -> bool:
    return all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(a, b, strict=True))


def _both(groups, update, steps=(1,), **options):
    """The op's bytes after some steps, checked against the reference after each."""
    spec = [part.cpu() for part in _copy(groups)]
    for step in steps:
        ops.int8_stochastic_update_(*groups, update, progress=step, **options)
        reference.int8_stochastic_update_(*spec, update.cpu(), progress=step, **options)
        assert _same(groups, spec)
    return groups


@pytest.mark.parametrize("shape", [(1, 1), (7,), (3, 257), (2, 1030), (2, 3, 130)], ids=str)
@pytest.mark.parametrize("group_size", [1, 3, 64, 256, 600])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_reference_to_the_bit(shape, group_size, dtype, device, generator):
    for lr in (1e-2, 1e-4, 1e-6):
        for options in OPTIONS:
            groups = _weight(shape, generator, group_size, device)
            update = torch.randn(shape, generator=generator).to(dtype).to(device)
            stream = {"seed": -5, "tensor_id": 2**32 - 1, "first_index": 3}
            _both(groups, update, (0, 1), lr=lr, group_size=group_size, **stream, **options)


@pytest.mark.parametrize("first_index", [0, 1, 2**32 - 6, 2**40 + 3])
def test_every_instruction_set_gives_the_same_bytes(isa, first_index, generator):
    for lr in (1e-2, 1e-5):
        groups = _weight((7, 1001), generator)
        update = torch.randn(7, 1001, generator=generator)
        _both(groups, update, (1, 2), lr=lr, first_index=first_index, weight_decay=0.1)


def test_thread_count_does_not_matter(generator):
    groups = _weight((301, 1000), generator)
    update = torch.randn(301, 1000, generator=generator)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 5):
            torch.set_num_threads(count)
            results.append(_copy(groups))
            ops.int8_stochastic_update_(*results[-1], update, lr=1e-4)
    finally:
        torch.set_num_threads(threads)
    assert _same(*results)


def test_row_panels_give_the_same_bytes_as_one_call(device, generator):
    groups = _weight((10, 333), generator, 64, device)
    update = torch.randn(10, 333, generator=generator).to(device)
    whole, panels = _copy(groups), _copy(groups)
    options = {"lr": 1e-3, "group_size": 64, "seed": 3}
    ops.int8_stochastic_update_(*whole, update, first_index=17, **options)
    for first, last in ((0, 1), (1, 6), (6, 10)):
        rows = [part[first:last] for part in panels]
        ops.int8_stochastic_update_(*rows, update[first:last], first_index=17 + first * 333, **options)
    assert _same(whole, panels)


def test_empty(device):
    for shape in ((0, 8), (2, 0)):
        groups = ops.int8_quantize(torch.zeros(shape, device=device))
        ops.int8_stochastic_update_(*groups, torch.zeros(shape, device=device))
        assert groups.codes.shape == shape


def test_stochastic_rounding_is_unbiased(device, generator):
    """The mean of many steps from one start is the exact weight, within 4 standard errors."""
    start = _weight((1, 256), generator, device=device)
    # A grid with a margin, so that the trials below keep it.
    ops.int8_stochastic_update_(*start, ops.int8_dequantize(*start).sign(), lr=1e-3)
    update = torch.randn(1, 256, generator=generator).to(device)
    exact = ops.int8_dequantize(*start).double() + 1e-4 * update.double()
    trials, total = 4000, torch.zeros(1, 256, dtype=torch.float64, device=device)
    for trial in range(trials):
        groups = _copy(start)
        ops.int8_stochastic_update_(*groups, update, lr=1e-4, seed=trial)
        total += ops.int8_dequantize(*groups).double()
    assert torch.equal(groups[1], start[1])
    fraction = (exact / start[1].double()) % 1.0
    error = (total / trials - exact) / start[1].double()
    sigma = (fraction * (1 - fraction) / trials).sqrt() + 1e-5
    # 256 elements at 4 sigma: one beyond is expected in 60 runs, and the seeds are fixed.
    assert (error.abs() < 4 * sigma).sum() >= 255
    assert error.mean().abs() < 4 * sigma.square().mean().sqrt() / 16


def test_zero_update_changes_nothing_even_after_rescales(device, generator):
    groups = _weight((4, 700), generator, device=device)
    zero_update = torch.zeros(4, 700, device=device)
    for step in range(60):
        factor = 1.0 if step % 2 else -1.0
        update = factor * torch.randn(4, 700, generator=generator).to(device)
        before = groups[1].clone()
        ops.int8_stochastic_update_(*groups, update, lr=0.02 if step < 30 else 1e-5, progress=step)
        if step < 5:
            assert not torch.equal(before, groups[1])  # the steps do rescale
        at_rest = _copy(groups)
        for seed in range(3):
            ops.int8_stochastic_update_(*groups, zero_update, lr=0.02, seed=seed, progress=step)
        assert _same(groups, at_rest)


def test_zero_update_leaves_a_group_alone_that_uses_few_codes(device):
    codes = torch.tensor([[3, 4, 5, 7]], dtype=torch.uint8, device=device)
    groups = [codes, torch.full((1, 1), 0.5, device=device), torch.full_like(codes[:, :1], 4)]
    before = _copy(groups)
    ops.int8_stochastic_update_(*groups, torch.zeros(1, 4, device=device))
    assert _same(groups, before)


def _with_extremes(where, generator, device, rows=8192):
    """Groups of which half of the elements are the minimum, or the maximum; and which elements those are."""
    x = (torch.rand(rows, 256, generator=generator) - 0.5) * 0.04
    chosen = torch.ones(256, dtype=torch.bool)
    if where != "all":
        chosen[::2] = False
        x[:, chosen] = -0.02 if where == "minima" else 0.02
    groups = [part.to(device) for part in ops.int8_quantize(x)]
    return groups, chosen.to(device)


def _realised(groups, update, chosen, lr, trials):
    """Mean displacement of the chosen elements along the update, as a fraction of the intended one."""
    before, total = ops.int8_dequantize(*groups), 0.0
    for seed in range(trials):
        after = _copy(groups)
        ops.int8_stochastic_update_(*after, update, lr=lr, seed=seed)
        moved = (ops.int8_dequantize(*after) - before) * update
        total += moved[:, chosen].sum(dtype=torch.float64).item()
    return total / (trials * before.shape[0] * int(chosen.sum()) * lr), after


@pytest.mark.parametrize("lr", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("where", ["all", "minima", "maxima"])
def test_the_update_arrives(lr, where, device, generator):
    """Realised over intended displacement is 1, at the extremes of groups as everywhere."""
    groups, chosen = _with_extremes(where, generator, device)
    # A grid with a margin, as every group has after its first rescaling.
    outward = ops.int8_dequantize(*groups).sign()
    ops.int8_stochastic_update_(*groups, outward, lr=1e-3)
    update = (torch.randint(0, 2, outward.shape, generator=generator) * 2.0 - 1.0).to(device)
    # The standard error of the fraction: rounding moves an element by a code with probability lr / scale.
    trials = 24 if lr < 1e-5 else 4
    ratio, after = _realised(groups, update, chosen, lr, trials)
    assert torch.equal(after[1], groups[1]) == (lr <= 1e-4)
    assert abs(ratio - 1.0) < 0.01


@pytest.mark.parametrize("where", ["all", "minima", "maxima"])
def test_the_update_arrives_while_groups_are_rescaled(where, device, generator):
    """Two elements of each group force the same new grid, whether the others move by 1e-6 or rest."""
    groups, chosen = _with_extremes(where, generator, device)
    update = (torch.randint(0, 2, groups[0].shape, generator=generator) * 2.0 - 1.0).to(device)
    groups[0][:, 0], groups[0][:, 1] = 0, 255
    update[:, 0], update[:, 1] = -1e4, 1e4
    chosen[:2] = False
    rest = update.clone()
    rest[:, 2:] = 0.0
    moved = 0.0
    for seed in range(24):
        a, b = _copy(groups), _copy(groups)
        ops.int8_stochastic_update_(*a, update, lr=1e-6, seed=seed)
        ops.int8_stochastic_update_(*b, rest, lr=1e-6, seed=seed)
        assert torch.equal(a[1], b[1]) and not torch.equal(a[1], groups[1])
        codes = (a[0].int() - b[0].int()) * update * a[1]
        moved += codes[:, chosen].sum(dtype=torch.float64).item()
    assert abs(moved / (24 * 8192 * int(chosen.sum()) * 1e-6) - 1.0) < 0.012


def test_group_range_follows_float_after_many_small_steps(device, generator):
    groups = _weight((512, 256), generator, device=device)
    exact = ops.int8_dequantize(*groups)
    for step in range(1000):
        update = (torch.randint(0, 2, exact.shape, generator=generator) * 2.0 - 1.0).to(device)
        exact += 1e-4 * update
        ops.int8_stochastic_update_(*groups, update, lr=1e-4, progress=step)
    x = ops.int8_dequantize(*groups)
    ratio = (x.amax(-1) - x.amin(-1)) / (exact.amax(-1) - exact.amin(-1))
    # Rounding is a random walk of its own: it widens the spread of the weights by about 4 %.
    assert 0.95 < ratio.mean().item() < 1.05


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_all_zero_group_can_move_either_way(sign, device):
    groups = ops.int8_quantize(torch.zeros(1, 256, device=device))
    _both(list(groups), torch.full((1, 256), sign, device=device), (1, 2, 3), lr=1e-3)
    assert (ops.int8_dequantize(*groups) - sign * 3e-3).abs().max() < 2e-5


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_groups_of_one_sign(sign, device, generator):
    x = sign * (0.5 + 0.1 * torch.rand(4, 256, generator=generator))
    groups = list(ops.int8_quantize(x.to(device)))
    before = ops.int8_dequantize(*groups)
    _both(groups, torch.full((4, 256), -sign, device=device), range(5), lr=0.06)
    assert (ops.int8_dequantize(*groups) - before + sign * 0.3).abs().max() < 5 * 0.61 / 250


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e38])
def test_an_element_with_a_senseless_update_keeps_its_value(bad, device, generator):
    groups = _weight((2, 512), generator, device=device)
    before = _copy(groups)
    update = torch.zeros(2, 512)
    update[1, 300] = bad
    _both(groups, update.to(device))
    assert _same(groups, before)
    # Its neighbours move as ever.
    update = torch.randn(2, 512, generator=generator)
    update[1, 300] = bad
    groups = _both(groups, update.to(device), lr=1e-3)
    x, was = ops.int8_dequantize(*groups), ops.int8_dequantize(*before)
    assert (x[1, 300] - was[1, 300]).abs() <= groups[1][1, 1]
    assert (x - was)[0].abs().max() > 1e-3


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_group_without_a_usable_scale_is_left_alone(scale, device, generator):
    groups = _weight((2, 512), generator, device=device)
    groups[1][0, 1] = scale
    before = _copy(groups)
    ops.int8_stochastic_update_(*groups, torch.ones(2, 512, device=device), lr=0.1, weight_decay=0.1)
    assert torch.equal(groups[0][0, 256:], before[0][0, 256:])
    assert torch.equal(groups[2][0, 1], before[2][0, 1])
    assert not torch.equal(groups[0][0, :256], before[0][0, :256])


def test_an_extreme_cannot_wrap_around(device):
    """A change too small for k + d to show may still be rounded up: code 0 must not become 255."""
    codes = torch.arange(256, dtype=torch.uint8, device=device).repeat(2000, 1)
    scale = torch.ones(2000, 1, device=device)
    zero = torch.full((2000, 1), 128, dtype=torch.uint8, device=device)
    update = torch.zeros(2000, 256, device=device)
    update[:, 0], update[:, -1] = -1.0, 1.0
    ops.int8_stochastic_update_(codes, scale, zero, update, lr=3e-6)
    x = ops.int8_dequantize(codes, scale, zero)
    assert ((x[:, 0] + 128).abs() < 1.1).all() and ((x[:, -1] - 127).abs() < 1.1).all()


@pytest.mark.parametrize("decay", ["before", "after"])
def test_decay(decay, device, generator):
    groups = _weight((64, 256), generator, device=device)
    was = ops.int8_dequantize(*groups).double()
    update = torch.randn(64, 256, generator=generator).to(device)
    ops.int8_stochastic_update_(*groups, update, lr=0.5, alpha=0.01, weight_decay=0.4, decay=decay)
    exact = 0.8 * was + (0.8 if decay == "after" else 1.0) * 0.005 * update.double()
    error = ops.int8_dequantize(*groups).double() - exact
    assert (error.abs() / groups[1]).max() < 1.001
    assert (error / groups[1]).mean().abs() < 4 * 0.5 / 128


def test_lr_and_progress_may_be_tensors(device, generator):
    update = torch.randn(3, 300, generator=generator).to(device)
    numbers = _weight((3, 300), generator, device=device)
    tensors = _copy(numbers)
    ops.int8_stochastic_update_(*numbers, update, lr=1e-3, progress=9)
    ops.int8_stochastic_update_(
        *tensors,
        update,
        lr=torch.tensor([1e-3], dtype=torch.float64, device=device),
        progress=torch.tensor([9, 4, 1], device=device),
    )
    assert _same(numbers, tensors)


def test_a_skipped_step_writes_nothing(device, generator):
    groups = _weight((3, 300), generator, device=device)
    before = _copy(groups)
    skipped = torch.tensor([9, 4, 0], device=device)
    ops.int8_stochastic_update_(*groups, torch.ones(3, 300, device=device), progress=skipped)
    assert _same(groups, before)


def test_the_step_counts_modulo_2_to_the_28(device, generator):
    update = torch.randn(3, 300, generator=generator).to(device)
    start = _weight((3, 300), generator, device=device)
    results = []
    for step in (5, 2**28 + 5, 6):
        results.append(_copy(start))
        ops.int8_stochastic_update_(*results[-1], update, lr=1e-4, progress=step)
    assert _same(results[0], results[1])
    assert not _same(results[0], results[2])


def test_autograd_sees_the_write(device, generator):
    groups = _weight((3, 300), generator, device=device)
    versions = [part._version for part in groups]
    ops.int8_stochastic_update_(*groups, torch.ones(3, 300, device=device))
    assert all(part._version > version for part, version in zip(groups, versions, strict=True))


class TestBadInput:
    @pytest.fixture
    def groups(self):
        return ops.int8_quantize(torch.zeros(2, 512))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"update": torch.zeros(2, 511)}, ValueError, "update: .*512.* expected, got .*511"),
            ({"update": torch.zeros(2, 512, dtype=torch.float64)}, TypeError, "update: dtype .* got float64"),
            ({"update": torch.zeros(512, 2).t()}, ValueError, "update: a contiguous tensor expected"),
            ({"group_size": 128}, ValueError, r"scale: shape \(2, 4\).* expected, got \(2, 2\)"),
            ({"group_size": 0}, ValueError, "group_size: a positive integer expected, got 0"),
            ({"tensor_id": -1}, ValueError, "tensor_id: .* got -1"),
            ({"tensor_id": 2**32}, ValueError, "tensor_id: .* got 4294967296"),
            ({"first_index": -4}, ValueError, "first_index: zero or more expected, got -4"),
            ({"decay": "never"}, ValueError, "decay: 'before' or 'after' expected, got 'never'"),
            ({"rounding": "up"}, ValueError, "rounding: 'nearest' or 'stochastic' expected, got 'up'"),
            ({"lr": torch.zeros(1)}, TypeError, "lr: dtype float64 expected, got float32"),
            ({"progress": torch.zeros(2, dtype=torch.int64)}, ValueError, "progress: .*3.*2"),
        ],
        ids=str,
    )
    def test_is_refused(self, groups, change, error, message):
        arguments = {"update": torch.zeros(2, 512)} | change
        before = _copy(groups)
        with pytest.raises(error, match=message):
            ops.int8_stochastic_update_(*groups, **arguments)
        assert _same(groups, before)

    def test_codes_dtype(self, groups):
        with pytest.raises(TypeError, match="codes: dtype uint8 expected, got float32"):
            ops.int8_stochastic_update_(groups.codes.float(), groups.scale, groups.zero, torch.zeros(2, 512))


def test_opcheck(generator):
    groups = _weight((3, 130), generator, 64)
    lr, progress = torch.tensor([1e-3], dtype=torch.float64), torch.tensor([1, 0, 1])
    arguments = (*groups, torch.randn(3, 130), lr, progress, 1.0, 0.0, False, 0, 0, 0, 64, True)
    torch.library.opcheck(torch.ops.frugalore.int8_stochastic_update_.default, arguments)
