"""Per-layer updates: each parameter moves during backward, as soon as its gradient is whole.

    backward -> gradient of one parameter -> hook: update, or R += project(G) -> gradient freed -> next one

So one parameter's gradient exists at a time instead of all of them. The idea is that of LOMO (arXiv
2306.09782) and of GaLore's per-layer mode (arXiv 2403.03507); every kind of parameter takes part here, and
the accumulation, the clipping norm and the count of gradients are in the optimizer's ``state_dict()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from frugalore.optim.checkpoint import check_rounds_agree
from frugalore.optim.engine import SubspaceOptimizer


def per_layer_updates(
    optimizer: SubspaceOptimizer,
    accumulation_steps: int = 1,
    max_norm: float | None = None,
    *,
    state_free_only: bool = False,
) -> PerLayerUpdates:
    """Update every parameter during backward and free its gradient at once.

    The loop stays as it is; ``step()`` closes a round::

        frugalore.per_layer_updates(optimizer, accumulation_steps=2)
        for a, b in pairs_of_batches:
            (loss_of(a) / 2).backward()  # gradients are accumulated and freed
            (loss_of(b) / 2).backward()  # each parameter moves at its second gradient
            optimizer.step()             # closes the round

    * A parameter moves at its ``accumulation_steps``-th gradient of a round, with the learning rate and
      options that its group has then. ``step()`` moves those that got fewer (an expert that some
      micro-batches did not visit, a short last round); those that got none are skipped. With one step,
      weights and state are equal to the bit to those of the standard mode.
    * Accumulation: gradients add up, as ``.grad`` does. A matrix in a low-rank subspace without a rule
      outside (GaLore) keeps the sum of its projected gradients R in float32; every other parameter its summed
      gradient, in the gradient's dtype. A refresh that is due uses the round's first gradient, so that all R
      of a round are in one basis (if that gradient is zero or not finite, the next one that is neither). A
      NaN or infinity in any of them skips the matrix, or the elements concerned of a whole parameter.
      ``zero_grad()`` drops nothing of this; :meth:`PerLayerUpdates.discard` does.
    * Clipping: a round's gradients are multiplied by ``min(1, max_norm / (norm + 1e-6))``, where ``norm`` is
      that of the round *before*: the present one is known when the last parameter has moved. So it differs
      from ``clip_grad_norm_``: a sudden peak passes once. Before the first norm is known, each parameter is
      clipped by its own. The norm is the global L2 norm of the unclipped gradients; with accumulation, where
      R is kept it stands for the gradient, so what lies outside does not count. A norm that
      is not finite clips nothing; the last finite one stays. ``math.inf`` measures without clipping.
    * Options are checked before the first parameter of a round moves. An error in backward leaves those
      moved that had their turn; ``step()`` or ``discard()`` then ends the round.
    * Between ``backward()`` and ``step()`` there are no gradients for ``clip_grad_norm_`` or a
      ``GradScaler``. Weights change during backward, so no graph can be walked twice. Gradients are those of
      this process: not for data-parallel wrappers. A weight that is used in several segments of *reentrant*
      activation checkpointing gets several gradients a backward and is refused at the first one too many;
      ``use_reentrant=False`` gives one.

    Args:
        optimizer: a preset of this library. Groups that are added later take part.
        accumulation_steps: gradients of a parameter in a round; one more before ``step()`` is an error.
        max_norm: clip at this norm; None: neither measure nor clip.
        state_free_only: only parameters whose next move has no state-full part (FRUGAL's inactive blocks; all
            of its group at density 0) move during backward. The others keep their gradients for ``step()``,
            so ``clip_grad_norm_`` before it works on them; the sign of a gradient is the same clipped or not.
            Refuses ``max_norm``.

    Returns:
        The handle: ``remove()`` restores the standard mode; so does leaving it as a context manager.

    Raises:
        TypeError: another optimizer. ValueError: a number out of range, or per-layer updates are there
        already, or gradients of a standard round are waiting.
    """
    if not isinstance(optimizer, SubspaceOptimizer):
        raise TypeError(f"optimizer: one of frugalore's expected, got {type(optimizer).__name__}")
    steps = accumulation_steps
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"accumulation_steps: a positive integer expected, got {accumulation_steps!r}")
    if max_norm is not None and (not isinstance(max_norm, Real) or not max_norm > 0):
        raise ValueError(f"max_norm: a positive number or None expected, got {max_norm!r}")
    if state_free_only and max_norm is not None:
        raise ValueError(f"max_norm: None expected with state_free_only, got {max_norm!r}")
    if optimizer._per_layer is not None:
        raise ValueError("optimizer: it has per-layer updates already; remove() the first ones")
    if any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer: gradients are waiting; call step() and zero_grad() first")
    return PerLayerUpdates(optimizer, accumulation_steps, max_norm, state_free_only)


class PerLayerUpdates:
    """The handle of :func:`per_layer_updates`.

    Attributes:
        accumulation_steps, max_norm, state_free_only: as given.
        gradient_norm: of the last closed round, a float64 scalar on the device, possibly infinite or NaN;
            see :func:`per_layer_updates` for what it is the norm of. None before the first, or without
            ``max_norm``.
    """

    def __init__(
        self,
        optimizer: SubspaceOptimizer,
        accumulation_steps: int,
        max_norm: float | None,
        state_free_only: bool = False,
    ):
        self.accumulation_steps = accumulation_steps
        self.max_norm = max_norm
        self.state_free_only = state_free_only
        self.gradient_norm: Tensor | None = None
        self._optimizer = optimizer
        self._group_of: dict[Tensor, int] = {}
        self._hooks: dict[Tensor, Any] = {}
        self._gradients: dict[Tensor, int] = {}  # of this round
        self._accumulated: dict[Tensor, Tensor] = {}  # what has not moved its parameter yet
        self._squares: dict[torch.device, Tensor] = {}  # of this round's norms
        self._last_norm: dict[torch.device, Tensor] = {}  # the last finite one; copies for each device
        waiting = optimizer._per_layer_waiting
        if waiting is not None:
            check_rounds_agree(waiting["accumulation_steps"], bool(waiting["gradients"]), accumulation_steps)
            self._install(waiting)
        optimizer._per_layer, optimizer._per_layer_waiting = self, None
        self._hook_parameters()

    def _hook_parameters(self) -> None:
        """Also for groups and parameters that came, or thawed, since."""
        for index, group in enumerate(self._optimizer.param_groups):
            for p in group["params"]:
                self._group_of[p] = index
                if p.requires_grad and p not in self._hooks:
                    self._hooks[p] = p.register_post_accumulate_grad_hook(self._on_gradient)

    # ---- one gradient -------------------------------------------------------------------------------

    def _on_gradient(self, p: Tensor) -> None:
        if self.state_free_only:
            group = self._optimizer.param_groups[self._group_of[p]]
            if not self._optimizer.treatment(group).is_state_free(p, group):
                return
        self._take(p)

    @torch.no_grad()
    def _take(self, p: Tensor) -> None:
        """Consume ``p.grad``. On an error it is gone too, so that the next round does not meet it."""
        grad, p.grad = p.grad, None
        optimizer, index = self._optimizer, self._group_of[p]
        group = optimizer.param_groups[index]
        seen = self._gradients.get(p, 0)
        if seen == self.accumulation_steps:
            raise RuntimeError(
                f"{optimizer._names[p]}: gradient {seen + 1} in a round of accumulation_steps="
                f"{self.accumulation_steps}; call optimizer.step() after {self.accumulation_steps} backward "
                "passes (reentrant activation checkpointing gives a shared weight several gradients a pass: "
                "use_reentrant=False)"
            )
        if not self._gradients:
            optimizer._check_step()
        else:
            optimizer._check_group(index, [p])
        optimizer._check_gradient(p, grad, group)

        value = optimizer._keep(p, grad, group, first=seen == 0)
        norm = None
        if self.accumulation_steps == 1:
            norm = self._norm(grad)
        elif seen:
            value = self._accumulated.pop(p).add_(value)
        self._gradients[p] = seen + 1
        if seen + 1 == self.accumulation_steps:
            self._move(p, value, norm)
        else:
            self._accumulated[p] = value

    def _move(self, p: Tensor, value: Tensor, norm: Tensor | None = None) -> None:
        if self.max_norm is not None:
            norm = self._norm(value) if norm is None else norm
            if self.max_norm < math.inf:
                value.mul_(self._coefficient(norm))
            square = norm.double().square_()
            known = self._squares.get(p.device)
            self._squares[p.device] = square if known is None else known.add_(square)
        self._optimizer._move(p, value, self._group_of[p])

    # ---- the norm -----------------------------------------------------------------------------------

    def _norm(self, value: Tensor) -> Tensor | None:
        if self.max_norm is None:
            return None
        return torch.linalg.vector_norm(value, dtype=torch.float32)

    def _coefficient(self, own: Tensor) -> Tensor:
        last = self._last_norm_on(own.device)
        # An own norm that is not finite would turn the finite elements into zeros or NaN.
        own = torch.where(own.isfinite(), own, 0.0).double()
        norm = torch.where(last.isnan(), own, last)
        return (self.max_norm / (norm + 1e-6)).clamp_(max=1.0)

    def _last_norm_on(self, device: torch.device) -> Tensor:
        """The norm that clips this round, float64; NaN if none is known."""
        if device not in self._last_norm:
            known = next(iter(self._last_norm.values()), None)
            self._last_norm[device] = (
                torch.full((), math.nan, dtype=torch.float64, device=device)
                if known is None
                else known.to(device, non_blocking=True)
            )
        return self._last_norm[device]

    def _close_norm(self) -> None:
        if self._squares:
            # The sum is made on a card, if there is one, so that nothing waits for it.
            home = max(self._squares, key=lambda device: device.type != "cpu")
            total = self._sum_of_squares(home).sqrt()
            self.gradient_norm = total
            last = self._last_norm_on(home)
            self._last_norm = {home: torch.where(total.isfinite(), total, last)}
        self._squares = {}

    def _sum_of_squares(self, device: torch.device) -> Tensor:
        return sum(square.to(device) for square in self._squares.values())

    # ---- the round ----------------------------------------------------------------------------------

    def close_round(self, closure: Callable | None = None) -> None:
        """What ``optimizer.step()`` does: move what was accumulated and has not moved, begin a new round.

        Gradients without a hook (set by hand; of a parameter that was frozen until now) are taken here.
        """
        if closure is not None:
            raise ValueError("closure: None expected with per-layer updates, which move during backward")
        self._optimizer._check_step()
        self._hook_parameters()
        for p in self._group_of:
            if p.grad is not None:
                self._take(p)
        for p in list(self._accumulated):
            self._move(p, self._accumulated.pop(p))
        self._close_norm()
        self._gradients = {}
        self._optimizer._end_step()
        self._hook_parameters()  # those that thawed for the next period

    def discard(self) -> None:
        """Drop what was accumulated and begin a new round. What has moved, has moved."""
        self._gradients, self._accumulated, self._squares = {}, {}, {}

    def accumulated_bytes(self) -> int:
        """Bytes that are kept for the rest of the round."""
        return sum(value.numel() * value.element_size() for value in self._accumulated.values())

    def remove(self) -> None:
        """Back to the standard mode: gradients stay until ``step()``.

        Raises:
            RuntimeError: gradients are accumulated; ``step()`` or :meth:`discard` first.
        """
        if self._accumulated:
            raise RuntimeError(
                f"remove: {len(self._accumulated)} parameters hold accumulated gradients; call "
                "optimizer.step() or discard() first"
            )
        for hook in self._hooks.values():
            hook.remove()
        self._hooks = {}
        if self._optimizer._per_layer is self:
            self._optimizer._per_layer = None

    def __enter__(self) -> PerLayerUpdates:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.discard()
        self.remove()

    # ---- state --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Part of the optimizer's: tensors and numbers; parameters by their position."""
        positions = {p: i for i, p in enumerate(self._optimizer._all_parameters())}
        state = {
            "accumulation_steps": self.accumulation_steps,
            "gradients": {positions[p]: count for p, count in self._gradients.items()},
            "accumulated": {positions[p]: value for p, value in self._accumulated.items()},
        }
        if self._squares:
            state["square_sum"] = self._sum_of_squares(next(iter(self._squares)))
        if self._last_norm:
            state["last_norm"] = next(iter(self._last_norm.values()))
        return state

    def _install(self, state: dict[str, Any] | None) -> None:
        """Take over a checked state; None begins a round of an unknown norm."""
        self.discard()
        self._last_norm, self.gradient_norm = {}, None
        if state is None:
            return
        params = self._optimizer._all_parameters()
        self._gradients = {params[i]: count for i, count in state["gradients"].items()}
        self._accumulated = {
            params[i]: value.to(params[i].device, copy=True) for i, value in state["accumulated"].items()
        }
        moved = [p for p in self._gradients if p not in self._accumulated]
        home = (moved or params)[0].device
        for name, target in (("square_sum", self._squares), ("last_norm", self._last_norm)):
            if name in state:
                target[home] = state[name].to(home, copy=True)
