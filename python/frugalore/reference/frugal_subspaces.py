"""The subspaces of FRUGAL in plain torch (specification): they split a matrix G into coordinates and a rest.

    R = inside(G),   G = back(R) + outside(G, R)

Coordinates (columns, rows, single elements, everything, nothing) and orthonormal bases on one side or both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from frugalore.reference.galore import project, project_back

Shape = tuple[int, ...]


class Subspace(Protocol):
    def shape_of_state(self, shape: Shape) -> Shape | None:
        """R's shape for a weight's shape; None where nothing is inside."""

    def inside(self, grad: Tensor) -> Tensor:
        """R."""

    def back(self, r: Tensor, shape: Shape) -> Tensor:
        """R among zeros of the weight's shape."""

    def outside(self, grad: Tensor, r: Tensor) -> Tensor:
        """``grad - back(r)``; exactly 0 on coordinates that are inside."""

    def moment_from(self, old: Subspace, moment: Tensor, shape: Shape, squares: bool) -> Tensor:
        """A moment that was stored for ``old``, as this subspace stores it. ``squares``: it is the second
        moment, of squared coordinates."""


class _Coordinates(ABC):
    """Elements of the matrix. A moment is kept where it was inside before and is now; elsewhere it is 0."""

    @abstractmethod
    def _where(self, shape: Shape) -> tuple:
        """The index of what is inside."""

    def shape_of_state(self, shape: Shape) -> Shape | None:
        r = torch.empty(shape, device="meta")[self._where(shape)]
        return tuple(r.shape)

    def inside(self, grad: Tensor) -> Tensor:
        return grad[self._where(tuple(grad.shape))].clone()

    def back(self, r: Tensor, shape: Shape) -> Tensor:
        full = r.new_zeros(shape)
        full[self._where(tuple(shape))] = r
        return full

    def outside(self, grad: Tensor, r: Tensor) -> Tensor:
        rest = grad.clone()
        rest[self._where(tuple(grad.shape))] = 0
        return rest

    def moment_from(self, old: Subspace, moment: Tensor, shape: Shape, squares: bool) -> Tensor:
        return self.inside(old.back(moment, shape))


@dataclass(frozen=True)
class Columns(_Coordinates):
    """State ``[m, k]``, in the order of ``indices`` (the library's: ascending)."""

    indices: Sequence[int]

    def _where(self, shape: Shape) -> tuple:
        return (slice(None), torch.as_tensor(self.indices, dtype=torch.long))


@dataclass(frozen=True)
class Rows(_Coordinates):
    """State ``[k, n]``."""

    indices: Sequence[int]

    def _where(self, shape: Shape) -> tuple:
        return (torch.as_tensor(self.indices, dtype=torch.long),)


@dataclass(frozen=True)
class Elements(_Coordinates):
    """Single elements ("randk") by their row-major indices; state ``[k]``."""

    indices: Sequence[int]

    def _where(self, shape: Shape) -> tuple:
        return torch.unravel_index(torch.as_tensor(self.indices, dtype=torch.long), shape)


@dataclass(frozen=True)
class Whole(_Coordinates):
    """An active block: everything is inside."""

    def _where(self, shape: Shape) -> tuple:
        return (...,)


@dataclass(frozen=True)
class Nothing(_Coordinates):
    """An inactive block: everything is outside."""

    def _where(self, shape: Shape) -> tuple:
        return (slice(0, 0),)

    def shape_of_state(self, shape: Shape) -> Shape | None:
        return None

    def outside(self, grad: Tensor, r: Tensor) -> Tensor:
        return grad.clone()


@dataclass(frozen=True)
class Basis:
    """R = A G Bᵀ with orthonormal rows: ``left`` A ``[rank, m]``, ``right`` B ``[rank, n]``, or one of them.

    Of the rotated first moment what the new subspace does not hold is lost: with C = A_new A_oldᵀ, ``C m``.
    The second moment of a new coordinate is the variance of that mixture of uncorrelated old ones, ``C∘C v``;
    the share that the old subspace does not hold, ``1 - sum C∘C``, counts with the mean of v.
    """

    left: Tensor | None = None
    right: Tensor | None = None

    def shape_of_state(self, shape: Shape) -> Shape | None:
        m, n = shape
        return (
            m if self.left is None else self.left.shape[0],
            n if self.right is None else self.right.shape[0],
        )

    def inside(self, grad: Tensor) -> Tensor:
        return project(grad, self.left, self.right)

    def back(self, r: Tensor, shape: Shape) -> Tensor:
        return project_back(r, self.left, self.right)

    def outside(self, grad: Tensor, r: Tensor) -> Tensor:
        return grad - self.back(r, tuple(grad.shape))

    def moment_from(self, old: Subspace, moment: Tensor, shape: Shape, squares: bool) -> Tensor:
        turn = _turned_squares if squares else torch.matmul
        if self.left is not None:
            moment = turn(self.left @ old.left.t(), moment)
        if self.right is not None:
            moment = turn(self.right @ old.right.t(), moment.t()).t()
        return moment.clone()


def _turned_squares(c: Tensor, v: Tensor) -> Tensor:
    share = c.square()
    unknown = (1 - share.sum(dim=1, keepdim=True)).clamp(min=0)
    return share @ v + unknown * v.mean(dim=0, keepdim=True)
