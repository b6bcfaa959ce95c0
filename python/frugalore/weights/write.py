"""The one fused write that ends every update."""

from __future__ import annotations

from torch import Tensor

from frugalore import ops
from frugalore.ops._registry import mark_written
from frugalore.ops.projection import Basis
from frugalore.weights.int8_weight import Int8Weight


def stored_weight(weight: Tensor) -> tuple[Tensor | ops.Int8Groups, int]:
    """What the ops write of a parameter, as a matrix of its first dimension by all others (a vector: of one
    row), and the size of its groups."""
    if isinstance(weight, Int8Weight):
        return ops.Int8Groups(weight.codes, weight.scale, weight.zero), weight.group_size
    return weight.detach().flatten(1) if weight.dim() > 1 else weight.detach().view(1, -1), 256


def mark_written_weight(weight: Tensor) -> None:
    """Tell autograd that an op wrote into what :func:`stored_weight` gave; a float weight was told of."""
    if isinstance(weight, Int8Weight):
        mark_written([weight])


def descend_(
    weight: Tensor,
    direction: Tensor,
    step: ops.Step,
    basis: Basis | None = None,
    side: str | None = None,
    basis_group_size: int = 256,
) -> None:
    """``w <- keep w + lr alpha back(direction)``, for a float weight or an :class:`Int8Weight`.

    Args:
        weight: a parameter; written in place. One of more than two dimensions counts as the matrix of its
            first by all others.
        direction: in the subspace of ``basis``, or of the weight's shape where there is no basis.
        step: learning rate, decay, progress and random stream.
        side: that the basis acts on; default: the short one.
    """
    is_int8 = isinstance(weight, Int8Weight)
    stored = ops.Int8Groups(weight.codes, weight.scale, weight.zero) if is_int8 else weight.detach()
    group_size = weight.group_size if is_int8 else 256
    if basis is not None:
        ops.project_back_update_(
            stored if is_int8 else stored.flatten(1),
            direction,
            basis,
            step,
            side=side,
            group_size=group_size,
            basis_group_size=basis_group_size,
        )
    elif is_int8:
        ops.int8_stochastic_update_(*stored, direction, group_size=group_size, **step._asdict())
    else:
        ops.weight_update_(stored, direction, **step._asdict())
    mark_written_weight(weight)
