"""gram: the inner products of rows in float64."""

from __future__ import annotations

import math

import pytest
import torch

from frugalore import _C, ops
from frugalore.reference import gram as reference

SHAPES = [(1, 1), (1, 600), (3, 1), (7, 300), (24, 256), (65, 257), (130, 40), (128, 1024), (300, 530)]


def _check(gram, rows):
    """Symmetric to the bit, and within the bound of any order of summation."""
    x = rows.double()
    assert gram.dtype == torch.float64 and torch.equal(gram, gram.t())
    bound = (rows.shape[1] + 1) * 2.0**-53 * (x.abs() @ x.abs().t())
    assert ((gram - reference.gram(rows)).abs() <= 2 * bound).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_size(shape, device, generator):
    rows = torch.randn(shape, generator=generator)
    _check(ops.gram(rows.to(device)).cpu(), rows)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)], ids=str)
def test_empty(shape, device):
    assert torch.equal(
        ops.gram(torch.ones(shape, device=device)).cpu(),
        torch.zeros(shape[0], shape[0], dtype=torch.float64),
    )


@pytest.mark.parametrize("shape", [(65, 257), (300, 530)], ids=str)
def test_instruction_sets_and_thread_counts_give_the_same_bits(shape, generator):
    rows = torch.randn(shape, generator=generator)
    before, threads = _C.active_isa(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        _C.force_isa("baseline")
        expected = ops.gram(rows)
        _C.force_isa(before)
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(ops.gram(rows), expected)
    finally:
        _C.force_isa(before)
        torch.set_num_threads(threads)


def test_instruction_set(isa, generator):
    rows = torch.randn(130, 700, generator=generator)
    _check(ops.gram(rows), rows)


@pytest.mark.parametrize("columns", [1, 700])
def test_rows_may_lie_apart(columns, device, generator):
    whole = torch.randn(140, 705, generator=generator).to(device)
    rows = whole[3:133, 2 : 2 + columns]
    assert torch.equal(ops.gram(rows), ops.gram(rows.contiguous()))
    assert torch.equal(ops.gram(whole[:1, :columns].expand(4, columns)), ops.gram(whole[[0] * 4, :columns]))


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_float64_holds_the_squares_of_floats(scale, device, generator):
    rows = (torch.randn(20, 90, generator=generator) * scale).to(device)
    gram = ops.gram(rows)
    assert gram.isfinite().all() and gram.diagonal().gt(0).all()
    _check(gram.cpu(), rows.cpu())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite_elements_reach_their_row_and_column_alone(value, device, generator):
    rows = torch.randn(50, 300, generator=generator)
    clean = ops.gram(rows.to(device)).cpu()
    rows[13, 299] = value
    gram = ops.gram(rows.to(device)).cpu()
    rest = [i for i in range(50) if i != 13]
    assert not gram[13].isfinite().any() and not gram[:, 13].isfinite().any()
    assert torch.equal(gram[rest][:, rest], clean[rest][:, rest])


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([[1.0]], TypeError, "rows: a tensor expected, got list"),
        (torch.ones(3), ValueError, r"rows: a matrix expected, got shape \(3,\)"),
        (torch.ones(3, 4).double(), TypeError, "rows: dtype float32 expected, got torch.float64"),
        (torch.ones(3, 4).t(), ValueError, r"rows: contiguous rows expected, got strides \(1, 4\)"),
    ],
    ids=str,
)
def test_bad_input_is_refused(rows, error, message):
    with pytest.raises(error, match=message):
        ops.gram(rows)


ROWS, OUT, NONE = torch.ones(3, 4), torch.ones(3, 3).double(), torch.ones(0).double()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((ROWS.double(), OUT, NONE), TypeError, "rows: dtype float32 expected, got float64"),
        ((ROWS[0], OUT, NONE), ValueError, r"rows: a matrix expected, got shape \(4,\)"),
        ((ROWS.t().contiguous().t(), OUT, NONE), ValueError, "rows: contiguous rows expected"),
        ((ROWS, OUT[:2], NONE), ValueError, r"out: shape \(3, 3\) expected, got \(2, 3\)"),
        ((ROWS, OUT.float(), NONE), TypeError, "out: dtype float64 expected, got float32"),
        ((ROWS, OUT, OUT.flatten()), ValueError, "chunks: .*0.* expected, got"),
    ],
    ids=str,
)
def test_bad_input_of_the_kernel_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        _C.gram(*arguments)
    assert (OUT == 1).all()


def test_opcheck():
    torch.library.opcheck(torch.ops.frugalore.gram.default, (torch.randn(5, 9),))
