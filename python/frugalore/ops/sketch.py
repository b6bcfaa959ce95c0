"""The random test matrix of the randomised range finder."""

from __future__ import annotations

import torch
from torch import Tensor

from frugalore import _C
from frugalore.ops._options import seed_bits
from frugalore.ops._registry import define, mark_written, no_outputs

_rademacher_op = define(
    "rademacher_(Tensor(a!) out, int seed, int tensor_id, int period, int first_index) -> ()",
    _C.rademacher,
    no_outputs,
)


@torch.no_grad()
def rademacher_(out: Tensor, *, seed: int, tensor_id: int, period: int, first_index: int = 0) -> Tensor:
    """Fill a tensor with +1 and -1, each with probability one half.

    As a sketch, signs have the guarantees of Gaussian numbers (Halko, Martinsson & Tropp, arXiv 0909.4061),
    and every device makes the same ones.

    Args:
        out: float32, bfloat16 or float16, contiguous; overwritten.
        seed, tensor_id: name the random stream; -2^63 to 2^64 - 1, and 0 ... 2^32 - 1.
        period: the number of the refresh, modulo 2^28.
        first_index: index of the first element within the whole matrix, for panels.

    Returns:
        ``out``.

    Raises:
        TypeError: another dtype. ValueError: a stride or a number out of range.
    """
    _rademacher_op(out, seed_bits(seed), tensor_id, period, first_index)
    mark_written((out,))
    return out
