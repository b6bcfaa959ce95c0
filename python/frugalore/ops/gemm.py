"""The matrix product of the projections and of the SVD: csrc's own, or ``torch.mm``.

csrc has one for float32 on a CPU (``csrc/cpu/gemm.cpp``), because the MKL inside torch takes a slow path on
processors that are not Intel's. Other dtypes and devices are torch's always; there is no CUDA kernel of ours.
The environment variable ``FRUGALORE_GEMM`` chooses, and is read once: ``own``, ``torch``, or ``auto`` (the
default; see :func:`float32_gemm`).
"""

from __future__ import annotations

import functools
import os

import torch
from torch import Tensor

from frugalore import _C
from frugalore.ops._checks import check_matrix, check_same_device
from frugalore.ops._registry import define, mark_written, no_outputs


@functools.cache
def float32_gemm() -> str:
    """Which product float32 matrices on a CPU go through, "own" or "torch".

    ``auto`` is "own" where torch uses MKL on a processor that is not Intel's and that has AVX2 at least.

    Raises:
        ValueError: ``FRUGALORE_GEMM`` is something else.
    """
    chosen = os.environ.get("FRUGALORE_GEMM") or "auto"
    if chosen not in ("auto", "own", "torch"):
        raise ValueError(f"FRUGALORE_GEMM: auto, own or torch expected, got {chosen}")
    if chosen != "auto":
        return chosen
    build = _C.build_info()
    slow_mkl = torch.backends.mkl.is_available() and build["cpu_vendor"] != "intel"
    return "own" if slow_mkl and build["cpu_isa"] != "baseline" else "torch"


def own_gemm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """csrc's product: float32 on a CPU. Operands whose rows and columns are both apart are copied first."""
    if out is None:
        out = a.new_empty((a.shape[0], b.shape[1]))
    _C.gemm(_dense(a), _dense(b), out)
    return out


def _dense(x: Tensor) -> Tensor:
    return x if 1 in x.stride() else x.contiguous()


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """:func:`gemm` without its checks, for use inside of ops."""
    if a.dtype == torch.float32 and a.device.type == "cpu" and float32_gemm() == "own":
        return own_gemm(a, b, out)
    return torch.mm(a, b, out=out)


_gemm_op = define(
    "gemm(Tensor a, Tensor b) -> Tensor",
    matmul,
    lambda a, b: a.new_empty((a.shape[0], b.shape[1])),
)


def _gemm_into(a: Tensor, b: Tensor, out: Tensor) -> None:
    matmul(a, b, out)


_gemm_into_op = define("gemm_into_(Tensor a, Tensor b, Tensor(a!) out) -> ()", _gemm_into, no_outputs)


@torch.no_grad()
def gemm(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The matrix product ``a @ b``.

    Args:
        a: ``[m, k]`` float32, bfloat16 or float16; any strides. A transpose is not copied.
        b: ``[k, n]``, the dtype and device of ``a``.
        out: ``[m, n]``, the same again, overwritten; its rows are contiguous and it shares no memory with
            ``a`` and ``b``. (Where rows of one lie between rows of another, they count as sharing.)

    Returns:
        ``out``, or a contiguous tensor. Repeatable to the bit; csrc's does not depend on the number of
        threads. NaN and infinity propagate as in IEEE arithmetic, and k = 0 gives zeros.

    Raises:
        TypeError: another dtype. ValueError: shapes, devices or strides that do not fit together, or shared
        memory (RuntimeError where torch computes). ``out`` is then untouched.
    """
    check_matrix("a", a)
    check_matrix("b", b)
    _check_like("b", b, a, (a.shape[1], b.shape[1]))
    if out is None:
        return _gemm_op(a, b)
    _check_like("out", out, a, (a.shape[0], b.shape[1]))
    if out.numel() > 0 and (
        (out.shape[1] > 1 and out.stride(1) != 1) or (out.shape[0] > 1 and out.stride(0) < out.shape[1])
    ):
        raise ValueError(
            f"out: contiguous rows that do not overlap expected, got strides {out.stride()} "
            f"for shape {tuple(out.shape)}"
        )
    _gemm_into_op(a, b, out)
    mark_written((out,))
    return out


def _check_like(name: str, x: Tensor, a: Tensor, shape: tuple[int, ...]) -> None:
    check_matrix(name, x)
    if x.dtype != a.dtype:
        raise TypeError(f"{name}: the dtype of a, {a.dtype}, expected, got {x.dtype}")
    check_same_device(name, x, a.device)
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: shape {shape} expected for a {tuple(a.shape)}, got {tuple(x.shape)}")
