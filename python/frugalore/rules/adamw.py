"""The AdamW rule: moments in float32 or in 8 bits, on whole parameters or inside a subspace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from frugalore import ops
from frugalore.reference.adamw8bit import dequantize_moment, quantize_moment
from frugalore.subspace.turn import Turn

#: Below this many elements the moments stay float32: they cost little, and norms and biases are touchy.
MIN_8BIT_SIZE = 4096
BLOCK = 256

_WIDE = ("exp_avg", "exp_avg_sq")
_IN_8_BITS = ("exp_avg", "exp_avg_absmax", "exp_avg_sq", "exp_avg_sq_absmax")
_RECORD = ("progress", "beta_powers")


@dataclass(frozen=True)
class AdamW:
    """AdamW with the conventions of the optimizer that uses it.

    Attributes:
        eps_mode: "corrected" or "raw"; see :func:`frugalore.ops.adamw_step_`.
        decay: "before" or "after" the update.

    Group options: ``betas``, ``eps``, ``weight_decay``, ``state_bits`` (32 or 8).
    State of a parameter: ``exp_avg``, ``exp_avg_sq``, with 8 bits also their ``_absmax``; ``progress`` and
    ``beta_powers``, the record that the kernels advance.
    """

    eps_mode: str = "corrected"
    decay: str = "before"

    #: Options that decide how the state is stored, and so cannot change later.
    LAYOUT_OPTIONS: ClassVar = ("state_bits",)

    @staticmethod
    def check_options(group: dict[str, Any]) -> None:
        betas = group["betas"]
        is_pair = isinstance(betas, (tuple, list)) and len(betas) == 2
        if not is_pair or not all(isinstance(beta, Real) and 0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas: two numbers in [0, 1) expected, got {betas!r}")
        for name in ("eps", "weight_decay"):
            if not isinstance(group[name], Real) or not 0.0 <= group[name] < math.inf:
                raise ValueError(f"{name}: zero or more expected, got {group[name]!r}")
        if group["state_bits"] not in (8, 32):
            raise ValueError(f"state_bits: 8 or 32 expected, got {group['state_bits']!r}")

    @staticmethod
    def state_shapes(
        shape: tuple[int, ...], group: dict[str, Any]
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each state tensor for a parameter, or projected gradient, of this shape."""
        shape = tuple(shape)
        numel = math.prod(shape)
        shapes = {"progress": ((3,), torch.int64), "beta_powers": ((2,), torch.float64)}
        in_8_bits = group["state_bits"] == 8 and numel >= MIN_8BIT_SIZE
        for name in _WIDE:
            shapes[name] = (shape, torch.uint8 if in_8_bits else torch.float32)
            if in_8_bits:
                shapes[f"{name}_absmax"] = ((-(-numel // BLOCK),), torch.float32)
        return shapes

    def initial_state(
        self, shape: tuple[int, ...], group: dict[str, Any], device: torch.device
    ) -> dict[str, Tensor]:
        # A block whose absmax is 0 is zero whatever its codes, so all-zero bytes are zero moments.
        state = {
            name: torch.zeros(size, dtype=dtype, device=device)
            for name, (size, dtype) in self.state_shapes(shape, group).items()
        }
        state["beta_powers"].fill_(1.0)
        return state

    @staticmethod
    def learning_rate(p: Tensor, state: dict[str, Any], group: dict[str, Any], lr: Tensor) -> Tensor:
        """What the update that comes next is multiplied by: the group's."""
        return lr

    def direction_(self, r: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Replace a projected gradient by Adam's direction; a non-finite one by zeros, counted as skipped."""
        in_8_bits = "exp_avg_absmax" in state
        rule = ops.adamw8bit_direction_ if in_8_bits else ops.adamw_direction_
        tensors = [state[name] for name in (*(_IN_8_BITS if in_8_bits else _WIDE), *_RECORD)]
        return rule(r, *tensors, betas=group["betas"], eps=group["eps"], eps_mode=self.eps_mode)

    @staticmethod
    def moments(state: dict[str, Any], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Both moments in float32, in the shape of the parameter or projected gradient."""
        if "exp_avg_absmax" not in state:
            return state["exp_avg"].view(shape), state["exp_avg_sq"].view(shape)
        m = dequantize_moment(state["exp_avg"], state["exp_avg_absmax"], True)
        v = dequantize_moment(state["exp_avg_sq"], state["exp_avg_sq_absmax"], False)
        return m.view(shape), v.view(shape)

    @staticmethod
    def stored(state: dict[str, Any], m: Tensor, v: Tensor) -> dict[str, Tensor]:
        """State tensors for these moments, in the width of ``state``, which is not changed."""
        if "exp_avg_absmax" not in state:
            return {"exp_avg": m, "exp_avg_sq": v}
        tensors = (*quantize_moment(m, True), *quantize_moment(v, False))
        return dict(zip(_IN_8_BITS, tensors, strict=True))

    def rotate_(self, state: dict[str, Any], turn: Turn, shape: tuple[int, ...]) -> None:
        """Carry the moments from an old basis into a new one."""
        m, v = self.moments(state, shape)
        turn.replace_(state, self.stored(state, turn.first_moment(m), turn.second_moment(v)))

    def step_(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Any]],
        group: dict[str, Any],
        lr: Tensor,
    ) -> None:
        """Move whole float parameters of one device: one call for each width of state."""
        for in_8_bits in (False, True):
            chosen = [i for i, state in enumerate(states) if ("exp_avg_absmax" in state) == in_8_bits]
            if not chosen:
                continue
            rule = ops.adamw8bit_step_ if in_8_bits else ops.adamw_step_
            names = (*(_IN_8_BITS if in_8_bits else _WIDE), *_RECORD)
            rule(
                [params[i] for i in chosen],
                [grads[i] for i in chosen],
                *([states[i][name] for i in chosen] for name in names),
                lr=lr,
                betas=group["betas"],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                eps_mode=self.eps_mode,
                decay=self.decay,
                seed=group["seed"],
                tensor_ids=[states[i]["tensor_id"] for i in chosen],
                rounding=group["rounding"],
            )
