"""coordinates_project, coordinates_back_ and coordinates_back_update_."""

from __future__ import annotations

import math

import pytest
import torch

from frugalore import ops
from frugalore.ops._options import OUTSIDE_RULES
from frugalore.ops.selection import KINDS, matrix_shape
from frugalore.reference import coordinates as reference
from frugalore.reference import int8 as reference_int8
from frugalore.reference import weight as reference_weight

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (1, 5), (7, 1), (17, 61), (5, 256), (3, 2303), (2, 4100), (0, 5), (5, 0)]
STREAM = {"seed": 2**40 + 7, "tensor_id": 2, "period": 3}
SCALES = {"inside_scale": 0.7, "outside_scale": -0.3}


def make_selection(kind, shape, device="cpu", density=0.3):
    rows, columns = matrix_shape(shape)
    if kind == "randk":
        return ops.Selection(kind, density=density, **STREAM)
    if kind in ("columns", "rows"):
        length = columns if kind == "columns" else rows
        return ops.Selection(kind, *ops.select(length, math.ceil(length * density), **STREAM, device=device))
    return ops.Selection(kind)


def normal(shape, dtype, generator, device="cpu"):
    """Normal numbers with some zeros of both signs."""
    x = torch.randn(shape, generator=generator)
    x.view(-1)[::7], x.view(-1)[3::11] = 0.0, -0.0
    return x.to(dtype).to(device)


def with_non_finite(x):
    """The same with three numbers that are not finite, where there is room."""
    for place, value in ((0, math.nan), (3, math.inf), (17, -math.inf)):
        if place < x.numel():
            x.view(-1)[place] = value
    return x


def assert_same_bits(ours, spec):
    """Equal to the bit, but for which NaN it is."""
    ours, spec = ours.cpu(), spec.cpu()
    assert ours.shape == spec.shape and ours.dtype == spec.dtype
    assert torch.equal(ours.isnan(), spec.isnan())
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[ours.element_size()]
    assert torch.equal(ours.nan_to_num(7.0).view(integer), spec.nan_to_num(7.0).view(integer))


def a_step(device="cpu", **options):
    lr = torch.tensor([options.pop("lr", 0.1)], dtype=torch.float64, device=device)
    progress = torch.tensor(options.pop("progress", [4, 0, 1]), device=device)
    return ops.Step(lr, progress, **{"seed": 5, "tensor_id": 9, **options})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [*SHAPES, (), (600,), (6, 5, 3, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_project_equals_reference_to_the_bit(kind, shape, dtype, device, generator):
    grad = with_non_finite(normal(shape, dtype, generator))
    r = ops.coordinates_project(grad.to(device), make_selection(kind, shape, device))
    selection = make_selection(kind, shape)
    assert r.shape == selection.state_shape(*matrix_shape(shape))
    assert_same_bits(r, reference.coordinates_project(grad, selection))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("outside", OUTSIDE_RULES)
def test_back_equals_reference_to_the_bit(kind, shape, outside, device, generator):
    grad = with_non_finite(normal(shape, torch.float32, generator))
    direction = normal(make_selection(kind, shape).state_shape(*shape), torch.float32, generator)
    out, spec = torch.full(shape, 9.0, device=device), torch.full(shape, 9.0)
    options = {"outside": outside, **SCALES}
    selection = make_selection(kind, shape, device)
    assert ops.coordinates_back_(out, direction.to(device), grad.to(device), selection, **options) is out
    reference.coordinates_back_(spec, direction, grad, make_selection(kind, shape), **options)
    assert_same_bits(out, spec)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
def test_back_of_every_dtype(kind, direction_dtype, grad_dtype, device, generator):
    shape = (9, 300)
    grad = with_non_finite(normal(shape, grad_dtype, generator))
    direction = normal(make_selection(kind, shape).state_shape(*shape), direction_dtype, generator)
    for outside in OUTSIDE_RULES:
        out, spec = torch.empty(shape, device=device), torch.empty(shape)
        selection = make_selection(kind, shape, device)
        ops.coordinates_back_(out, direction.to(device), grad.to(device), selection, outside=outside)
        reference.coordinates_back_(spec, direction, grad, make_selection(kind, shape), outside=outside)
        assert_same_bits(out, spec)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(37, 61), (5, 2303)], ids=str)
def test_panels_are_the_whole(kind, shape, device, generator):
    rows = shape[0]
    selection = make_selection(kind, shape, device)
    grad = normal(shape, torch.bfloat16, generator, device)
    direction = normal(selection.state_shape(*shape), torch.float32, generator, device)
    whole = ops.coordinates_back_(torch.empty(shape, device=device), direction, grad, selection, **SCALES)
    for height in (1, 2, 7):
        panels = torch.full(shape, 9.0, device=device)
        for first in range(0, rows, height):
            panel = slice(first, first + height)
            place = {"first_row": first, "rows": rows}
            ops.coordinates_back_(panels[panel], direction, grad[panel], selection, **place, **SCALES)
        assert torch.equal(panels, whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("shape", [(17, 61), (4, 513)], ids=str)
def test_back_and_project_are_inverse(kind, density, shape, device, generator):
    selection = make_selection(kind, shape, device, density)
    direction = normal(selection.state_shape(*shape), torch.float32, generator, device)
    dense = torch.empty(shape, device=device)
    ops.coordinates_back_(dense, direction, None, selection, outside="none")
    assert int((dense != 0).sum()) == int((direction != 0).sum())
    assert torch.equal(ops.coordinates_project(dense, selection), direction)


@pytest.mark.parametrize("kind", KINDS)
def test_inside_and_outside_are_the_whole_gradient(kind, device, generator):
    shape = (23, 700)
    selection = make_selection(kind, shape, device)
    grad = normal(shape, torch.bfloat16, generator, device)
    r = ops.coordinates_project(grad, selection)
    out = ops.coordinates_back_(torch.empty(shape, device=device), r, grad, selection, outside="sgd")
    assert torch.equal(out, grad.float())


def test_numbers_outside_that_are_not_finite(device):
    grad = torch.tensor([[math.nan, math.inf, -math.inf, 0.0, -0.0, -2.0]], device=device)
    selection, nothing = ops.Selection("none"), torch.zeros(0, device=device)
    out = torch.empty_like(grad)
    ops.coordinates_back_(out, nothing, grad, selection, outside="sign", outside_scale=0.5)
    assert out[0, :3].isnan().all() and out[0, 3:].tolist() == [0.0, 0.0, -0.5]
    ops.coordinates_back_(out, nothing, grad, selection, outside="sgd", outside_scale=0.5)
    assert not out[0, :3].isfinite().any() and out[0, 3:].tolist() == [0.0, 0.0, -1.0]
    ops.coordinates_back_(out, nothing, grad, selection, outside="none")
    assert not out.any()


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_inside_do_not_look_at_the_gradient(kind, device, generator):
    shape = (8, 300)
    selection = make_selection(kind, shape, device)
    direction = normal(selection.state_shape(*shape), torch.float32, generator, device)
    grad = torch.full(shape, math.nan, device=device)
    out = ops.coordinates_back_(torch.empty(shape, device=device), direction, grad, selection)
    assert int(out.isfinite().sum()) == direction.numel()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [2303, 300])
def test_every_instruction_set_gives_the_same_bytes(isa, kind, columns, generator):
    shape = (5, columns)
    selection = make_selection(kind, shape)
    for dtype in DTYPES:
        grad = with_non_finite(normal(shape, dtype, generator))
        r = ops.coordinates_project(grad, selection)
        assert_same_bits(r, reference.coordinates_project(grad, selection))
        for outside in OUTSIDE_RULES:
            out, spec = torch.empty(shape), torch.empty(shape)
            ops.coordinates_back_(out, r, grad, selection, outside=outside, **SCALES)
            reference.coordinates_back_(spec, r, grad, selection, outside=outside, **SCALES)
            assert_same_bits(out, spec)


@pytest.mark.parametrize("kind", KINDS)
def test_thread_count_does_not_matter(kind, generator):
    shape = (301, 1200)
    selection = make_selection(kind, shape)
    grad = normal(shape, torch.bfloat16, generator)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 5):
            torch.set_num_threads(count)
            r = ops.coordinates_project(grad, selection)
            results.append((r, ops.coordinates_back_(torch.empty(shape), r, grad, selection, **SCALES)))
    finally:
        torch.set_num_threads(threads)
    for one, five in zip(*results, strict=True):
        assert torch.equal(one, five)


class TestBackUpdate:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("outside", OUTSIDE_RULES)
    @pytest.mark.parametrize("panel_bytes", [1, 3000, 1 << 24])
    def test_a_float_weight_equals_the_reference(self, kind, dtype, outside, panel_bytes, device, generator):
        shape = (23, 301)
        weight, grad = normal(shape, dtype, generator), with_non_finite(normal(shape, dtype, generator))
        selection = make_selection(kind, shape)
        direction = normal(selection.state_shape(*shape), dtype, generator)
        update, ours = torch.empty(shape), weight.to(device, copy=True)
        reference.coordinates_back_(update, direction, grad, selection, outside=outside, **SCALES)
        write = {"alpha": -1.0, "weight_decay": 0.1, "seed": 5, "tensor_id": 9}
        spec = weight.clone()
        reference_weight.weight_update_(spec, update, lr=0.1, progress=4, **write)
        ops.coordinates_back_update_(
            ours,
            direction.to(device),
            None if outside == "none" else grad.to(device),
            make_selection(kind, shape, device),
            a_step(device, weight_decay=0.1),
            outside=outside,
            **SCALES,
            panel_bytes=panel_bytes,
        )
        assert_same_bits(ours, spec)
        assert not torch.equal(spec, weight)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("panel_bytes", [1, 1 << 24])
    def test_an_int8_weight_equals_the_reference(self, kind, panel_bytes, device, generator):
        shape = (13, 300)
        weight = ops.int8_quantize(torch.randn(shape, generator=generator) * 0.05, 128)
        grad, selection = normal(shape, torch.bfloat16, generator), make_selection(kind, shape)
        direction = normal(selection.state_shape(*shape), torch.float32, generator)
        ours = ops.Int8Groups(*(t.to(device, copy=True) for t in weight))
        update = reference.coordinates_back_(torch.empty(shape), direction, grad, selection, **SCALES)
        write = {"alpha": -1.0, "seed": 5, "tensor_id": 9, "group_size": 128}
        reference_int8.int8_stochastic_update_(*weight, update, lr=0.001, progress=4, **write)
        ops.coordinates_back_update_(
            ours,
            direction.to(device),
            grad.to(device),
            make_selection(kind, shape, device),
            a_step(device, lr=0.001),
            **SCALES,
            group_size=128,
            panel_bytes=panel_bytes,
        )
        for a, b in zip(ours, weight, strict=True):
            assert torch.equal(a.cpu(), b)

    @pytest.mark.parametrize("shape", [(), (40,), (6, 5, 3, 3)], ids=str)
    def test_a_parameter_that_is_no_matrix(self, shape, device, generator):
        weight = torch.nn.Parameter(normal(shape, torch.float32, generator, device))
        grad = normal(shape, torch.float32, generator, device)
        expected = weight.detach() - 0.1 * grad.sign()
        version = weight._version
        nothing = torch.zeros(0, device=device)
        ops.coordinates_back_update_(weight, nothing, grad, ops.Selection("none"), a_step(device))
        assert torch.allclose(weight.detach(), expected) and weight._version > version

    def test_nothing_inside_and_nothing_outside_still_decays(self, device):
        weight = torch.full((4, 30), 2.0, device=device)
        step = a_step(device, weight_decay=0.5)
        nothing = torch.zeros(0, device=device)
        ops.coordinates_back_update_(weight, nothing, None, ops.Selection("none"), step, outside="none")
        assert torch.equal(weight, torch.full_like(weight, 2.0 * 0.95))

    def test_an_element_whose_gradient_is_not_finite_stays(self, device, generator):
        weight, shape = torch.ones(4, 30, device=device), (4, 30)
        grad = normal(shape, torch.float32, generator, device)
        grad[1, 2], grad[3, 4] = math.nan, math.inf
        nothing = torch.zeros(0, device=device)
        step = a_step(device, weight_decay=0.5)
        for outside in ("sign", "sgd"):
            ops.coordinates_back_update_(weight, nothing, grad, ops.Selection("none"), step, outside=outside)
        assert (weight == 1).nonzero().tolist() == [[1, 2], [3, 4]]

    def test_a_skipped_step_writes_nothing(self, device, generator):
        weight = ops.int8_quantize(torch.randn(8, 64, generator=generator).to(device))
        before = [t.clone() for t in weight]
        step = a_step(device, progress=[1, 1, 0], weight_decay=0.5)
        direction, grad = (torch.ones(8, 64, device=device) for _ in range(2))
        ops.coordinates_back_update_(weight, direction, grad, ops.Selection("all"), step)
        assert all(torch.equal(a, b) for a, b in zip(before, weight, strict=True))

    @pytest.mark.parametrize("shape", [(0, 5), (5, 0)], ids=str)
    def test_an_empty_weight(self, shape, device):
        selection = ops.Selection("all")
        tensors = [torch.zeros(shape, device=device) for _ in range(3)]
        ops.coordinates_back_update_(*tensors, selection, a_step(device))


class TestBadInput:
    @pytest.mark.parametrize(
        ("grad", "selection", "error", "message"),
        [
            (
                torch.zeros(3, 4, dtype=torch.float64),
                ops.Selection("all"),
                TypeError,
                "grad: dtype .* float64",
            ),
            (torch.zeros(4, 3).t(), ops.Selection("all"), ValueError, "grad: a contiguous tensor expected"),
            (
                torch.zeros(3, 4),
                ops.Selection.of("columns", torch.tensor([1]), 5),
                ValueError,
                "selection.below: 5 elements expected, got 6",
            ),
            (
                torch.zeros(3, 4),
                ops.Selection.of("rows", torch.tensor([1]), 4),
                ValueError,
                "selection.below: 4 elements expected, got 5",
            ),
            (torch.zeros(3, 4), ops.Selection("rows"), ValueError, "below and chosen expected"),
            (torch.zeros(3, 4), ops.Selection("some"), ValueError, "selection.kind: .* got 'some'"),
            (torch.zeros(3, 4), ops.Selection("randk", density=2.0), ValueError, "density: .* got 2.0"),
            (
                torch.zeros(3, 4),
                ops.Selection("randk", density=0.5, tensor_id=-1),
                ValueError,
                "selection: a tensor_id .* got -1 and 0",
            ),
        ],
    )
    def test_project(self, grad, selection, error, message):
        with pytest.raises(error, match=message):
            ops.coordinates_project(grad, selection)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (
                {"out": torch.full((6, 10), 9.0).double()},
                TypeError,
                "out: dtype float32 expected, got float64",
            ),
            ({"out": torch.full((60,), 9.0)}, ValueError, r"out: a matrix expected, got shape \(60,\)"),
            ({"out": torch.full((10, 6), 9.0).t()}, ValueError, "out: a contiguous tensor expected"),
            (
                {"direction": torch.ones(6, 4)},
                ValueError,
                r"direction: shape \(6, 3\) expected, got \(6, 4\)",
            ),
            ({"direction": torch.ones(3, 6).t()}, ValueError, "direction: a contiguous tensor expected"),
            ({"direction": torch.ones(6, 3).long()}, TypeError, "direction: dtype .* got int64"),
            ({"grad": torch.ones(6, 9)}, ValueError, r"grad: the shape of out, \(6, 10\) expected"),
            ({"grad": torch.ones(10, 6).t()}, ValueError, "grad: a contiguous tensor expected"),
            ({"grad": torch.ones(6, 10).double()}, TypeError, "grad: dtype .* got float64"),
            ({"grad": None}, ValueError, "grad: a tensor expected where the outside moves, got none"),
            ({"first_row": -1, "rows": 6}, ValueError, "first_row: 0 to 0 expected for 6 of 6 rows, got -1"),
            ({"first_row": 1, "rows": 6}, ValueError, "first_row: 0 to 0 expected for 6 of 6 rows, got 1"),
            ({"rows": 2**62}, ValueError, "rows: 0 to .* got 4611686018427387904 rows"),
            ({"outside": "lion"}, ValueError, "outside: one of 'sign', 'sgd', 'none' expected, got 'lion'"),
            ({"inside_scale": math.nan}, ValueError, "inside_scale: a finite number expected, got nan"),
            ({"outside_scale": math.inf}, ValueError, "outside_scale: a finite number expected, got inf"),
        ],
    )
    def test_back(self, change, error, message):
        selection = ops.Selection.of("columns", torch.tensor([1, 2, 5]), 10)
        arguments = {
            "out": torch.full((6, 10), 9.0),
            "direction": torch.ones(6, 3),
            "grad": torch.ones(6, 10),
        }
        arguments |= {"selection": selection} | change
        with pytest.raises(error, match=message):
            ops.coordinates_back_(**arguments)
        assert bool((arguments["out"] == 9).all())

    def test_memory_is_not_shared(self):
        out = torch.full((4, 10), 9.0)
        selection = ops.Selection("all")
        with pytest.raises(ValueError, match=r"direction: memory of its own expected, got some .* of out"):
            ops.coordinates_back_(out, out, torch.zeros(4, 10), selection)
        with pytest.raises(ValueError, match=r"grad: memory of its own expected, got some .* of out"):
            ops.coordinates_back_(out, torch.zeros(4, 10), out, selection)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"weight": torch.ones(6, 10).double()}, TypeError, "weight: dtype .* got torch.float64"),
            ({"weight": torch.ones(10, 6).t()}, ValueError, "weight: a contiguous tensor expected"),
            ({"weight": (torch.ones(6, 10),) * 2}, ValueError, "weight: .* expected, got 2 parts"),
            (
                {"direction": torch.ones(3, 6)},
                ValueError,
                r"direction: shape \(6, 3\) expected, got \(3, 6\)",
            ),
            ({"grad": torch.ones(10, 6)}, ValueError, r"grad: the shape of weight, \(6, 10\), expected"),
            ({"grad": torch.ones(6, 10, device="meta")}, ValueError, "grad: device cpu expected, got meta"),
            ({"direction": torch.ones(6, 3, device="meta")}, ValueError, "direction: device cpu expected"),
            ({"outside": "none ", "grad": None}, ValueError, "outside: .* got 'none '"),
            ({"outside": "sgd", "grad": None}, ValueError, "grad: a tensor expected"),
            ({"step": a_step(alpha=math.nan)}, ValueError, "alpha: a finite number expected, got nan"),
            ({"step": a_step(rounding="up")}, ValueError, "rounding: .* got 'up'"),
            ({"inside_scale": math.inf}, ValueError, "inside_scale: a finite number expected"),
        ],
    )
    def test_back_update(self, change, error, message):
        selection = ops.Selection.of("columns", torch.tensor([1, 2, 5]), 10)
        arguments = {"weight": torch.ones(6, 10), "direction": torch.ones(6, 3), "grad": torch.ones(6, 10)}
        arguments |= {"selection": selection, "step": a_step()} | change
        with pytest.raises(error, match=message):
            ops.coordinates_back_update_(**arguments, panel_bytes=1)
        weight = arguments["weight"]
        assert all(bool((part == 1).all()) for part in (weight if isinstance(weight, tuple) else [weight]))


def test_autograd_sees_the_write():
    out = torch.zeros(3, 4)
    version = out._version
    ops.coordinates_back_(out, torch.zeros(0), torch.ones(3, 4), ops.Selection("none"))
    assert out._version > version


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind, generator):
    shape = (6, 40)
    grad, selection = torch.randn(shape, generator=generator), make_selection(kind, shape)
    names, frugalore = selection.arguments(), torch.ops.frugalore
    torch.library.opcheck(frugalore.coordinates_project.default, (grad, *names))
    direction = torch.randn(selection.state_shape(*shape), generator=generator)
    back = (direction, grad, *names)
    torch.library.opcheck(
        frugalore.coordinates_back_.default, (torch.empty(shape), *back, 0, 6, "sign", 1.0, 1.0)
    )
    update = ([torch.randn(shape)], *back, "sign", 1.0, 1.0, *a_step(), 256, 500)
    torch.library.opcheck(frugalore.coordinates_back_update_.default, update)
