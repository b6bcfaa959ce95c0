"""The residual outside of a subspace (specification). Formulas: :mod:`frugalore.ops.residual`."""

from __future__ import annotations

import torch
from torch import Tensor


def residual_add_(
    update: Tensor,
    grad: Tensor,
    projected: Tensor | None = None,
    factor: Tensor | None = None,
    *,
    outside: str = "sign",
    inside_scale: float = 1.0,
    outside_scale: float = 1.0,
    axis: str = "columns",
) -> None:
    inside, scale = (torch.tensor(s, dtype=torch.float64).float() for s in (inside_scale, outside_scale))
    x = grad.float()
    if projected is not None:
        x = x - projected.float()
    if outside == "sign":
        f = x.sign()
    else:
        f = x if factor is None else (factor[:, None] if axis == "rows" else factor) * x
    result = inside * update.float() + scale * f
    update.copy_(torch.where(x.isfinite(), result, torch.nan).to(update.dtype))
