"""The random test matrix (specification). See :mod:`frugalore.ops.sketch`."""

from __future__ import annotations

from torch import Tensor

from frugalore.reference.philox import PURPOSE_SKETCH, random_words


def rademacher_(out: Tensor, *, seed: int, tensor_id: int, period: int, first_index: int = 0) -> Tensor:
    words = random_words(out.numel(), seed, tensor_id, period, PURPOSE_SKETCH, first_index, out.device)
    return out.copy_((1 - 2 * (words >> 31)).view(out.shape))
