"""``Int8Weight``: a weight in INT8 that looks like a float tensor to autograd, modules and people.

What an operation does with it:

* ``F.linear`` (so ``nn.Linear``, unchanged) keeps the codes for backward: :mod:`frugalore.weights.linear`;
* ``detach``, ``clone``, ``to``, ``copy_`` and their like act on the codes;
* every other operation that only reads gets the float weight, made for the occasion. This includes views:
  a slice or a transpose of an INT8 weight is a copy;
* every other operation that writes is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_any, tree_map_only

from frugalore.ops import int8_dequantize, int8_quantize
from frugalore.ops._checks import FLOATS
from frugalore.weights.linear import dequantize, int8_linear

aten = torch.ops.aten

#: The tensors that an INT8 weight consists of, in the order of the constructor.
PARTS = ("codes", "scale", "zero")
#: The dtypes that an INT8 weight can show.
FLOAT_DTYPES = FLOATS


class Int8Weight(Tensor):
    """A matrix ``[out, in]`` in INT8, ``w ~ (codes - zero) * scale`` per group, that looks like floats.

    The format is Q-GaLore's (arXiv 2407.08296), with groups that start anew at every row. ``shape``,
    ``dtype``, ``device``, ``requires_grad`` and ``grad`` (a plain float tensor) are those of a float weight.

    Write with ``copy_`` (quantises floats), ``data =``, or the ops of :mod:`frugalore.ops` on the parts.
    Other operations that write are refused. A slice, view or transpose is a float copy: writing into one does
    not reach the weight.

    Args:
        codes: uint8 ``[out, in]``, contiguous.
        scale: float32 ``[out, groups]`` with ``groups = ceil(in / group_size)``.
        zero: uint8 ``[out, groups]``.
        group_size: elements of a row that share a scale and a zero-point.
        dtype: what the weight shows and computes in: float32, bfloat16 or float16. The codes do not depend
            on it.

    Raises:
        TypeError: a part of another dtype, or a ``dtype`` that is none of the three. ValueError: shapes,
        devices or strides that do not belong together.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    group_size: int

    @staticmethod
    def __new__(
        cls,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor,
        group_size: int = 256,
        dtype: torch.dtype = torch.float32,
    ) -> Int8Weight:
        check_float_dtype("dtype", dtype)
        if codes.dim() != 2:
            raise ValueError(f"codes: two dimensions expected, got shape {tuple(codes.shape)}")
        for name, part in zip(PARTS, (codes, scale, zero), strict=True):
            check_part(name, part, name, codes.shape, group_size)
            if part.device != codes.device:
                raise ValueError(f"{name}: device {codes.device} (as codes) expected, got {part.device}")
            if not part.is_contiguous():
                raise ValueError(f"{name}: a contiguous tensor expected, got strides {part.stride()}")
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=dtype, device=codes.device)

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        zero: Tensor,
        group_size: int = 256,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.codes, self.scale, self.zero, self.group_size = codes, scale, zero, group_size

    @classmethod
    def quantize(cls, x: Tensor, group_size: int = 256, dtype: torch.dtype | None = None) -> Int8Weight:
        """Quantise a float matrix, rounding to nearest (:func:`frugalore.ops.int8_quantize`).

        Args:
            x: float32, bfloat16 or float16 ``[out, in]``.
            group_size: elements of a row that share a scale and a zero-point.
            dtype: what the result shows; that of ``x`` if not given.

        Raises:
            TypeError: another dtype. ValueError: not a matrix, or a bad group size.
        """
        return cls(*int8_quantize(x.detach().contiguous(), group_size), group_size, dtype or x.dtype)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The plain float tensor ``[out, in]``, in the shown dtype or in ``dtype``; differentiable."""
        dtype = self.dtype if dtype is None else dtype
        check_float_dtype("dtype", dtype)
        return dequantize(self, dtype)

    def share_memory_(self) -> Int8Weight:
        """Move the parts to shared memory, in place, for other processes."""
        for part in _parts(self):
            part.share_memory_()
        return self

    def is_shared(self) -> bool:
        """Whether the parts are in shared memory (always on CUDA)."""
        return all(part.is_shared() for part in _parts(self))

    def __repr__(self, *, tensor_contents: object = None) -> str:
        kind = "Parameter of Int8Weight" if getattr(self, "_is_param", False) else "Int8Weight"
        grad = ", requires_grad=True" if self.requires_grad else ""
        return (
            f"{kind}(shape={tuple(self.shape)}, dtype={self.dtype}, device='{self.device}', "
            f"group_size={self.group_size}{grad})"
        )

    def __deepcopy__(self, memo: dict) -> Int8Weight:
        # As nn.Parameter's: a new leaf, without the gradient and the hooks.
        if id(self) not in memo:
            if not self.is_leaf:
                raise RuntimeError("Int8Weight: only a leaf of the autograd graph can be deep-copied")
            memo[id(self)] = _with_flags(self.detach().clone(), self)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: int) -> tuple:
        flags = (self.requires_grad, getattr(self, "_is_param", False))
        return _rebuild, (self.codes, self.scale, self.zero, self.group_size, self.dtype, *flags)

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        return list(PARTS), {"group_size": self.group_size, "dtype": self.dtype}

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], meta: dict[str, Any], size, stride) -> Int8Weight:
        return Int8Weight(*(parts[name] for name in PARTS), meta["group_size"], meta["dtype"])

    @classmethod
    def __torch_function__(cls, func: Callable, types, args: tuple = (), kwargs: dict | None = None) -> Any:
        # F.linear is caught here because it is decomposed before __torch_dispatch__, with autograd recording
        # (and so keeping) the float weight.
        kwargs = kwargs or {}
        if func is torch.nn.functional.linear:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            if isinstance(weight, Int8Weight):
                return int8_linear(*args, **kwargs)
        elif func is Tensor.__setitem__ and isinstance(args[0], Int8Weight):
            raise _write_refused("__setitem__")
        elif func == Tensor.data.__set__ and isinstance(args[0], Int8Weight):
            return _set_data(*args)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Callable, types, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _DISPATCH:
            return _DISPATCH[func](func, *args, **kwargs)
        _refuse_writes(func, args, kwargs)
        args, kwargs = tree_map_only(Int8Weight, _dense, (args, kwargs))
        return func(*args, **kwargs)


def check_float_dtype(name: str, dtype: torch.dtype) -> None:
    """Raise TypeError unless an INT8 weight can show ``dtype``."""
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: float32, bfloat16 or float16 expected, got {dtype}")


def check_part(part: str, value: Any, name: str, shape: tuple[int, ...], group_size: int) -> None:
    """Raise unless ``value`` can be the part ``part`` of a weight of this shape.

    Args:
        part: one of :data:`PARTS`.
        value: the candidate.
        name: what the messages call it.
        shape: ``[out, in]`` of the weight.
        group_size: of the weight.
    """
    if group_size <= 0:
        raise ValueError(f"group_size: a positive integer expected, got {group_size}")
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: a tensor expected, got {type(value).__name__}")
    dtype = torch.float32 if part == "scale" else torch.uint8
    if value.dtype != dtype:
        raise TypeError(f"{name}: dtype {dtype} expected, got {value.dtype}")
    rows, columns = shape
    expected = (rows, columns) if part == "codes" else (rows, -(-columns // group_size))
    if tuple(value.shape) != expected:
        of = f"a weight {tuple(shape)} in groups of {group_size}"
        raise ValueError(f"{name}: shape {expected} expected ({of}), got {tuple(value.shape)}")


def _rebuild(codes, scale, zero, group_size, dtype, requires_grad, is_param) -> Int8Weight:
    weight = Int8Weight(codes, scale, zero, group_size, dtype).requires_grad_(requires_grad)
    if is_param:
        weight._is_param = True  # What nn.Parameter sets on a tensor subclass.
    return weight


def _with_flags(weight: Int8Weight, like: Int8Weight) -> Int8Weight:
    flags = like.requires_grad, getattr(like, "_is_param", False)
    return _rebuild(weight.codes, weight.scale, weight.zero, weight.group_size, weight.dtype, *flags)


def _parts(weight: Int8Weight) -> tuple[Tensor, Tensor, Tensor]:
    return weight.codes, weight.scale, weight.zero


def _dense(weight: Int8Weight) -> Tensor:
    return int8_dequantize(*_parts(weight), weight.group_size, weight.dtype)


def _set_data(weight: Int8Weight, value: Tensor) -> None:
    """``weight.data = value``: the parts of ``value``, or of its quantisation, become those of the weight."""
    if tuple(value.shape) != tuple(weight.shape):
        raise ValueError(f"data: shape {tuple(weight.shape)} expected, got {tuple(value.shape)}")
    if not isinstance(value, Int8Weight):
        value = Int8Weight.quantize(value, weight.group_size)
    with torch._C.DisableTorchFunctionSubclass():
        Tensor.data.__set__(weight, value.detach())
    weight.codes, weight.scale, weight.zero = _parts(value)
    weight.group_size = value.group_size


def _write_refused(operation: object) -> TypeError:
    return TypeError(
        f"Int8Weight: {operation} would write into an INT8 weight, which it cannot; compute on "
        ".dequantize() and write the result with .copy_(), or use an optimizer of frugalore"
    )


def _refuse_writes(func: Any, args: tuple, kwargs: dict) -> None:
    def written(argument: Any) -> bool:
        return argument.alias_info is not None and argument.alias_info.is_write

    for position, argument in enumerate(func._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        if written(argument) and tree_any(lambda leaf: isinstance(leaf, Int8Weight), value):
            raise _write_refused(func)


_DISPATCH: dict[Any, Callable] = {}


def _implements(*operations: Any) -> Callable[[Callable], Callable]:
    def register(handler: Callable) -> Callable:
        _DISPATCH.update(dict.fromkeys(operations, handler))
        return handler

    return register


@_implements(aten.detach.default, aten.alias.default)
def _detach(func: Any, weight: Int8Weight) -> Int8Weight:
    return Int8Weight(*_parts(weight), weight.group_size, weight.dtype)


@_implements(aten.clone.default)
def _clone(func: Any, weight: Int8Weight, *, memory_format=None) -> Int8Weight:
    return Int8Weight(*(part.clone() for part in _parts(weight)), weight.group_size, weight.dtype)


@_implements(aten._to_copy.default)
def _to_copy(
    func: Any, weight: Int8Weight, *, dtype=None, device=None, non_blocking=False, **rest: Any
) -> Int8Weight:
    dtype = weight.dtype if dtype is None else dtype
    check_float_dtype("Int8Weight.to (.dequantize() first for another dtype)", dtype)
    device = weight.device if device is None else device
    moved = (part.to(device, non_blocking=non_blocking, copy=True) for part in _parts(weight))
    return Int8Weight(*moved, weight.group_size, dtype)


@_implements(aten.copy_.default)
def _copy_(func: Any, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Into an INT8 weight: quantises floats, copies the parts of another INT8 weight.

    A group that gets a NaN or infinite element becomes NaN; to look for one would wait for the device.
    """
    if not isinstance(target, Int8Weight):
        return func(target, _dense(source), non_blocking)
    same_groups = isinstance(source, Int8Weight) and source.group_size == target.group_size
    if same_groups and source.shape == target.shape:
        values = _parts(source)
    else:
        dense = source.dequantize(torch.float32) if isinstance(source, Int8Weight) else source
        dense = dense.to(device=target.device, dtype=torch.float32).expand(target.shape).contiguous()
        values = int8_quantize(dense, target.group_size)
    for part, value in zip(_parts(target), values, strict=True):
        part.copy_(value, non_blocking)
    # Below the autograd layer copy_ does not count as a write; who saved the parts must hear of it.
    torch.autograd.graph.increment_version(_parts(target))
    return target


@_implements(
    aten.empty_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
)
def _like(func: Any, weight: Int8Weight, *args: Any, **kwargs: Any) -> Tensor:
    kwargs["memory_format"] = torch.contiguous_format
    return func(_stand_in(weight), *args, **kwargs)


@_implements(aten.new_empty.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default)
def _new(func: Any, weight: Int8Weight, *args: Any, **kwargs: Any) -> Tensor:
    return func(_stand_in(weight), *args, **kwargs)


def _stand_in(weight: Int8Weight) -> Tensor:
    """One float element spread to the weight's shape, for operations that look at shape and dtype only."""
    return torch.empty((), dtype=weight.dtype, device=weight.device).expand(weight.shape)
