"""INT8 weights in asymmetric groups (Q-GaLore, arXiv 2407.08296), and their update in place.

Groups of ``group_size`` run along the last dimension; every row starts a new group and its last group may
be short. ``w ~ (code - zero) * scale`` per group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from frugalore import _C
from frugalore.ops._options import is_second, lr_on_device, progress_on_device, seed_bits
from frugalore.ops._registry import define, mark_written, no_outputs


class Int8Groups(NamedTuple):
    """A matrix in INT8: ``x ~ (code - zero) * scale`` per group."""

    codes: Tensor  #: uint8 [..., columns]
    scale: Tensor  #: float32 [..., ceil(columns / group_size)]
    zero: Tensor  #: uint8, the shape of ``scale``


def _empty_groups(x: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    # Only what is needed to allocate the outputs; the binding checks the rest.
    if x.dim() < 1:
        raise ValueError("x: at least one dimension expected, got a scalar tensor")
    if group_size <= 0:
        raise ValueError(f"group_size: a positive integer expected, got {group_size}")
    groups = (*x.shape[:-1], -(-x.shape[-1] // group_size))
    return (
        x.new_empty(x.shape, dtype=torch.uint8),
        x.new_empty(groups, dtype=torch.float32),
        x.new_empty(groups, dtype=torch.uint8),
    )


def _quantize(x: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    codes, scale, zero = _empty_groups(x, group_size)
    _C.int8_quantize(x, codes, scale, zero, group_size)
    return codes, scale, zero


def _empty_float(codes: Tensor, scale: Tensor, zero: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
    return codes.new_empty(codes.shape, dtype=dtype)


def _dequantize(codes: Tensor, scale: Tensor, zero: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
    x = _empty_float(codes, scale, zero, group_size, dtype)
    _C.int8_dequantize(codes, scale, zero, x, group_size)
    return x


_quantize_op = define(
    "int8_quantize(Tensor x, int group_size) -> (Tensor, Tensor, Tensor)", _quantize, _empty_groups
)
_dequantize_op = define(
    "int8_dequantize(Tensor codes, Tensor scale, Tensor zero, int group_size, ScalarType dtype) -> Tensor",
    _dequantize,
    _empty_float,
)
_update_op = define(
    "int8_stochastic_update_(Tensor(a!) codes, Tensor(b!) scale, Tensor(c!) zero, Tensor update, Tensor lr, "
    "Tensor progress, float alpha, float weight_decay, bool decay_after, int seed, int tensor_id, "
    "int first_index, int group_size, bool stochastic) -> ()",
    _C.int8_stochastic_update,
    no_outputs,
)


@torch.no_grad()
def int8_quantize(x: Tensor, group_size: int = 256) -> Int8Groups:
    """Quantise to 8 bits, rounding to nearest.

    Args:
        x: float32, bfloat16 or float16, contiguous, ``[..., columns]``.
        group_size: elements that share a scale and a zero-point; positive.

    Returns:
        :class:`Int8Groups`. With ``lo = min(x, 0)`` and ``hi = max(x, 0)`` of a group,
        ``scale = max(hi - lo, 1e-5) / 255``, ``zero = clamp(-round(lo / scale), 0, 255)`` and
        ``code = clamp(round(x / scale) + zero, 0, 255)`` (Q-GaLore, section 3.2, with the zero included in
        the range so that groups of one sign do not saturate). A group with a NaN or infinite element gets
        scale NaN.

    Raises:
        TypeError: another dtype. ValueError: a bad shape, stride or group size.
    """
    return Int8Groups(*_quantize_op(x, group_size))


@torch.no_grad()
def int8_dequantize(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    group_size: int = 256,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``(code - zero) * scale`` as a float tensor like ``codes``; the inverse of :func:`int8_quantize`.

    Args:
        codes, scale, zero: as in :class:`Int8Groups`, contiguous.
        dtype: float32, bfloat16 or float16; the product is rounded once.

    Raises:
        TypeError: another dtype. ValueError: a bad shape, stride or group size.
    """
    return _dequantize_op(codes, scale, zero, group_size, dtype)


@torch.no_grad()
def int8_stochastic_update_(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    update: Tensor,
    *,
    lr: float | Tensor = 1.0,
    alpha: float = 1.0,
    weight_decay: float = 0.0,
    decay: str = "before",
    seed: int = 0,
    tensor_id: int = 0,
    progress: int | Tensor = 1,
    first_index: int = 0,
    group_size: int = 256,
    rounding: str = "stochastic",
) -> None:
    """Add an update to an INT8 weight, in place and in one pass over each group.

    ``w <- keep * w + lr * alpha * update`` with ``keep = 1 - lr * weight_decay``, rounded stochastically, so
    that the expectation of the written weight is the exact one (Q-GaLore, arXiv 2407.08296, section 3.3).
    Unlike there, a group keeps its scale and zero-point until it outgrows its codes or shrinks to half of
    them, and then gets a grid with a margin: no code is ever clamped, extremes of a group move as far as
    everything else, and an update of zero changes nothing.

    Args:
        codes, scale, zero: as :func:`int8_quantize` makes them; all three are written.
        update: float32, bfloat16 or float16, contiguous, the shape of ``codes``.
        lr: a number, or a float64 tensor with one element on the device of ``codes``.
        alpha: multiplies the update only, not the decay; negative for a descent direction.
        weight_decay: decoupled decay per unit of lr.
        decay: "before" the update (torch, FRUGAL), or "after" it (bitsandbytes, GaLore, Q-GaLore): the
            update is then decayed too.
        seed, tensor_id: name the random stream; -2^63 to 2^64 - 1, and 0 ... 2^32 - 1.
        progress: the number of this step, from 0, which names the random words within the stream (modulo
            2^28); or the int64 [3] progress record of the parameter: a step it calls skipped writes nothing.
        first_index: index of the first element within the whole weight, for panels and shards of rows: they
            get the same bytes as the whole weight would.
        group_size: as at quantisation.
        rounding: "stochastic" or "nearest" (ties to even, in code units).

    An element whose new value is not finite, or more than 2^60 codes away, keeps its value. A group whose
    scale is not finite is left alone.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, stride, device or option. Nothing is written.
    """
    _update_op(
        codes,
        scale,
        zero,
        update,
        lr_on_device(lr, codes),
        progress_on_device(progress, codes),
        alpha,
        weight_decay,
        is_second("decay", decay, "before", "after"),
        seed_bits(seed),
        tensor_id,
        first_index,
        group_size,
        is_second("rounding", rounding, "nearest", "stochastic"),
    )
    mark_written((codes, scale, zero))
