"""Low-rank subspaces whose rank is a share of the short side (FRUGAL, arXiv 2411.07837)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from frugalore import ops
from frugalore.ops.orthonormal import orthonormal_rows
from frugalore.subspace.svd import SvdSubspace, matrix_shape

#: Elements of unit vectors that are rounding errors of float32.
NOISE = 1e-6


class DensitySubspace(SvdSubspace):
    """``round(density short side)`` basis vectors, at least one.

    Group option ``subspace``: "svd", those of :class:`SvdSubspace`; "random", orthonormal rows from random
    signs, drawn anew at every refresh.
    """

    LAYOUT_OPTIONS = ("density", "subspace", *(name for name in SvdSubspace.LAYOUT_OPTIONS if name != "rank"))

    @staticmethod
    def check_rank(group: dict[str, Any]) -> None:
        """``density`` is checked by the treatment."""

    @staticmethod
    def rank(shape: torch.Size, group: dict[str, Any]) -> int:
        return max(1, round(float(group["density"]) * min(matrix_shape(shape))))

    def _first_bases(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Tensor]:
        if group["subspace"] == "random":
            return self._random_bases(grad, state, group)
        return self._without_noise(super()._first_bases(grad, state, group))

    def _turned_bases(
        self,
        grad: Tensor,
        old: dict[str, Tensor],
        state: dict[str, Any],
        group: dict[str, Any],
        n_iter: int,
    ) -> dict[str, Tensor]:
        if group["subspace"] == "random":
            return self._random_bases(grad, state, group)
        return self._without_noise(super()._turned_bases(grad, old, state, group, n_iter))

    @staticmethod
    def _without_noise(bases: dict[str, Tensor]) -> dict[str, Tensor]:
        """Where a row or column of a gradient is zero, singular vectors are. Otherwise its residual would be
        rounding errors, and their signs would move the weights of a unit that learns nothing."""
        return {name: basis.masked_fill(basis.abs() < NOISE, 0.0) for name, basis in bases.items()}

    def _random_bases(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Tensor]:
        bases, drawn = {}, 0
        for name, length in self._lengths(grad.shape, group).items():
            rows = torch.empty((self.rank(grad.shape, group), length), device=grad.device)
            ops.rademacher_(
                rows,
                seed=group["seed"],
                tensor_id=state["tensor_id"],
                period=state["refreshes"],
                first_index=drawn,
            )
            drawn += rows.numel()
            bases[name] = orthonormal_rows(rows.div_(math.sqrt(length))).rows
        return bases
