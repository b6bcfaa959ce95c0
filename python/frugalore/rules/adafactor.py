"""The Adafactor rule (arXiv 1804.04235): second moments as row and column means, on whole parameters or in a
subspace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from frugalore import ops
from frugalore.weights.int8_weight import Int8Weight

if TYPE_CHECKING:
    from frugalore.subspace.turn import Turn

#: Elements that are worked on at a time: about a core's L2 on a CPU, few launches on a GPU.
PANEL_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}

#: With momentum, the least step size: the momentum holds updates that are multiplied by their step sizes, and
#: is divided by the present one for the write.
LEAST_STEP_SIZE = 1e-30

Panel = tuple[slice, slice]


@dataclass(frozen=True)
class Adafactor:
    """Adafactor as in fairseq, Hugging Face and GaLore's published code.

    With t the updates of a parameter, this one included, and R its gradient, or projected gradient::

        beta2_t = 1 - t^decay_rate
        row = beta2_t row + (1 - beta2_t) mean over columns of (R^2 + eps[0]);    col likewise over rows
        U   = R / sqrt(row col / mean(row))       one dimension: R / sqrt(mean square)
        U   = U / max(1, RMS(U) / clip_threshold)
        step size = s max(eps[1], RMS(w)),   s = min(1e-2 or, with warmup_init, 1e-6 t; 1 / sqrt(t))
        w   = (1 - step size weight_decay) w - step size U

    With ``relative_step=False`` s is the group's ``lr``; with ``scale_parameter=False`` the factor of RMS(w)
    is 1. With ``beta1``, ``m = beta1 m + (1 - beta1) step size U`` is subtracted in place of ``step size U``.
    Parameters of more than two dimensions are stacks of matrices of the last two.

    It is composed of torch's operations, in panels of :data:`PANEL_ELEMENTS`, so the workspace is bounded
    whatever the parameter's size. Nothing waits for the device: t, step sizes and the decision to skip an
    update are there. If any element of R is NaN, infinite or too large to be squared and summed, the whole
    update is skipped, of a matrix in a subspace and of a whole parameter alike: weight and state stay, and
    ``progress[1]`` counts it.

    Group options: ``eps`` (two numbers), ``clip_threshold``, ``decay_rate``, ``beta1`` (None: no momentum),
    ``weight_decay``, ``scale_parameter``, ``relative_step``, ``warmup_init``.
    State of a parameter, float32: ``exp_avg_sq_row``, ``exp_avg_sq_col`` (``exp_avg_sq`` for one dimension),
    with momentum ``exp_avg``; ``progress``, int64 [3]; ``RMS`` of the weight before its last update (zero
    without ``scale_parameter``) and ``step_size``, float64 [1].
    """

    decay: ClassVar = "before"
    LAYOUT_OPTIONS: ClassVar = ("beta1",)

    @staticmethod
    def check_options(group: dict[str, Any]) -> None:
        eps = group["eps"]
        if not isinstance(eps, (tuple, list)) or len(eps) != 2 or not all(_is_number(e, 0.0) for e in eps):
            raise ValueError(f"eps: two numbers of zero or more expected, got {eps!r}")
        if not _is_number(group["clip_threshold"], 0.0) or group["clip_threshold"] == 0:
            raise ValueError(f"clip_threshold: a positive number expected, got {group['clip_threshold']!r}")
        if not _is_number(group["decay_rate"], -math.inf) or group["decay_rate"] > 0:
            raise ValueError(f"decay_rate: zero or less expected, got {group['decay_rate']!r}")
        beta1 = group["beta1"]
        if beta1 is not None and not (_is_number(beta1, 0.0) and beta1 < 1.0):
            raise ValueError(f"beta1: None or a number in [0, 1) expected, got {beta1!r}")
        if not _is_number(group["weight_decay"], 0.0):
            raise ValueError(f"weight_decay: zero or more expected, got {group['weight_decay']!r}")
        for name in ("scale_parameter", "relative_step", "warmup_init"):
            if not isinstance(group[name], bool):
                raise TypeError(f"{name}: True or False expected, got {group[name]!r}")
        if group["lr"] is not None and group["relative_step"]:
            raise ValueError(f"lr: None expected with relative_step=True, got {group['lr']!r}")
        if group["warmup_init"] and not group["relative_step"]:
            raise ValueError("warmup_init: False expected with relative_step=False, got True")

    @staticmethod
    def state_shapes(
        shape: tuple[int, ...], group: dict[str, Any]
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each state tensor for a parameter, or projected gradient, of this shape."""
        shape = tuple(shape)
        shapes = {
            "progress": ((3,), torch.int64),
            "RMS": ((1,), torch.float64),
            "step_size": ((1,), torch.float64),
        }
        if len(shape) >= 2:
            shapes["exp_avg_sq_row"] = (shape[:-1], torch.float32)
            shapes["exp_avg_sq_col"] = (shape[:-2] + shape[-1:], torch.float32)
        else:
            shapes["exp_avg_sq"] = (shape, torch.float32)
        if group["beta1"] is not None:
            shapes["exp_avg"] = (shape, torch.float32)
        return shapes

    def initial_state(
        self, shape: tuple[int, ...], group: dict[str, Any], device: torch.device
    ) -> dict[str, Tensor]:
        return {
            name: torch.zeros(size, dtype=dtype, device=device)
            for name, (size, dtype) in self.state_shapes(shape, group).items()
        }

    def learning_rate(self, p: Tensor, state: dict[str, Any], group: dict[str, Any], lr: Tensor) -> Tensor:
        """The step size of the update that comes next, float64 ``[1]``; it stays in the state."""
        size = lr
        if group["relative_step"]:
            t = state["progress"][:1].double() + 1
            size = torch.minimum(t.rsqrt(), 1e-6 * t if group["warmup_init"] else t.new_tensor(1e-2))
        if group["scale_parameter"]:
            state["RMS"].copy_(root_mean_square(p))
            size = size * state["RMS"].clamp(min=group["eps"][1])
        if group["beta1"] is not None:
            size = size.clamp(min=LEAST_STEP_SIZE)
        return state["step_size"].copy_(size)

    def direction_(self, r: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Replace a projected gradient by its direction; one of a skipped update by zeros.

        :meth:`learning_rate` comes first. With momentum the direction is float32, in ``r`` if that is too.
        """
        out = r if group["beta1"] is None else r.float()
        matrices = out.view(_as_matrices(r.shape))

        def keep(panel: Panel, update: Tensor) -> None:
            matrices[panel] = update

        _updates(r, state, group, keep)
        return out

    def step_(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Any]],
        group: dict[str, Any],
        lr: Tensor,
    ) -> None:
        """Move whole float parameters of one device, each in panels."""
        for p, grad, state in zip(params, grads, states, strict=True):
            size = self.learning_rate(p, state, group, lr)
            _updates(grad, state, group, _write_into(p, state, group, size))

    def rotate_(
        self, state: dict[str, Any], turn: Turn, shape: tuple[int, ...], group: dict[str, Any]
    ) -> None:
        """Bring the statistics of R ``shape`` into the basis that a refresh chose."""
        by_rows, by_columns = replace(turn, right=None), replace(turn, left=None)
        fresh = {
            "exp_avg_sq_row": by_rows.second_moment(state["exp_avg_sq_row"][:, None]),
            "exp_avg_sq_col": by_columns.second_moment(state["exp_avg_sq_col"][None]),
        }
        if "exp_avg" in state:
            fresh["exp_avg"] = turn.first_moment(state["exp_avg"])
        turn.replace_(state, fresh)


# ---- one update -------------------------------------------------------------------------------------


def _updates(
    r: Tensor, state: dict[str, Any], group: dict[str, Any], sink: Callable[[Panel, Tensor], None]
) -> None:
    """Advance the state by a gradient, then give ``sink`` the update over the step size, panel by panel.

    ``r`` is read twice before the first call of ``sink``, which may overwrite the panel that it gets.
    """
    if r.numel() == 0:
        return _advance(state["progress"], torch.ones((), dtype=torch.bool, device=r.device))
    r = r.view(_as_matrices(r.shape))
    size = state["step_size"]
    fresh = _fresh_statistics(r, state, group)
    factors = _factors(fresh, r)
    square = torch.zeros((), dtype=torch.float64, device=r.device)
    for panel in _panels(r.shape, r.device):
        square += torch.linalg.vector_norm(_scaled(r, factors, panel)).double().square_()
    applied = square.isfinite() & size.isfinite().all()
    for value in fresh.values():
        applied = applied & value.isfinite().all()
    for name, value in fresh.items():
        state[name].copy_(torch.where(applied, value, state[name]))
    _advance(state["progress"], applied)
    shrink = (square.div_(r.numel()).sqrt_() / group["clip_threshold"]).clamp_(min=1.0).reciprocal_()
    for panel in _panels(r.shape, r.device):
        update = _scaled(r, factors, panel).mul_(shrink)
        if group["beta1"] is not None:
            update = _averaged(state["exp_avg"].view(r.shape)[panel], update, group["beta1"], size, applied)
        sink(panel, update.masked_fill_(~applied, 0.0))
    return None


def _fresh_statistics(r: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Tensor]:
    """The mean squares after this gradient, in the shapes of the state, which stays."""
    t = state["progress"][0].double() + 1
    rest = t ** group["decay_rate"]
    beta2, rest = (1 - rest).float(), rest.float()
    if "exp_avg_sq" in state:
        means = {"exp_avg_sq": r.float().square().add_(group["eps"][0])}
    else:
        row = r.new_empty(r.shape[:2], dtype=torch.float32)
        col = r.new_zeros((r.shape[0], r.shape[2]), dtype=torch.float32)
        for stack, rows in _panels(r.shape, r.device):
            squares = r[stack, rows].to(torch.float32, copy=True).square_().add_(group["eps"][0])
            row[stack, rows] = squares.mean(dim=2)
            col[stack] += squares.sum(dim=1)
        means = {"exp_avg_sq_row": row, "exp_avg_sq_col": col.div_(r.shape[1])}
    return {name: state[name] * beta2 + mean.view(state[name].shape) * rest for name, mean in means.items()}


def _factors(statistics: dict[str, Tensor], r: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the rows and the columns of R are multiplied by; of one dimension, its elements."""
    if "exp_avg_sq" in statistics:
        return statistics["exp_avg_sq"].rsqrt().view(r.shape), None
    row = statistics["exp_avg_sq_row"].view(*r.shape[:2], 1)
    col = statistics["exp_avg_sq_col"].view(r.shape[0], 1, r.shape[2])
    return (row / row.mean(dim=1, keepdim=True)).rsqrt_(), col.rsqrt()


def _scaled(r: Tensor, factors: tuple[Tensor, Tensor | None], panel: Panel) -> Tensor:
    row, col = factors
    update = r[panel].float() * row[panel]
    return update if col is None else update.mul_(col[panel[0]])


def _averaged(exp_avg: Tensor, update: Tensor, beta1: float, size: Tensor, applied: Tensor) -> Tensor:
    """Momentum of updates times their step sizes, over the present step size."""
    fresh = exp_avg * beta1 + update.mul_((1 - beta1) * size)
    exp_avg.copy_(torch.where(applied, fresh, exp_avg))
    return fresh.div_(size)


def _advance(progress: Tensor, applied: Tensor) -> None:
    """Count the call in the record (csrc/core/progress.h)."""
    now = applied.to(torch.int64)
    progress.add_(torch.stack([now, 1 - now, torch.zeros_like(now)]))
    progress[2].copy_(now)


def _write_into(
    p: Tensor, state: dict[str, Any], group: dict[str, Any], size: Tensor
) -> Callable[[Panel, Tensor], None]:
    matrices = p.view(_as_matrices(p.shape))
    _, rows_of_one, columns = matrices.shape

    def write(panel: Panel, update: Tensor) -> None:
        first_row = panel[0].start * rows_of_one + panel[1].start
        ops.weight_update_(
            matrices[panel],
            update,
            lr=size,
            alpha=-1.0,
            weight_decay=group["weight_decay"],
            decay=Adafactor.decay,
            seed=group["seed"],
            tensor_id=state["tensor_id"],
            progress=state["progress"],
            first_index=first_row * columns,
            rounding=group["rounding"],
        )

    return write


# ---- shapes and panels ------------------------------------------------------------------------------


def _as_matrices(shape: torch.Size | tuple[int, ...]) -> tuple[int, int, int]:
    """A stack of matrices of the last two dimensions; fewer dimensions are one column."""
    if len(shape) < 2:
        return (1, math.prod(shape), 1)
    return (math.prod(shape[:-2]), shape[-2], shape[-1])


def _panels(shape: tuple[int, int, int], device: torch.device) -> Iterator[Panel]:
    """Cut a stack of matrices into contiguous panels, in the order of memory."""
    count, rows, columns = shape
    most = PANEL_ELEMENTS.get(device.type, PANEL_ELEMENTS["cuda"])
    matrices_each = max(1, most // (rows * columns))
    rows_each = rows if matrices_each > 1 else max(1, most // columns)
    for first in range(0, count, matrices_each):
        for row in range(0, rows, rows_each):
            yield slice(first, first + matrices_each), slice(row, row + rows_each)


def root_mean_square(p: Tensor) -> Tensor:
    """``sqrt(mean(p^2))``, a float64 scalar on the device of ``p``. It reads panels, an INT8 weight's too."""
    total = torch.zeros((), dtype=torch.float64, device=p.device)
    if p.numel() == 0:
        return total
    for panel in _panels(_as_matrices(p.shape), p.device):
        total += torch.linalg.vector_norm(_as_floats(p, panel)).double().square_()
    return total.div_(p.numel()).sqrt_()


def _as_floats(p: Tensor, panel: Panel) -> Tensor:
    if isinstance(p, Int8Weight):
        rows = panel[1]
        return ops.int8_dequantize(p.codes[rows], p.scale[rows], p.zero[rows], p.group_size)
    return p.detach().view(_as_matrices(p.shape))[panel].float()


def _is_number(x: Any, least: float) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool) and least <= x < math.inf
