"""The way into a subspace that is spanned by coordinates, and the way back into the weight.

Which elements of a gradient G are inside, and the slot of each in the state, says a
:class:`frugalore.ops.selection.Selection` (FRUGAL, arXiv 2411.07837, section 4)::

    project   R[slot of e] = G[e]                             for the elements e that are inside
    back      U[e] = inside_scale direction[slot of e]        inside
              U[e] = outside_scale f(G[e])                    outside

    outside  "sign"  f(g) = sign(g), sign(0) = 0       "sgd"  f(g) = g       "none"  f(g) = 0; G is not read

An element outside whose gradient is not finite gets a U that is not finite, so that the write that follows
leaves it as it is. A parameter that is no matrix counts as one: its first dimension by the others; a vector
is one row.

This is the way for every weight and every rule. Where weight and state are floats, one pass can do both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from frugalore import _C
from frugalore.ops._checks import FLOATS, check_matrix, check_same_device
from frugalore.ops._options import OUTSIDE_RULES, index_of, seed_bits
from frugalore.ops._registry import define, mark_written, no_outputs
from frugalore.ops.int8 import Int8Groups
from frugalore.ops.projection import PANEL_BYTES, Step, _update_rows
from frugalore.ops.selection import KINDS, Selection, matrix_shape

_SELECTION = (
    "int kind, Tensor? below, Tensor? chosen, float density, int selection_seed, int selection_tensor_id, "
    "int period"
)


def _project_empty(grad: Tensor, kind: int, *rest) -> Tensor:
    return grad.new_empty(Selection(KINDS[kind], *rest).state_shape(*matrix_shape(grad.shape)))


def _project(grad: Tensor, *selection) -> Tensor:
    r = _project_empty(grad, *selection)
    _C.coordinates_project(grad, r, selection)
    return r


_project_op = define(f"coordinates_project(Tensor grad, {_SELECTION}) -> Tensor", _project, _project_empty)


@torch.no_grad()
def coordinates_project(grad: Tensor, selection: Selection) -> Tensor:
    """R, the elements of the gradient that are inside.

    Args:
        grad: float32, bfloat16 or float16, contiguous, of any shape.
        selection: of the matrix that ``grad`` counts as, on its device.

    Returns:
        The state-shaped tensor (:meth:`Selection.state_shape`) in grad's dtype, a copy to the bit.

    Raises:
        TypeError: another dtype. ValueError: a selection of another matrix or device, or a stride.
    """
    return _project_op(grad, *selection.arguments())


def _back(out, direction, grad, *rest) -> None:
    *selection, first_row, rows, outside, inside_scale, outside_scale = rest
    rule = index_of("outside", outside, OUTSIDE_RULES)
    _C.coordinates_back(
        out, direction, grad, tuple(selection), first_row, rows, rule, inside_scale, outside_scale
    )


_back_op = define(
    f"coordinates_back_(Tensor(a!) out, Tensor direction, Tensor? grad, {_SELECTION}, int first_row, "
    "int rows, str outside, float inside_scale, float outside_scale) -> ()",
    _back,
    no_outputs,
)


@torch.no_grad()
def coordinates_back_(
    out: Tensor,
    direction: Tensor,
    grad: Tensor | None,
    selection: Selection,
    *,
    first_row: int = 0,
    rows: int | None = None,
    outside: str = "sign",
    inside_scale: float = 1.0,
    outside_scale: float = 1.0,
) -> Tensor:
    """Fill a panel of rows of the dense update; formulas at the head of this module.

    Args:
        out: float32 ``[panel rows, columns]``, contiguous: the rows ``first_row ...`` of the matrix. Written.
        direction: float32, bfloat16 or float16, contiguous, of the whole matrix:
            ``selection.state_shape(rows, columns)``.
        grad: float32, bfloat16 or float16, contiguous: the rows of the panel, the shape of ``out``. May be
            None with outside "none".
        selection: of the whole matrix, on the device of ``out``.
        first_row: of the panel. rows: of the whole matrix; by default the panel is its end.
        outside: "sign", "sgd" or "none". inside_scale, outside_scale: finite; float32 in the kernel.

    Returns:
        ``out``.

    Raises:
        TypeError: another dtype. ValueError: a shape, stride, device or number that does not fit. Nothing is
            written.
    """
    if rows is None:
        rows = first_row + (out.shape[0] if out.dim() else 0)
    scales = (inside_scale, outside_scale)
    _back_op(out, direction, grad, *selection.arguments(), first_row, rows, outside, *scales)
    mark_written((out,))
    return out


def _back_update(weight, direction, grad, *rest) -> None:
    *selection, outside, inside_scale, outside_scale = rest[:10]
    *step, group_size, panel_bytes = rest[10:]
    m, n = weight[0].shape
    panel_rows = max(1, min(m, panel_bytes // max(1, 4 * n)))
    panel = torch.empty((panel_rows, n), dtype=torch.float32, device=weight[0].device)
    for start in range(0, m, panel_rows):
        stop = min(m, start + panel_rows)
        out = panel[: stop - start]
        rows = None if grad is None else grad[start:stop]
        _back(out, direction, rows, *selection, start, m, outside, inside_scale, outside_scale)
        _update_rows(weight, start, stop, out, Step(*step), group_size)


_back_update_op = define(
    f"coordinates_back_update_(Tensor(a!)[] weight, Tensor direction, Tensor? grad, {_SELECTION}, "
    "str outside, float inside_scale, float outside_scale, Tensor lr, Tensor progress, float alpha, "
    "float weight_decay, str decay, int seed, int tensor_id, str rounding, int group_size, int panel_bytes) "
    "-> ()",
    _back_update,
    no_outputs,
)


def _as_matrix(name: str, x: Tensor) -> Tensor:
    if not x.is_contiguous():
        raise ValueError(
            f"{name}: a contiguous tensor expected, got strides {x.stride()} for shape {tuple(x.shape)}"
        )
    return x.view(matrix_shape(x.shape))


@torch.no_grad()
def coordinates_back_update_(
    weight: Tensor | Int8Groups,
    direction: Tensor,
    grad: Tensor | None,
    selection: Selection,
    step: Step,
    *,
    outside: str = "sign",
    inside_scale: float = 1.0,
    outside_scale: float = 1.0,
    group_size: int = 256,
    panel_bytes: int | None = None,
) -> None:
    """Carry a direction out of the subspace, add what moves outside, and write the weight, in row panels.

    ``w <- keep w + lr alpha back(direction, grad)``: each panel is made by :func:`coordinates_back_` in a
    float32 workspace of ``panel_bytes`` and written by one fused pass that reads the weight, adds, decays,
    rounds stochastically and writes. With a selection of nothing and outside "none" the weight only decays.

    Args:
        weight: float32, bfloat16 or float16, contiguous, of any shape, or INT8 as ``(codes, scale, zero)``;
            written.
        direction: as in :func:`coordinates_back_`.
        grad: float32, bfloat16 or float16, contiguous, the shape of the weight. May be None with outside
            "none".
        selection: of the matrix that the weight counts as, on its device.
        step: :class:`Step`, with an ``alpha`` of -1 for a descent direction. Nothing is written where its
            progress says that the update was skipped.
        outside, inside_scale, outside_scale: as in :func:`coordinates_back_`.
        group_size: of an INT8 weight.
        panel_bytes: default :data:`frugalore.ops.projection.PANEL_BYTES` of the device. The result does not
            depend on it.

    Raises:
        TypeError: another dtype. ValueError: shapes, devices or numbers that do not fit together. The weight
            is then untouched.
    """
    written = parts = list(weight) if isinstance(weight, tuple) else [weight]
    if len(parts) not in (1, 3):
        raise ValueError(f"weight: a matrix, or (codes, scale, zero), expected, got {len(parts)} parts")
    if grad is not None:
        if grad.shape != parts[0].shape:
            raise ValueError(
                f"grad: the shape of weight, {tuple(parts[0].shape)}, expected, got {tuple(grad.shape)}"
            )
        check_same_device("grad", grad, parts[0].device)
        grad = _as_matrix("grad", grad)
    check_same_device("direction", direction, parts[0].device)
    if len(parts) == 1:
        parts = [_as_matrix("weight", parts[0])]
        check_matrix("weight", parts[0], FLOATS)
    else:
        check_matrix("weight", parts[0], None)
    index_of("outside", outside, OUTSIDE_RULES)
    if panel_bytes is None:
        panel_bytes = PANEL_BYTES[parts[0].device.type]
    step = step._replace(seed=seed_bits(step.seed))
    scales = (inside_scale, outside_scale)
    _back_update_op(
        parts, direction, grad, *selection.arguments(), outside, *scales, *step, group_size, panel_bytes
    )
    mark_written(written)
