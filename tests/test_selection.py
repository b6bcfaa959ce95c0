"""select, Selection, and which elements "randk" names."""

from __future__ import annotations

import math

import pytest
import torch

from frugalore import ops
from frugalore.reference import selection as reference

STREAM = {"seed": 2**40 + 7, "tensor_id": 2, "period": 3}
SIZES = [
    (0, 0),
    (1, 0),
    (1, 1),
    (2, 1),
    (5, 3),
    (256, 64),
    (1030, 1),
    (1030, 1030),
    (4097, 1024),
    (4097, 4096),
]


def assert_same_choice(ours, spec):
    for a, b in zip(ours, spec, strict=True):
        assert a.dtype == b.dtype == torch.int32
        assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize(("n", "k"), SIZES)
def test_select_equals_reference(n, k, device):
    ours = ops.select(n, k, **STREAM, device=device)
    assert all(t.device.type == device.type for t in ours)
    assert_same_choice(ours, reference.select(n, k, **STREAM))


@pytest.mark.parametrize("n", [513, 3001])
def test_every_instruction_set_makes_the_same_choice(isa, n):
    assert_same_choice(ops.select(n, n // 4, **STREAM), reference.select(n, n // 4, **STREAM))


def test_equal_words_are_chosen_by_index(device):
    """Among 300000 words some 10 pairs are equal; each is the edge of one choice."""
    n = 300_000
    words = reference.random_words(n, *STREAM.values(), reference.PURPOSE_SELECTION)
    order = torch.argsort(words, stable=True)
    ties = (words[order][1:] == words[order][:-1]).nonzero().flatten()
    assert ties.numel() > 2
    for k in (ties[:3] + 1).tolist():
        below, chosen = ops.select(n, k, **STREAM, device=device)
        assert torch.equal(chosen.cpu().long(), order[:k].sort().values)
        assert torch.equal(below[chosen.long()].cpu(), torch.arange(k, dtype=torch.int32))


def test_each_index_is_chosen_as_often(device):
    n, k, periods = 40, 12, 2000
    counts = torch.zeros(n)
    for period in range(periods):
        _, chosen = ops.select(n, k, seed=1, tensor_id=0, period=period, device=device)
        counts[chosen.cpu().long()] += 1
    p = k / n
    assert (counts / periods - p).abs().max() < 5 * math.sqrt(p * (1 - p) / periods)


def test_each_name_is_another_choice(device):
    n, k = 4000, 1000
    first = set(ops.select(n, k, **STREAM, device=device)[1].tolist())
    for change in ({"seed": 8}, {"tensor_id": 3}, {"period": 4}, {"seed": STREAM["seed"] + 2**32}):
        other = set(ops.select(n, k, **(STREAM | change), device=device)[1].tolist())
        assert abs(len(first & other) - k * k / n) < 5 * math.sqrt(k * k / n)
    again = ops.select(n, k, **STREAM | {"period": 3 + 2**28}, device=device)[1]
    assert set(again.tolist()) == first


def test_thread_count_and_the_global_generator_do_not_matter():
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 5):
            torch.set_num_threads(count)
            torch.manual_seed(count)
            results.append(ops.select(70_001, 17_000, **STREAM))
    finally:
        torch.set_num_threads(threads)
    assert_same_choice(*results)


@pytest.mark.parametrize(
    ("n", "k", "change", "message"),
    [
        (-1, 0, {}, r"n: 0 to 2\^31 - 2 expected, got -1"),
        (2**31 - 1, 0, {}, r"n: 0 to 2\^31 - 2 expected, got 2147483647"),
        (4, 5, {}, "k: 0 to n = 4 expected, got 5"),
        (4, -1, {}, "k: 0 to n = 4 expected, got -1"),
        (4, 2, {"tensor_id": 2**32}, "tensor_id: .* got 4294967296"),
        (4, 2, {"period": -1}, "period: zero or more expected, got -1"),
        (4, 2, {"seed": 2**64}, "seed: .* got 18446744073709551616"),
    ],
)
def test_select_refuses(n, k, change, message):
    with pytest.raises(ValueError, match=message):
        ops.select(n, k, **(STREAM | change))


def test_the_raw_op_refuses_what_does_not_fit():
    op = torch.ops.frugalore.select_
    below, chosen = torch.zeros(5, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(TypeError, match="below: dtype int32 expected, got int64"):
        op(below.long(), chosen, 0, 0, 0)
    with pytest.raises(ValueError, match="chosen: at most 4 elements expected, got 5"):
        op(below, torch.zeros(5, dtype=torch.int32), 0, 0, 0)
    with pytest.raises(ValueError, match=r"below: 1 to .* elements expected, got 0"):
        op(below[:0], chosen[:0], 0, 0, 0)
    with pytest.raises(ValueError, match="chosen: memory of its own expected"):
        op(below, below[2:4], 0, 0, 0)


def test_opcheck():
    tensors = (torch.zeros(131, dtype=torch.int32), torch.zeros(40, dtype=torch.int32))
    torch.library.opcheck(torch.ops.frugalore.select_.default, (*tensors, 1, 2, 3))


class TestSelection:
    def test_of_indices_in_any_order(self):
        selection = ops.Selection.of("columns", torch.tensor([7, 0, 3]), 9)
        assert selection.kind == "columns" and selection.chosen.tolist() == [0, 3, 7]
        assert selection.below.tolist() == [0, 1, 1, 1, 2, 2, 2, 2, 3, 3]
        assert selection.below.dtype == selection.chosen.dtype == torch.int32

    @pytest.mark.parametrize("chosen", [[], [0], [3], [0, 1, 2, 3]])
    def test_of_equals_the_reference(self, chosen):
        indices = torch.tensor(chosen, dtype=torch.int64)
        ours = ops.Selection.of("rows", indices, 4)
        assert_same_choice((ours.below, ours.chosen), reference.from_indices(indices, 4))

    def test_of_what_select_made(self):
        below, chosen = ops.select(300, 75, **STREAM)
        ours = ops.Selection.of("rows", chosen.flip(0), 300)
        assert_same_choice((ours.below, ours.chosen), (below, chosen))

    def test_state_shape(self):
        lines = torch.tensor([1, 4])
        shapes = {
            ops.Selection("none"): (0,),
            ops.Selection("all"): (7, 9),
            ops.Selection.of("columns", lines, 9): (7, 2),
            ops.Selection.of("rows", lines, 7): (2, 9),
            ops.Selection("randk", density=0.25): (15,),
            ops.Selection("randk", density=0.0): (0,),
            ops.Selection("randk", density=1.0): (63,),
        }
        for selection, shape in shapes.items():
            assert selection.state_shape(7, 9) == shape

    def test_state_shape_of_huge_matrices_is_exact(self):
        rows, columns = 2**31, 2**31 + 3
        assert ops.Selection("randk", density=1.0).state_shape(rows, columns) == (rows * columns,)
        assert ops.Selection("randk", density=0.5).state_shape(rows, columns) == (rows * columns // 2,)

    def test_it_refuses(self):
        with pytest.raises(ValueError, match="kind: 'columns' or 'rows' expected, got 'randk'"):
            ops.Selection.of("randk", torch.tensor([1]), 4)
        with pytest.raises(ValueError, match=r"chosen: indices in \[0, 4\) expected, got 1 to 4"):
            ops.Selection.of("rows", torch.tensor([4, 1]), 4)
        with pytest.raises(ValueError, match=r"chosen: indices in \[0, 4\) expected, got -1 to 2"):
            ops.Selection.of("rows", torch.tensor([2, -1]), 4)
        with pytest.raises(ValueError, match="chosen: each index once expected"):
            ops.Selection.of("rows", torch.tensor([2, 1, 2]), 4)
        with pytest.raises(ValueError, match=r"selection.kind: one of .* expected, got 'some'"):
            ops.Selection("some").arguments()
        with pytest.raises(ValueError, match="selection: below and chosen expected for rows, got none"):
            ops.Selection("rows").arguments()
        for density in (-0.1, 1.5, math.nan):
            with pytest.raises(ValueError, match=r"selection\.density: a number in"):
                ops.Selection("randk", density=density).arguments()

    @pytest.mark.parametrize(
        ("shape", "matrix"),
        [
            ((), (1, 1)),
            ((5,), (1, 5)),
            ((3, 4), (3, 4)),
            ((6, 2, 3, 3), (6, 18)),
            ((0, 7), (0, 7)),
            ((0,), (1, 0)),
        ],
        ids=str,
    )
    def test_a_parameter_as_a_matrix(self, shape, matrix):
        assert ops.selection.matrix_shape(shape) == matrix


class TestRandk:
    @pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 7), (3, 256), (2, 300), (5, 513)], ids=str)
    @pytest.mark.parametrize("density", [0.0, 0.01, 0.25, 1 / 3, 1.0])
    def test_slots_are_a_bijection(self, shape, density):
        slots = reference.randk_slots(*shape, density=density, **STREAM)
        count = ops.Selection("randk", density=density).state_shape(*shape)[0]
        assert slots[slots >= 0].sort().values.tolist() == list(range(count))

    def test_each_tile_has_a_fixed_count(self):
        rows, columns, density = 4, 600, 0.3
        fraction = reference.fraction_of(density)
        slots = reference.randk_slots(rows, columns, density=density, **STREAM)
        for row in range(rows):
            for column in range(0, columns, reference.TILE):
                begin, end = row * columns + column, row * columns + min(columns, column + reference.TILE)
                inside = slots[row, column : column + reference.TILE]
                inside = inside[inside >= 0]
                first, last = (i * fraction // 2**32 for i in (begin, end))
                assert inside.sort().values.tolist() == list(range(first, last))
                assert abs(inside.numel() - (end - begin) * density) <= 1

    @pytest.mark.parametrize("columns", [256, 77])
    def test_each_element_is_inside_as_often(self, columns):
        periods, density = 2000, 0.25
        counts = torch.zeros(columns)
        for period in range(periods):
            slots = reference.randk_slots(1, columns, density=density, seed=1, tensor_id=0, period=period)
            counts += slots[0] >= 0
        p = math.floor(columns * density) / columns
        assert (counts / periods - p).abs().max() < 5 * math.sqrt(p * (1 - p) / periods)

    def test_pairs_of_elements_are_independent(self):
        """Neighbours, and elements a power of two apart, are together inside as often as chance has it."""
        periods, density = 2000, 0.25
        marks = torch.stack(
            [
                reference.randk_slots(1, 256, density=density, seed=1, tensor_id=0, period=period)[0] >= 0
                for period in range(periods)
            ]
        ).double()
        together = marks.t() @ marks / periods
        p = density * 63 / 255  # drawn without replacement
        off_diagonal = together[~torch.eye(256, dtype=torch.bool)]
        assert off_diagonal.mean().sub(p).abs() < 1e-9
        assert (off_diagonal - p).abs().max() < 7 * math.sqrt(p * (1 - p) / periods)

    def test_each_name_is_another_set(self):
        first = reference.randk_slots(4, 512, density=0.25, **STREAM) >= 0
        for change in ({"seed": 8}, {"tensor_id": 3}, {"period": 4}):
            other = reference.randk_slots(4, 512, density=0.25, **(STREAM | change)) >= 0
            common = int((first & other).sum())
            assert abs(common - 2048 / 16) < 5 * math.sqrt(2048 / 16)
