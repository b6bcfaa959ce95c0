"""``F.linear`` with an INT8 weight: the codes are kept for the backward pass, never the float weight.

    forward    W = (q - z) s          a transient          Y  = X W^T + b
    backward   W = (q - z) s          a transient          dX = dY W,   dW = dY^T X,   db = sum(dY)

Between the passes a layer holds X (when its weight trains) and references to the codes: 1 byte a weight that
is there anyway. dW is a plain float tensor in the dtype that the weight shows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from frugalore.ops import int8_dequantize


class _Int8Linear(Function):
    # forward takes ctx: with a setup_context of its own, torch inspects the signature at every call.
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        # The parts are saved as tensors of their own, so a write to them before backward is noticed.
        parts = weight.codes, weight.scale, weight.zero
        x_needs, weight_needs, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if weight_needs else None, *(parts if x_needs else (None, None, None)))
        ctx.group_size, ctx.dtype, ctx.weight_dtype = weight.group_size, dtype, weight.dtype
        return torch.nn.functional.linear(x, int8_dequantize(*parts, weight.group_size, dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, codes, scale, zero = ctx.saved_tensors
        x_needs, weight_needs, bias_needs, _ = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        rows = grad_y.reshape(-1, grad_y.shape[-1])
        if x_needs:
            dense = int8_dequantize(codes, scale, zero, ctx.group_size, ctx.dtype)
            grad_x = (rows @ dense).reshape(*grad_y.shape[:-1], dense.shape[-1])
        if weight_needs:
            grad_weight = (rows.t() @ x.reshape(-1, x.shape[-1])).to(ctx.weight_dtype)
        if bias_needs:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias, None


class _Dequantize(Function):
    @staticmethod
    def forward(ctx, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = weight.dtype
        return int8_dequantize(weight.codes, weight.scale, weight.zero, weight.group_size, dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None


def int8_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` for an ``Int8Weight``: ``X W^T + b``; autocast applies as it does to a float weight.

    Args:
        input: float ``[..., in]``, of the weight's dtype unless autocast is on.
        weight: ``Int8Weight [out, in]``.
        bias: ``[out]`` or none.
    """
    dtype = weight.dtype
    if not input.is_meta and torch.is_autocast_enabled(input.device.type):  # It knows no meta device.
        dtype = torch.get_autocast_dtype(input.device.type)
        input, bias = input.to(dtype), None if bias is None else bias.to(dtype)
    return _Int8Linear.apply(input, weight, bias, dtype)


def dequantize(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The float tensor that an ``Int8Weight`` stands for; gradients flow back to the weight."""
    return _Dequantize.apply(weight, dtype)
