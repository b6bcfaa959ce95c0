"""The part of a gradient outside of a subspace, added to the update inside of it.

With ``x = grad - projected``, and ``x = grad`` without ``projected``:

    update <- inside_scale update + outside_scale f(x)

    "sign"    f(x) = sign(x), sign(0) = 0       FRUGAL (arXiv 2411.07837)
    "sgd"     f(x) = x                          FRUGAL
    "scaled"  f(x) = factor x                   Fira (arXiv 2410.01623)
"""

from __future__ import annotations

import torch
from torch import Tensor

from frugalore import _C
from frugalore.ops._options import is_second
from frugalore.ops._registry import define, mark_written, no_outputs


def _residual_add(update, grad, projected, factor, outside, inside_scale, outside_scale, factor_of_rows):
    _C.residual_add(update, grad, projected, factor, outside, factor_of_rows, inside_scale, outside_scale)


_residual_add_op = define(
    "residual_add_(Tensor(a!) update, Tensor grad, Tensor? projected, Tensor? factor, str outside, "
    "float inside_scale, float outside_scale, bool factor_of_rows) -> ()",
    _residual_add,
    no_outputs,
)


@torch.no_grad()
def residual_add_(
    update: Tensor,
    grad: Tensor,
    projected: Tensor | None = None,
    factor: Tensor | None = None,
    *,
    outside: str = "sign",
    inside_scale: float = 1.0,
    outside_scale: float = 1.0,
    axis: str = "columns",
) -> None:
    """Scale an update and add what lies outside of the subspace, in place and in one pass; formulas at the
    head of this module.

    Computed in float32 and rounded once to the dtype of ``update``. An element whose x is not finite becomes
    NaN, so that the op that writes the weight keeps it.

    Args:
        update: ``[rows, columns]`` float32, bfloat16 or float16, contiguous.
        grad: the same shape, float32, bfloat16 or float16, contiguous.
        projected: the part of ``grad`` inside of the subspace; the same shape, contiguous, float32 or the
            dtype of ``update``.
        factor: float32, contiguous, one for each of the columns or rows; for "scaled" only.
        outside: "sign", "sgd" or "scaled".
        axis: what a factor belongs to, "columns" or "rows".

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, stride, device or option. Nothing is written.
    """
    rows = is_second("axis", axis, "columns", "rows")
    _residual_add_op(update, grad, projected, factor, outside, inside_scale, outside_scale, rows)
    mark_written((update,))
