"""The inverse Cholesky factor of a shifted Gram matrix (specification, within the tolerance of its sums).

See :mod:`frugalore.ops.cholesky`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EPSILON = 2.0**-52


def factor(gram: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """``L`` and the pivots of a finite matrix with a positive trace, column by column."""
    size, trace = gram.shape[0], gram.trace()
    schur, lower, pivots = gram.clone(), torch.zeros_like(gram), gram.new_empty(size)
    for j in range(size):
        pivots[j] = schur[j, j]
        pivot = schur[j, j] + shift * trace
        noise = _EPSILON * (size * gram[j, j].clamp(min=0) + _EPSILON * trace)
        lower[j, j] = torch.maximum(pivot, noise).sqrt()
        if pivot > noise:
            lower[j + 1 :, j] = schur[j + 1 :, j] / lower[j, j]
            schur[j + 1 :, j + 1 :] -= torch.outer(lower[j + 1 :, j], lower[j + 1 :, j])
    return lower, pivots


def cholesky_inverse(gram: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    identity = torch.eye(gram.shape[0], dtype=torch.float64, device=gram.device)
    trace = gram.trace().item()
    if not gram.tril().isfinite().all() or not math.isfinite(trace) or not math.isfinite(shift * trace):
        return identity.float(), gram.new_full(gram.shape[:1], math.nan)
    if trace <= 0:
        return identity.float(), gram.diagonal().clone()
    lower, pivots = factor(gram, shift)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    largest = torch.finfo(torch.float32).max
    return inverse.nan_to_num(nan=0.0).clamp(-largest, largest).float(), pivots
