"""What a refresh does to moments that are coordinates in the basis before it.

With the old basis ``P_old`` and the new one ``P_new`` (rows), a vector of coordinates c in the old subspace
has the coordinates ``C c``, ``C = P_new P_oldᵀ``, in the new one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Turn:
    """From coordinates in an old basis to coordinates in a new one.

    Attributes:
        left, right: ``C`` for the rows and for the columns of R, float32 ``[rank, rank]``; None for a side
            that the subspace leaves whole.
        usable: bool scalar on the device; where it is False the basis did not change.
    """

    left: Tensor | None
    right: Tensor | None
    usable: Tensor

    def first_moment(self, m: Tensor) -> Tensor:
        """``C m``: the same vector, without its part outside the new subspace."""
        return self._along(m, lambda c, x: c @ x)

    def second_moment(self, v: Tensor) -> Tensor:
        """The variances of rotated coordinates that are uncorrelated, ``C∘C v`` (of the diagonal of
        ``C diag(v) Cᵀ``). Of a new direction the share that the old subspace does not hold, ``1 - sum C∘C``,
        counts with the mean of v: with zero, its first steps would be ``(1 - beta1) / sqrt(1 - beta2)`` long.
        """

        def mix(c: Tensor, x: Tensor) -> Tensor:
            squares = c.square()
            unknown = (1 - squares.sum(dim=1, keepdim=True)).clamp_(min=0)
            return squares @ x + unknown * x.mean(dim=0, keepdim=True)

        return self._along(v, mix)

    def _along(self, x: Tensor, turn) -> Tensor:
        if self.left is not None:
            x = turn(self.left, x)
        if self.right is not None:
            x = turn(self.right, x.t()).t()
        return x.contiguous()

    def replace_(self, state: dict[str, Tensor], fresh: dict[str, Tensor]) -> None:
        """Write the fresh tensors into the state, unless the basis did not change."""
        for name, value in fresh.items():
            state[name].copy_(torch.where(self.usable, value.view_as(state[name]), state[name]))
