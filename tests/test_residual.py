"""residual_add_."""

from __future__ import annotations

import math

import pytest
import torch

from frugalore import ops
from frugalore.reference import residual as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (1, 7), (7, 1), (3, 256), (17, 61), (5, 1030), (0, 4), (4, 0)]
RULES = [
    {"outside": "sign"},
    {"outside": "sgd", "inside_scale": 0.25, "outside_scale": -1.5},
    {"outside": "scaled", "axis": "columns", "inside_scale": 0.3},
    {"outside": "scaled", "axis": "rows", "outside_scale": 0.7},
]


def _factor(shape, options, generator):
    if options["outside"] != "scaled":
        return None
    return torch.randn(shape[options["axis"] == "columns"], generator=generator)


def _both(update, grad, projected, factor, device="cpu", **options):
    spec, ours = update.clone(), update.to(device)
    operands = [t if t is None else t.to(device) for t in (grad, projected, factor)]
    ops.residual_add_(ours, *operands, **options)
    reference.residual_add_(spec, grad, projected, factor, **options)
    ours = ours.cpu()
    assert torch.equal(ours.isnan(), spec.isnan())
    assert torch.equal(ours.nan_to_num(), spec.nan_to_num())
    return ours


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", RULES, ids=str)
def test_equals_reference_to_the_bit(dtype, grad_dtype, options, device, generator):
    for shape in SHAPES:
        update = torch.randn(shape, generator=generator).to(dtype)
        grad = torch.randn(shape, generator=generator).to(grad_dtype)
        factor = _factor(shape, options, generator)
        _both(update, grad, None, factor, device, **options)
        for projected_dtype in {dtype, torch.float32}:
            projected = torch.randn(shape, generator=generator).to(projected_dtype)
            projected[::2] = grad[::2].to(projected_dtype)  # Often an exact zero outside.
            _both(update, grad, projected, factor, device, **options)


@pytest.mark.parametrize("options", RULES, ids=str)
def test_every_instruction_set_gives_the_same_bytes(isa, options, generator):
    shape = (37, 301)
    for dtype in DTYPES:
        update = torch.randn(shape, generator=generator).to(dtype)
        grad = torch.randn(shape, generator=generator).bfloat16()
        projected = torch.randn(shape, generator=generator)
        grad[3, 5], projected[7, 11] = math.nan, math.inf
        _both(update, grad, projected, _factor(shape, options, generator), **options)


@pytest.mark.parametrize("options", RULES, ids=str)
def test_thread_count_does_not_matter(options, generator):
    shape = (301, 1001)
    start, grad = (torch.randn(shape, generator=generator) for _ in range(2))
    factor = _factor(shape, options, generator)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 5):
            torch.set_num_threads(count)
            results.append(start.clone())
            ops.residual_add_(results[-1], grad, None, factor, **options)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_the_sign_of_zero_is_zero(device):
    x = torch.tensor([[0.0, -0.0, 1e-45, -1e-45, 3.0, -2.0]], device=device)
    update = torch.zeros_like(x)
    ops.residual_add_(update, x)
    assert update.tolist() == [[0.0, 0.0, 1.0, -1.0, 1.0, -1.0]]
    ops.residual_add_(update, x, x.clone(), inside_scale=2.0)
    assert update.tolist() == [[0.0, 0.0, 2.0, -2.0, 2.0, -2.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", RULES, ids=str)
def test_what_is_not_finite_becomes_one_nan(dtype, options, device, generator):
    """Of the same bits everywhere, and in its own element only."""
    update = torch.zeros(2, 12, dtype=dtype)
    grad, projected = torch.randn(2, 12, generator=generator), torch.zeros(2, 12)
    grad[0, 1], grad[0, 2], grad[0, 3] = math.nan, math.inf, -math.inf
    projected[1, 4], projected[1, 5] = math.inf, -math.nan
    grad[1, 6] = projected[1, 6] = math.inf
    update[1, 7] = -math.nan
    bad = torch.zeros(2, 12, dtype=torch.bool)
    bad[0, 1:4] = bad[1, 4:8] = True
    factor = _factor((2, 12), options, generator)
    result = _both(update, grad, projected, factor, device, **options)
    assert torch.equal(result.isnan(), bad)
    integer = {2: torch.int16, 4: torch.int32}[result.element_size()]
    expected = torch.tensor(math.nan).to(dtype).view(integer)
    assert (result.view(integer)[bad] == expected).all()


def test_an_update_that_overflows_is_infinite(device):
    update = torch.full((1, 4), 60000.0, dtype=torch.float16, device=device)
    ops.residual_add_(update, torch.full((1, 4), 60000.0, device=device), outside="sgd")
    assert update.isinf().all()


def test_views_that_are_not_aligned(device, generator):
    update = torch.randn(4, 33, generator=generator).bfloat16().to(device)
    grad = torch.randn(4 * 33 + 1, generator=generator).to(device)[1:].view(4, 33)
    expected = (update.float() + grad.sign()).bfloat16()
    ops.residual_add_(update[1:3], grad[1:3])
    assert torch.equal(update[1:3], expected[1:3])
    ops.residual_add_(update[:1], grad[:1])
    ops.residual_add_(update[3:], grad[3:])
    assert torch.equal(update, expected)


def test_autograd_sees_the_write(device):
    update = torch.zeros(2, 3, device=device)
    version = update._version
    ops.residual_add_(update, torch.ones(2, 3, device=device))
    assert update._version > version


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"update": torch.zeros(2, 3).double()}, TypeError, "update: dtype .* got float64"),
        ({"update": torch.zeros(6)}, ValueError, r"update: a matrix expected, got shape \(6,\)"),
        ({"update": torch.zeros(3, 2).t()}, ValueError, "update: a contiguous tensor expected"),
        ({"grad": torch.zeros(2, 3).long()}, TypeError, "grad: dtype .* got int64"),
        ({"grad": torch.zeros(3, 2)}, ValueError, r"grad: .*\(2, 3\).* expected, got \(3, 2\)"),
        ({"grad": torch.zeros(3, 2).t()}, ValueError, "grad: a contiguous tensor expected"),
        ({"projected": torch.zeros(2, 3).half()}, TypeError, "projected: dtype .* got float16"),
        ({"projected": torch.zeros(2, 4)}, ValueError, r"projected: .*\(2, 3\).* expected, got \(2, 4\)"),
        ({"factor": torch.zeros(3)}, ValueError, "factor: expected for outside 'scaled'.*got one for 'sign'"),
        ({"outside": "scaled"}, ValueError, "factor: expected for outside 'scaled'.*got none for 'scaled'"),
        ({"outside": "scaled", "factor": torch.zeros(2)}, ValueError, "factor: 3 elements expected, got 2"),
        (
            {"outside": "scaled", "factor": torch.zeros(3), "axis": "rows"},
            ValueError,
            "factor: 2 elements expected, got 3",
        ),
        (
            {"outside": "scaled", "factor": torch.zeros(3).half()},
            TypeError,
            "factor: dtype float32 expected, got float16",
        ),
        ({"outside": "lion"}, ValueError, "outside: one of sign, sgd, scaled expected, got 'lion'"),
        ({"axis": "both"}, ValueError, "axis: 'columns' or 'rows' expected, got 'both'"),
        ({"inside_scale": math.nan}, ValueError, "inside_scale: a finite number expected, got nan"),
        ({"outside_scale": math.inf}, ValueError, "outside_scale: a finite number expected, got inf"),
    ],
    ids=str,
)
def test_bad_input_is_refused(change, error, message):
    arguments = {"update": torch.zeros(2, 3), "grad": torch.ones(2, 3)} | change
    before = arguments["update"].clone()
    with pytest.raises(error, match=message):
        ops.residual_add_(**arguments)
    assert torch.equal(arguments["update"], before)


def test_memory_of_its_own():
    update, grad = torch.zeros(2, 3), torch.ones(2, 3)
    for arguments in ((update, update), (update, grad, update)):
        with pytest.raises(ValueError, match="memory of its own expected"):
            ops.residual_add_(*arguments)


def test_opcheck(generator):
    update, grad = (torch.randn(5, 130, generator=generator) for _ in range(2))
    op = torch.ops.frugalore.residual_add_.default
    torch.library.opcheck(op, (update.clone(), grad, None, None, "sign", 1.0, 1.0, False))
    torch.library.opcheck(op, (update.clone(), grad, update, torch.ones(5), "scaled", 1.0, 0.5, True))
