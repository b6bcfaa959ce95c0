"""The AdamW rule: moments in float32, 8 or 4 bits, on whole parameters or inside a subspace."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from frugalore import ops
from frugalore.reference import adamw4bit
from frugalore.reference.adamw8bit import BLOCK, dequantize_moment, quantize_moment
from frugalore.subspace.turn import Turn

#: Below this many elements the moments stay float32: they cost little, and norms and biases are touchy.
MIN_8BIT_SIZE = 4096

_WIDE = ("exp_avg", "exp_avg_sq")
_QUANTIZED = ("exp_avg", "exp_avg_absmax", "exp_avg_sq", "exp_avg_sq_absmax")
_RECORD = ("progress", "beta_powers")


@dataclass(frozen=True)
class AdamW:
    """AdamW with the conventions of the optimizer that uses it.

    Attributes:
        eps_mode: "corrected" or "raw"; see :func:`frugalore.ops.adamw_step_`.
        decay: "before" or "after" the update.

    Group options: ``betas``, ``eps``, ``weight_decay``, ``state_bits`` (32, 8 or 4).
    State of a parameter: ``exp_avg``, ``exp_avg_sq``, with 8 and 4 bits also their ``_absmax``; ``progress``
    and ``beta_powers``, the record that the kernels advance.

    8 bits have fused kernels. With 4 bits (:mod:`frugalore.reference.adamw4bit`) the moments of one parameter
    at a time become float32 for the float32 kernel and are packed again: a workspace of 8 bytes for each of
    its elements, and several passes.
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
        if group["state_bits"] not in (4, 8, 32):
            raise ValueError(f"state_bits: 4, 8 or 32 expected, got {group['state_bits']!r}")

    @staticmethod
    def state_shapes(
        shape: tuple[int, ...], group: dict[str, Any]
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each state tensor for a parameter, or projected gradient, of this shape."""
        shape = tuple(shape)
        numel = math.prod(shape)
        shapes = {"progress": ((3,), torch.int64), "beta_powers": ((2,), torch.float64)}
        bits = AdamW._width(numel, group)
        for name in _WIDE:
            if bits == 32:
                shapes[name] = (shape, torch.float32)
                continue
            block = BLOCK if bits == 8 else adamw4bit.BLOCK
            shapes[name] = (shape if bits == 8 else (-(-numel // 2),), torch.uint8)
            shapes[f"{name}_absmax"] = ((-(-numel // block),), torch.float32)
        return shapes

    @staticmethod
    def _width(numel: int, group: dict[str, Any]) -> int:
        """How the moments of a new tensor of so many elements are to be stored."""
        return group["state_bits"] if numel >= MIN_8BIT_SIZE else 32

    @staticmethod
    def _bits(state: dict[str, Any], numel: int) -> int:
        """How the moments of a tensor of so many elements are stored."""
        if "exp_avg_absmax" not in state:
            return 32
        return 8 if state["exp_avg"].numel() == numel else 4

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

    def direction_(
        self, r: Tensor, state: dict[str, Any], group: dict[str, Any], *, fresh: bool = False
    ) -> Tensor:
        """Replace a projected gradient by Adam's direction; a non-finite one by zeros, counted as skipped.

        Args:
            fresh: whether the state was just set to zero; of no matter here.
        """
        bits = self._bits(state, r.numel())
        options = {"betas": group["betas"], "eps": group["eps"], "eps_mode": self.eps_mode}
        record = [state[name] for name in _RECORD]
        if bits != 4:
            rule = ops.adamw8bit_direction_ if bits == 8 else ops.adamw_direction_
            return rule(
                r, *(state[name] for name in (_QUANTIZED if bits == 8 else _WIDE)), *record, **options
            )
        m, v = self.moments(state, tuple(r.shape))
        direction = ops.adamw_direction_(r, m, v, *record, **options)
        Turn(None, None, usable=state["progress"][2] == 1).replace_(state, self.stored(state, m, v))
        return direction

    @staticmethod
    def is_fusable(state: dict[str, Any]) -> bool:
        """Whether :func:`frugalore.ops.split_step_` can move a parameter with this state."""
        return "exp_avg_absmax" not in state

    def split_arguments(self, states: list[dict[str, Any]], group: dict[str, Any]) -> dict[str, Any]:
        """What :func:`frugalore.ops.split_step_` takes of this rule."""
        return {
            "rule": "adamw",
            "moments": tuple([state[name] for state in states] for name in _WIDE),
            "beta_powers": [state["beta_powers"] for state in states],
            "betas": group["betas"],
            "eps": group["eps"],
            "eps_mode": self.eps_mode,
        }

    @classmethod
    def moments(cls, state: dict[str, Any], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Both moments in float32, in the shape of the parameter or projected gradient."""
        bits = cls._bits(state, math.prod(shape))
        if bits == 32:
            return state["exp_avg"].view(shape), state["exp_avg_sq"].view(shape)
        codes, absmax, codes_sq, absmax_sq = (state[name] for name in _QUANTIZED)
        if bits == 4:
            m = adamw4bit.dequantize_moment4(codes, absmax, True, shape)
            return m, adamw4bit.dequantize_moment4(codes_sq, absmax_sq, False, shape)
        m, v = dequantize_moment(codes, absmax, True), dequantize_moment(codes_sq, absmax_sq, False)
        return m.view(shape), v.view(shape)

    @classmethod
    def stored(cls, state: dict[str, Any], m: Tensor, v: Tensor) -> dict[str, Tensor]:
        """State tensors for these moments, in the width of ``state``, which is not changed."""
        return cls._packed(m, v, cls._bits(state, m.numel()))

    @staticmethod
    def _packed(m: Tensor, v: Tensor, bits: int) -> dict[str, Tensor]:
        if bits == 32:
            return {"exp_avg": m, "exp_avg_sq": v}
        quantize = quantize_moment if bits == 8 else adamw4bit.quantize_moment4
        return dict(zip(_QUANTIZED, (*quantize(m, True), *quantize(v, False)), strict=True))

    def rotate_(
        self, state: dict[str, Any], turn: Turn, shape: tuple[int, ...], group: dict[str, Any]
    ) -> None:
        """Carry the moments, of this ``shape``, from an old basis into a new one; there it may be another."""
        m, v = self.moments(state, shape)
        m, v = turn.first_moment(m), turn.second_moment(v)
        turn.replace_(state, self._packed(m, v, self._width(m.numel(), group)))

    def step_(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Any]],
        group: dict[str, Any],
        lr: Tensor,
    ) -> None:
        """Move whole float parameters of one device: one call for each width of state that has kernels."""
        bits = [self._bits(state, p.numel()) for p, state in zip(params, states, strict=True)]
        for width in (32, 8):
            chosen = [i for i, found in enumerate(bits) if found == width]
            if chosen:
                names = _WIDE if width == 32 else _QUANTIZED
                moments = [[states[i][name] for i in chosen] for name in names]
                self._step(
                    [params[i] for i in chosen],
                    [grads[i] for i in chosen],
                    moments,
                    [states[i] for i in chosen],
                    group,
                    lr,
                )
        for i, found in enumerate(bits):
            if found == 4:
                m, v = self.moments(states[i], tuple(params[i].shape))
                self._step([params[i]], [grads[i]], [[m], [v]], [states[i]], group, lr)
                for name, value in self.stored(states[i], m, v).items():
                    states[i][name].copy_(value)

    def _step(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        moments: list[list[Tensor]],
        states: list[dict[str, Any]],
        group: dict[str, Any],
        lr: Tensor,
    ) -> None:
        rule = ops.adamw_step_ if len(moments) == 2 else ops.adamw8bit_step_
        rule(
            params,
            grads,
            *moments,
            *([state[name] for state in states] for name in _RECORD),
            lr=lr,
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            eps_mode=self.eps_mode,
            decay=self.decay,
            seed=group["seed"],
            tensor_ids=[state["tensor_id"] for state in states],
            rounding=group["rounding"],
        )
