"""gemm: csrc's float32 product against float64, and the choice between it and torch's."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch

from frugalore import _C, ops
from frugalore.ops.gemm import float32_gemm, own_gemm
from frugalore.reference import gemm as reference

# (m, k, n): around the sizes of strips, vectors and blocks of every instruction set; zeros and ones.
SHAPES = [
    (1, 1, 1),
    (1, 300, 1),
    (2, 1, 3),
    (5, 7, 15),
    (13, 255, 17),
    (15, 256, 31),
    (14, 257, 32),
    (29, 513, 33),
    (113, 64, 257),
    (1, 40, 600),
    (600, 40, 1),
    (127, 520, 300),
]
EMPTY = [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)]
LAYOUTS = ("rows", "columns", "panel of rows", "panel of columns", "slice transposed", "apart")


def _operand(shape, layout, generator):
    """A matrix of this shape whose memory lies like this."""
    m, n = shape
    if layout == "rows":
        return torch.randn(m, n, generator=generator)
    if layout == "columns":
        return torch.randn(n, m, generator=generator).t()
    if layout == "panel of rows":
        return torch.randn(m + 3, n, generator=generator)[2 : 2 + m]
    if layout == "panel of columns":
        return torch.randn(m, n + 5, generator=generator)[:, 3 : 3 + n]
    if layout == "slice transposed":
        return torch.randn(n, m + 5, generator=generator)[:, 1 : 1 + m].t()
    return torch.randn(2 * m, 3 * n, generator=generator)[::2, ::3]


def _check(result, a, b):
    """Within the bound of any order of summation, k eps |a| |b|."""
    assert result.shape == (a.shape[0], b.shape[1]) and result.dtype == torch.float32
    bound = (a.shape[1] + 1) * torch.finfo(torch.float32).eps * (a.double().abs() @ b.double().abs())
    assert ((result.double() - a.double() @ b.double()).abs() <= bound).all()


@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=str)
def test_every_size(shape, isa, generator):
    m, k, n = shape
    a, b = torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)
    _check(own_gemm(a, b), a, b)


@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
def test_every_layout(left, right, isa, generator):
    for m, k, n in ((29, 270, 37), (1, 9, 20), (20, 1, 9), (20, 9, 1)):
        a, b = _operand((m, k), left, generator), _operand((k, n), right, generator)
        _check(own_gemm(a, b), a, b)


def test_the_layout_does_not_change_a_bit(isa, generator):
    a, b = _operand((29, 270), "rows", generator), _operand((270, 37), "rows", generator)
    expected = own_gemm(a, b)
    assert torch.equal(own_gemm(a.t().contiguous().t(), b), expected)
    assert torch.equal(own_gemm(a, b.t().contiguous().t()), expected)
    assert torch.equal(torch.cat([own_gemm(a[i : i + 7], b) for i in range(0, 29, 7)]), expected)
    assert torch.equal(torch.cat([own_gemm(a, b[:, i : i + 9]) for i in range(0, 37, 9)], dim=1), expected)


@pytest.mark.parametrize("shape", [(1000, 300, 40), (40, 300, 1000), (700, 70, 700)], ids=str)
def test_thread_count_does_not_matter(shape, isa, generator):
    m, k, n = shape
    a, b = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator).t()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = own_gemm(a, b)
        for count in (2, 5):
            torch.set_num_threads(count)
            assert torch.equal(own_gemm(a, b), one)
    finally:
        torch.set_num_threads(threads)


def test_out_may_be_a_panel_and_its_neighbours_stay(isa, generator):
    a, b = torch.randn(17, 30, generator=generator), torch.randn(30, 21, generator=generator)
    whole = torch.full((19, 29), 7.0)
    out = whole[1:18, 3:24]
    own_gemm(a, b, out)
    _check(out, a, b)
    out.fill_(7.0)
    assert (whole == 7.0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_not_finite_elements_reach_their_row_or_column_alone(value, layout, isa, generator):
    a, b = _operand((31, 300), layout, generator), _operand((300, 37), layout, generator)
    clean = own_gemm(a, b)
    a[30, 299] = value
    product = own_gemm(a, b)
    assert not product[30].isfinite().any() and torch.equal(product[:30], clean[:30])
    a[30, 299] = 0.0
    b[299, 36] = value
    product = own_gemm(a, b)
    assert not product[:30, 36].isfinite().any() and torch.equal(product[:30, :36], clean[:30, :36])


def test_memory_beside_the_operands_is_not_used(isa):
    """NaN all around, in every layout, and in the output beforehand."""
    for m, k, n in ((3, 5, 7), (14, 256, 32), (20, 257, 40)):
        for left in (False, True):
            a = torch.full((k + 2, m + 2) if left else (m + 2, k + 2), math.nan)[1:-1, 1:-1]
            b = torch.full((n + 2, k + 2) if left else (k + 2, n + 2), math.nan)[1:-1, 1:-1]
            a, b = (a.t(), b.t()) if left else (a, b)
            out = torch.full((m, n), math.nan)
            own_gemm(a.fill_(1.0), b.fill_(1.0), out)
            assert (out == k).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_public_op(dtype, device, generator):
    a = torch.randn(33, 70, generator=generator).to(dtype)
    b = torch.randn(20, 70, generator=generator).to(dtype).t()
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 40 * torch.finfo(dtype).eps}
    expected = reference.gemm(a, b)
    torch.testing.assert_close(ops.gemm(a.to(device), b.to(device)).cpu(), expected, **close)
    out = torch.empty(33, 20, dtype=dtype, device=device)
    version = out._version
    assert ops.gemm(a.to(device), b.to(device), out=out) is out and out._version > version
    torch.testing.assert_close(out.cpu(), expected, **close)


A, B = torch.ones(4, 6), torch.ones(6, 5)
SHARED = torch.ones(4, 11)


@pytest.mark.parametrize(
    ("a", "b", "out", "error", "message"),
    [
        ([[1.0]], B, None, TypeError, "a: a tensor expected, got list"),
        (A[0], B, None, ValueError, r"a: a matrix expected, got shape \(6,\)"),
        (A.double(), B, None, TypeError, "a: dtype .* got torch.float64"),
        (A, B[0], None, ValueError, r"b: a matrix expected, got shape \(5,\)"),
        (A, B.bfloat16(), None, TypeError, "b: the dtype of a, torch.float32, expected, got torch.bfloat16"),
        (A, B.t(), None, ValueError, r"b: shape \(6, 6\) expected for a \(4, 6\), got \(5, 6\)"),
        (A, B.to("meta"), None, ValueError, "b: device cpu expected, got meta"),
        (A, B, torch.ones(5, 4), ValueError, r"out: shape \(4, 5\) expected .*, got \(5, 4\)"),
        (A, B, torch.ones(4, 5).half(), TypeError, "out: the dtype of a, torch.float32, expected"),
        (A, B, torch.ones(5, 4).t(), ValueError, r"out: contiguous rows .* got strides \(1, 4\)"),
        (A, B, torch.ones(5).expand(4, 5), ValueError, r"out: contiguous rows .* got strides \(0, 1\)"),
    ],
    ids=str,
)
def test_bad_input_is_refused(a, b, out, error, message):
    with pytest.raises(error, match=message):
        ops.gemm(a, b, out=out)
    assert out is None or (out == 1).all()


@pytest.mark.parametrize(
    ("a", "b", "out", "error", "message"),
    [
        (A.double(), B, A @ B, TypeError, "a: dtype float32 expected, got float64"),
        (A, B[0], A @ B, ValueError, r"b: a matrix expected, got shape \(5,\)"),
        (A, A, A @ B, ValueError, r"b: shape \(6, 6\) expected, got \(4, 6\)"),
        (A, B, torch.ones(4, 6), ValueError, r"out: shape \(4, 5\) expected, got \(4, 6\)"),
        (torch.ones(8, 12)[::2, ::2], B, A @ B, ValueError, r"a: contiguous rows or columns .* \(24, 2\)"),
        (A, B, torch.ones(5, 4).t(), ValueError, r"out: contiguous rows .* got strides \(1, 4\)"),
        (A, B, torch.ones(5).expand(4, 5), ValueError, r"out: contiguous rows .* got strides \(0, 1\)"),
        (SHARED[:, :6], B, SHARED[:, 6:], ValueError, "out: memory of its own .* some of the memory of a"),
    ],
    ids=str,
)
def test_bad_input_of_the_kernel_is_refused(a, b, out, error, message):
    with pytest.raises(error, match=message):
        _C.gemm(a, b, out)


def test_the_last_byte_of_a_strided_operand_counts():
    """A column slice of the last row ends where `out` begins, and one element further inside of it."""
    memory = torch.ones(100)
    a, b = memory.as_strided((2, 3), (40, 1)), torch.ones(3, 2)
    own_gemm(a, b, memory[43:47].view(2, 2))
    with pytest.raises(ValueError, match="out: memory of its own"):
        own_gemm(a, b, memory[42:46].view(2, 2))


def _python(code: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


# One here, one of the projection, and the SVD's: six of the matrix, twelve that orthonormalise and mix rows.
@pytest.mark.parametrize(("chosen", "calls"), [("own", 1 + 1 + 18), ("torch", 0)])
def test_the_environment_chooses(chosen, calls):
    code = """
import importlib, torch
from frugalore import ops
gemm = importlib.import_module("frugalore.ops.gemm")
calls = []
own = gemm._C.gemm
class Spy:
    def __getattr__(self, name): return getattr(C, name)
    def gemm(self, *arguments): calls.append(1); own(*arguments)
C, gemm._C = gemm._C, Spy()
x = torch.randn(300, 40)
ops.gemm(x, x.t())
ops.project(x, torch.randn(4, 40))
ops.randomized_svd(x, 4, n_iter=2)
ops.gemm(x.bfloat16(), x.bfloat16().t())
print(gemm.float32_gemm(), len(calls))
"""
    done = _python(code, FRUGALORE_GEMM=chosen)
    assert done.stdout.split() == [chosen, str(calls)], done.stderr


def test_a_wrong_choice_is_named():
    done = _python("import torch, frugalore; frugalore.ops.gemm(*torch.ones(2, 2, 2))", FRUGALORE_GEMM="mine")
    assert "ValueError: FRUGALORE_GEMM: auto, own or torch expected, got mine" in done.stderr


def test_auto_is_one_of_the_two():
    assert float32_gemm() in ("own", "torch")


def test_opcheck():
    torch.library.opcheck(torch.ops.frugalore.gemm.default, (A, B))
    torch.library.opcheck(torch.ops.frugalore.gemm_into_.default, (A, B, torch.empty(4, 5)))
