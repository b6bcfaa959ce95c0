"""Groups along the last dimension, as a padded view: [..., columns] <-> [rows, groups, group_size]."""

from __future__ import annotations

import torch
from torch import Tensor


def to_groups(x: Tensor, group_size: int, fill: float = 0.0) -> Tensor:
    """``[rows, groups, group_size]``; a short last group is filled up with ``fill``."""
    rows = x.reshape(-1, x.shape[-1])
    short = -rows.shape[1] % group_size
    padded = torch.nn.functional.pad(rows, (0, short), value=fill)
    return padded.reshape(rows.shape[0], -1, group_size)


def from_groups(groups: Tensor, like: Tensor | torch.Size | tuple[int, ...]) -> Tensor:
    """The inverse of :func:`to_groups`: ``like`` is the tensor or the shape to come back to."""
    shape = tuple(like.shape if isinstance(like, Tensor) else like)
    rows = groups.reshape(groups.shape[0], -1)
    return rows[:, : shape[-1]].reshape(shape)


def per_group(values: Tensor, group_size: int, columns: int) -> Tensor:
    """One value a group ``[..., groups]`` spread over its elements: ``[..., columns]``."""
    return values.repeat_interleave(group_size, dim=-1)[..., :columns]
