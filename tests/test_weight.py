"""weight_update_."""

from __future__ import annotations

import pytest
import torch

from frugalore import ops
from frugalore.reference import weight as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHORT = [torch.bfloat16, torch.float16]
OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 50.0, "decay": "after", "alpha": -0.25},
    {"rounding": "nearest", "weight_decay": 0.1},
]


def _both(weight, update, **options):
    spec = weight.cpu().clone()
    ops.weight_update_(weight, update, **options)
    reference.weight_update_(spec, update.cpu(), **options)
    assert torch.equal(weight.cpu(), spec)
    return weight


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 257), (2, 3, 130), (2, 1030)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("update_dtype", DTYPES, ids=str)
def test_equals_reference_to_the_bit(shape, dtype, update_dtype, device, generator):
    for size in (0.02, 1e-6, 1e3):
        for lr in (1e-2, 1e-5):
            for options in OPTIONS:
                weight = (torch.randn(shape, generator=generator) * size).to(dtype).to(device)
                update = torch.randn(shape, generator=generator).to(update_dtype).to(device)
                _both(weight, update, lr=lr, seed=-3, tensor_id=2**32 - 1, first_index=6, **options)


@pytest.mark.parametrize("first_index", [0, 1, 2**32 - 6, 2**40 + 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set_gives_the_same_bytes(isa, first_index, dtype, generator):
    weight = (torch.randn(37, 101, generator=generator) * 0.02).to(dtype)
    _both(weight, torch.randn(37, 101, generator=generator), lr=1e-4, first_index=first_index)


def test_thread_count_does_not_matter(generator):
    start = torch.randn(301, 1000, generator=generator).bfloat16()
    update = torch.randn(301, 1000, generator=generator)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 5):
            torch.set_num_threads(count)
            results.append(start.clone())
            ops.weight_update_(results[-1], update, lr=1e-3)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_panels_give_the_same_bytes_as_one_call(device, generator):
    start = torch.randn(1000, generator=generator).bfloat16().to(device)
    update = torch.randn(1000, generator=generator).to(device)
    whole, panels = start.clone(), start.clone()
    ops.weight_update_(whole, update, lr=1e-3, first_index=3)
    for first, last in ((0, 1), (1, 514), (514, 1000)):
        ops.weight_update_(panels[first:last], update[first:last], lr=1e-3, first_index=3 + first)
    assert torch.equal(whole, panels)


def test_empty(device):
    ops.weight_update_(torch.zeros(0, 3, device=device), torch.zeros(0, 3, device=device))


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("value", [0.02, -1.0, 1e-6, 1000.0])
def test_stochastic_rounding_is_unbiased(dtype, value, device):
    """An update of 0.3 of the last place, 200 000 times, from one start."""
    start = torch.tensor(value, dtype=dtype)
    toward_zero = torch.nextafter(start, torch.zeros((), dtype=dtype))
    last_place = (start - toward_zero).double().item()
    weight = start.repeat(200_000).to(device)
    update = torch.full((200_000,), last_place, device=device)
    ops.weight_update_(weight, update, lr=0.3)
    realised = (weight.double() - start.double().item()).mean().item() / last_place
    assert abs(realised - 0.3) < 4 * (0.21 / 200_000) ** 0.5 + 1e-3
    ops.weight_update_(nearest := start.repeat(4).to(device), update[:4], lr=0.3, rounding="nearest")
    assert torch.equal(nearest.cpu(), start.repeat(4))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_update_changes_nothing(dtype, device, generator):
    weight = torch.cat((torch.randn(500, generator=generator), torch.tensor([0.0, -0.0, 1e-7, 6e4])))
    weight = weight.to(dtype).to(device)
    before = weight.clone()
    for seed in range(5):
        ops.weight_update_(weight, torch.zeros_like(weight), lr=0.1, seed=seed)
    assert torch.equal(weight, before)


def test_every_finite_half_survives_a_zero_update(device):
    for dtype in SHORT:
        values = torch.arange(2**16).to(torch.uint16).view(dtype).to(device)
        values = values[values.isfinite()]
        weight = values.clone()
        ops.weight_update_(weight, torch.zeros_like(weight))
        assert torch.equal(weight, values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_an_element_whose_new_value_is_not_finite_keeps_its_value(dtype, rounding, device, generator):
    weight = torch.randn(100, generator=generator).to(dtype).to(device)
    before = weight.clone()
    update = torch.ones(100)
    bad = torch.tensor([3, 50, 77, 99])
    update[bad] = torch.tensor([float("nan"), float("inf"), float("-inf"), 3e38])
    _both(weight, update.to(device), lr=10.0, rounding=rounding)
    changed = (weight != before).cpu()
    assert not changed[bad].any() and int(changed.sum()) == 96


def test_overflow_ends_at_the_largest_half_or_keeps(device):
    weight = torch.full((8,), 65000.0, dtype=torch.float16, device=device)
    nearest = weight.clone()
    _both(weight, torch.full((8,), 5000.0, device=device))
    assert (weight == 65504.0).all()
    _both(nearest, torch.full((8,), 5000.0, device=device), rounding="nearest")
    assert (nearest == 65000.0).all()


@pytest.mark.parametrize("decay", ["before", "after"])
def test_decay(decay, device, generator):
    weight = torch.randn(1000, generator=generator, dtype=torch.float32).to(device)
    update = torch.randn(1000, generator=generator).to(device)
    exact = 0.8 * weight.double() - (0.8 if decay == "after" else 1.0) * 0.005 * update.double()
    ops.weight_update_(weight, update, lr=0.5, alpha=-0.01, weight_decay=0.4, decay=decay)
    torch.testing.assert_close(weight.double(), exact, rtol=1e-6, atol=1e-7)


def test_tensors_for_lr_and_progress_and_a_skipped_step(device, generator):
    update = torch.randn(300, generator=generator).to(device)
    numbers = torch.randn(300, generator=generator).bfloat16().to(device)
    tensors, skipped = numbers.clone(), numbers.clone()
    lr = torch.tensor([1e-3], dtype=torch.float64, device=device)
    ops.weight_update_(numbers, update, lr=1e-3, progress=2**28 + 9)
    ops.weight_update_(tensors, update, lr=lr, progress=torch.tensor([9, 4, 1], device=device))
    assert torch.equal(numbers, tensors)
    before = skipped.clone()
    ops.weight_update_(skipped, update, lr=lr, progress=torch.tensor([9, 4, 0], device=device))
    assert torch.equal(skipped, before)


def test_autograd_sees_the_write(device):
    weight = torch.zeros(8, device=device)
    version = weight._version
    ops.weight_update_(weight, torch.ones(8, device=device))
    assert weight._version > version


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.zeros(4, dtype=torch.float64)}, TypeError, "weight: dtype .* got float64"),
        ({"update": torch.zeros(4, dtype=torch.int64)}, TypeError, "update: dtype .* got int64"),
        ({"update": torch.zeros(5)}, ValueError, r"update: .*\(4,\).* expected, got \(5,\)"),
        ({"update": torch.zeros(8)[::2]}, ValueError, "update: a contiguous tensor expected"),
        ({"tensor_id": -1}, ValueError, "tensor_id: .* got -1"),
        ({"first_index": -4}, ValueError, "first_index: zero or more expected, got -4"),
        ({"decay": "never"}, ValueError, "decay: 'before' or 'after' expected, got 'never'"),
        ({"rounding": "up"}, ValueError, "rounding: 'nearest' or 'stochastic' expected, got 'up'"),
        ({"lr": torch.zeros(2, dtype=torch.float64)}, ValueError, "lr: .*1.*2"),
    ],
    ids=str,
)
def test_bad_input_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        ops.weight_update_(**({"weight": torch.zeros(4), "update": torch.ones(4)} | change))


def test_memory_of_its_own():
    weight = torch.zeros(4)
    with pytest.raises(ValueError, match="update: memory of its own expected"):
        ops.weight_update_(weight, weight)


def test_opcheck():
    lr, progress = torch.tensor([1e-3], dtype=torch.float64), torch.tensor([1, 0, 1])
    arguments = (torch.zeros(130).bfloat16(), torch.randn(130), lr, progress, 1.0, 0.0, False, 0, 0, 0, True)
    torch.library.opcheck(torch.ops.frugalore.weight_update_.default, arguments)
