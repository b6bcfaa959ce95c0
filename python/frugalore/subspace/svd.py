"""The subspace of the leading singular vectors, on the short side of the gradient (GaLore, Q-GaLore).

State of a parameter: ``basis`` float32 ``[rank, short side]``, or packed INT4 with ``basis_scale`` and
``basis_zero``; for the published similarity test also ``first_vector``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from frugalore import ops
from frugalore.ops.projection import Basis, low_rank_shape, short_side
from frugalore.ops.svd import largest_magnitude
from frugalore.subspace.options import check_positive_integer

_PACKED_NAMES = ("basis", "basis_scale", "basis_zero")

#: Random directions that join the old basis at a refresh.
_FRESH_DIRECTIONS = 8


class SvdSubspace:
    """Choice, storage and use of an SVD basis.

    The first basis comes from a randomised SVD, later ones from one warm-started subspace iteration: the old
    basis is a better start than a random sketch, and it costs half as much. A few fresh random directions
    join it: what is orthogonal to the old basis, e.g. units that were dead so far, would otherwise never be
    found.

    Group options: ``rank``; ``quant`` (keep the basis in INT4), ``quant_n_bit`` (4), ``quant_group_size``;
    ``similarity``, how a refresh is compared with the basis before it:

    * ``"overlap"``: the share ``o = ||P_new P_oldᵀ||² / ||P_old||²`` of the old subspace that the new one
      keeps, with chance taken out: ``(o - c) / (1 - c)``, where ``c = rank / short side`` is what a random
      subspace would keep. 0 for unrelated subspaces, 1 for equal ones, at any rank. It knows no signs and no
      order.
    * ``"first_vector"``: the cosine of the two leading vectors as they come, as published. It reads 0 or less
      when only a sign flips or two near-equal singular values swap.
    """

    #: Options that decide how the state is stored, and so cannot change later.
    LAYOUT_OPTIONS = ("rank", "proj_type", "quant", "quant_n_bit", "quant_group_size", "similarity")

    @staticmethod
    def check_options(group: dict[str, Any]) -> None:
        check_positive_integer("rank", group["rank"])
        if group["proj_type"] != "std":
            raise ValueError(f"proj_type: 'std' (the short side) expected, got {group['proj_type']!r}")
        if group["quant"] and group["quant_n_bit"] != 4:
            raise ValueError(f"quant_n_bit: 4 expected, got {group['quant_n_bit']!r}")
        size = group["quant_group_size"]
        if not isinstance(size, int) or size <= 0 or size % 2:
            raise ValueError(f"quant_group_size: a positive even number expected, got {size!r}")
        if group["similarity"] not in ("overlap", "first_vector"):
            raise ValueError(f"similarity: 'overlap' or 'first_vector' expected, got {group['similarity']!r}")

    @staticmethod
    def rank(shape: torch.Size, group: dict[str, Any]) -> int:
        return min(int(group["rank"]), *shape)

    @classmethod
    def low_rank_shape(cls, shape: torch.Size, group: dict[str, Any]) -> tuple[int, int]:
        """The shape of the projected gradient."""
        return low_rank_shape(shape, cls.rank(shape, group), short_side(shape))

    @classmethod
    def state_shapes(
        cls, shape: torch.Size, group: dict[str, Any]
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each state tensor, to check a checkpoint against."""
        rank, length = cls.rank(shape, group), min(shape)
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        if group["quant"]:
            groups = -(-length // group["quant_group_size"])
            sizes = ((rank, -(-length // 2)), (rank, groups), (rank, groups))
            dtypes = (torch.uint8, torch.float32, torch.uint8)
            shapes.update(zip(_PACKED_NAMES, zip(sizes, dtypes, strict=True), strict=True))
        else:
            shapes["basis"] = ((rank, length), torch.float32)
        if group["similarity"] == "first_vector":
            shapes["first_vector"] = ((length,), torch.float32)
        return shapes

    @staticmethod
    def basis(state: dict[str, Any]) -> Basis:
        """The stored basis, as the ops take it."""
        if "basis_scale" in state:
            return ops.Int4Groups(*(state[name] for name in _PACKED_NAMES))
        return state["basis"]

    def project(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        return ops.project(grad, self.basis(state), group_size=group["quant_group_size"])

    def refresh(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Replace the basis by one for ``grad``; returns its similarity to the old one (1 for the first).

        If ``grad`` is zero or not finite, and so has no leading vectors, the old basis stays and NaN is
        returned. That is decided on the device.
        """
        largest = largest_magnitude(grad)
        usable = (largest > 0) & largest.isfinite()
        if state["refreshes"] > 0:
            old = self._dense(state, group, min(grad.shape))
            new = self._turned_basis(grad, old, state, group)
            similarity = self._similarity(new, old, state, group)
        else:
            new = self._first_basis(grad, state, group)
            similarity = torch.ones((), device=grad.device)
        self._store(new, state, group, usable)
        return torch.where(usable, similarity, torch.nan)

    @staticmethod
    def _turned_basis(grad: Tensor, old: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        rank, length = old.shape
        fresh = ops.rademacher_(
            old.new_empty((min(_FRESH_DIRECTIONS, length - rank), length)),
            seed=group["seed"],
            tensor_id=state["tensor_id"],
            period=state["refreshes"],
        )
        start = torch.cat([old, fresh.div_(math.sqrt(length))])
        return ops.subspace_iterate(grad, start)[:rank]

    def _first_basis(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        svd = ops.randomized_svd(
            grad, self.rank(grad.shape, group), seed=group["seed"], tensor_id=state["tensor_id"]
        )
        return svd.vh if short_side(grad.shape) == "right" else svd.u.t().contiguous()

    def _dense(self, state: dict[str, Any], group: dict[str, Any], length: int) -> Tensor:
        basis = self.basis(state)
        if isinstance(basis, tuple):
            return ops.int4_dequantize(*basis, length, group["quant_group_size"])
        return basis

    @staticmethod
    def _similarity(new: Tensor, old: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if group["similarity"] == "overlap":
            kept = (new @ old.t()).square().sum() / old.square().sum()
            chance = new.shape[0] / new.shape[1]
            return (kept - chance) / (1 - chance) if chance < 1 else torch.ones_like(kept)
        return torch.nn.functional.cosine_similarity(new[0], state["first_vector"], dim=0)

    @staticmethod
    def _store(new: Tensor, state: dict[str, Any], group: dict[str, Any], usable: Tensor) -> None:
        parts = {"basis": new}
        if group["quant"]:
            packed = ops.int4_quantize(new, group["quant_group_size"])
            parts = dict(zip(_PACKED_NAMES, packed, strict=True))
        if group["similarity"] == "first_vector":
            parts["first_vector"] = new[0].clone()
        for name, value in parts.items():
            state[name] = torch.where(usable, value, state[name]) if name in state else value
