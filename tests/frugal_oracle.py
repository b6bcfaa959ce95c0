"""Trajectories that FRUGAL's and BAdam's optimizers must follow, from :mod:`frugalore.reference.frugal`.

The gradients of all steps and the subspaces of all periods are given, so that nothing but the arithmetic, the
switches and the counting of steps is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frugalore.reference.frugal import AdamW, Frugal, Rule
from frugalore.reference.frugal_subspaces import (
    Basis,
    Columns,
    Elements,
    Nothing,
    Rows,
    Subspace,
    Whole,
)
from frugalore.reference.selection import randk_slots, select
from frugalore.subspace.blocks import cycle_block


@dataclass(frozen=True)
class Snapshot:
    """A parameter after a step.

    Attributes:
        weight: a copy.
        state: copies of "exp_avg", "exp_avg_sq" (AdamW), "exp_avg" (Lion) or "momentum_buffer" (SGD), with
            the shape that the subspace gives them; empty where the whole tensor is outside.
        t: applied updates since the last reset.
    """

    weight: Tensor
    state: dict[str, Tensor]
    t: int

    @classmethod
    def of(cls, parameter: Frugal) -> Snapshot:
        state = {name: value.clone() for name, value in parameter.state.items()}
        return cls(parameter.weight.clone(), state, parameter.t)


def spec_trajectory(
    weights: Sequence[Tensor],
    grads: Sequence[Sequence[Tensor | None]],
    subspaces: Sequence[Sequence[Subspace]] | Callable[[int], Sequence[Subspace]],
    *,
    update_gap: int,
    rule: Rule | None = None,
    lr: float | Sequence[float] = 1e-3,
    dtype: torch.dtype = torch.float64,
    at_first_gradient: bool = False,
    **options,
) -> list[list[Snapshot]]:
    """The parameters after every step.

    Args:
        weights: before the first step; copied.
        grads: ``grads[step][i]``, of parameter i; None where it has no gradient.
        subspaces: ``subspaces[period][i]`` or a function from the period to its list. Period p holds the
            steps ``p * update_gap ... (p + 1) * update_gap - 1``, whether or not there are gradients.
            ``Whole()`` in every period, with "keep", is a parameter that the subspace does not concern (but
            it takes ``proj_params_lr_scale``).
        update_gap: steps a period.
        rule: AdamW (default), Sgdm or Lion.
        lr: of all steps, or one for each.
        dtype: in which everything is computed.
        at_first_gradient: a parameter switches at its first gradient in a period instead of at the period's
            first step. Weights are the same, unless "rotate" skips a whole period without gradients.
        **options: of :class:`Frugal`: weight_decay, inactive_update_rule, inactive_lr_scale,
            proj_params_lr_scale, moments_at_refresh.

    Returns:
        ``[step][i]``.
    """
    rule = rule or AdamW()
    subspaces_of = subspaces if callable(subspaces) else subspaces.__getitem__
    parameters = [Frugal(w.detach().to(dtype, copy=True), rule, **options) for w in weights]
    trajectory = []
    for step, of_step in enumerate(grads):
        if step % update_gap == 0:
            waiting = dict(enumerate(subspaces_of(step // update_gap)))
            assert len(waiting) == len(parameters)
        for i, (parameter, grad) in enumerate(zip(parameters, of_step, strict=True)):
            if i in waiting and (grad is not None or not at_first_gradient):
                parameter.switch(waiting.pop(i))
            parameter.lr = lr if isinstance(lr, (int, float)) else lr[step]
            parameter.step(None if grad is None else grad.detach().to(dtype))
        trajectory.append([Snapshot.of(parameter) for parameter in parameters])
    return trajectory


def badam_trajectory(
    weights: Sequence[Tensor],
    grads: Sequence[Sequence[Tensor]],
    blocks: Sequence[Sequence[int]],
    *,
    switch_every: int,
    mode: str = "descending",
    start: int | None = None,
    seed: int = 0,
    **options,
) -> list[list[Snapshot]]:
    """BAdam: one block of ``blocks`` (lists of indices of ``weights``) moves, the others are frozen.

    Gradients of frozen parameters are not looked at. The other arguments are those of
    :func:`spec_trajectory` and :func:`frugalore.subspace.blocks.cycle_block`.
    """

    def active(period: int) -> set[int]:
        return set(blocks[cycle_block(mode, len(blocks), period, start=start, seed=seed)])

    masked = [
        [grad if i in active(step // switch_every) else None for i, grad in enumerate(of_step)]
        for step, of_step in enumerate(grads)
    ]

    def subspaces(period: int) -> list[Subspace]:
        return whole_tensors(active(period), len(weights))

    options |= {"update_gap": switch_every, "inactive_update_rule": "no"}
    return spec_trajectory(weights, masked, subspaces, **options)


def whole_tensors(active: Sequence[int] | set[int], n: int) -> list[Subspace]:
    """The subspaces of ``n`` tensors of which these are active blocks."""
    return [Whole() if i in active else Nothing() for i in range(n)]


def randk_elements(
    shape: tuple[int, int], *, density: float, seed: int, tensor_id: int, period: int
) -> Elements:
    """The elements of the library's "randk", in the order of their slots."""
    slots = randk_slots(*shape, density=density, seed=seed, tensor_id=tensor_id, period=period).flatten()
    inside = int((slots >= 0).sum())
    return Elements(torch.argsort(slots)[slots.numel() - inside :].tolist())


def library_subspace(
    kind: str, shape: tuple[int, int], *, density: float, seed: int, tensor_id: int, period: int
) -> Subspace:
    """What FrugalAdamW(subspace=kind) has inside in a period, for a kind of coordinates that are drawn.

    ``int(density n)`` columns or rows; of "randperm" ``round(density n)`` of the short side (of a square
    matrix: columns).
    """
    where = {"seed": seed, "tensor_id": tensor_id, "period": period}
    if kind == "randk":
        return randk_elements(shape, density=density, **where)
    count = round if kind == "randperm" else int
    if kind == "randperm":
        kind = "columns" if shape[0] >= shape[1] else "rows"
    length = shape[kind == "columns"]
    indices = select(length, count(density * length), **where)[1].tolist()
    return Columns(indices) if kind == "columns" else Rows(indices)


__all__ = [
    "Basis",
    "Columns",
    "Elements",
    "Nothing",
    "Rows",
    "Snapshot",
    "Whole",
    "badam_trajectory",
    "library_subspace",
    "randk_elements",
    "spec_trajectory",
    "whole_tensors",
]
