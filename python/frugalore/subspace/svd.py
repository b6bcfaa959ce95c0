"""The subspace of the leading singular vectors of the gradient (GaLore, Q-GaLore).

State of a parameter, for each side of the gradient that the projection acts on: ``basis`` (or, for the left
factor of ``proj_type="full"``, ``basis_left``) float32 ``[rank, length of the side]``, or packed INT4 with
``_scale`` and ``_zero``; for the published similarity test also ``first_vector``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from frugalore import ops
from frugalore.ops.gemm import matmul
from frugalore.ops.orthonormal import orthonormal_rows
from frugalore.ops.projection import Basis, low_rank_shape, short_side
from frugalore.ops.scaled import Scaled, largest_magnitude
from frugalore.subspace.options import check_positive_integer
from frugalore.subspace.turn import Turn

PROJ_TYPES = ("std", "reverse_std", "left", "right", "full")

#: What happens to the rule's moments when the basis changes.
MOMENTS_AT_REFRESH = ("keep", "rotate", "reset")

#: Random directions that join the old basis at a refresh.
_FRESH_DIRECTIONS = 8


def matrix_shape(shape: torch.Size | tuple[int, ...]) -> tuple[int, int]:
    """The matrix that a weight is trained as: its first dimension by all others (convolutions: output
    channels by input channels and kernel)."""
    return shape[0], math.prod(shape[1:])


class SvdSubspace:
    """Choice, storage and use of an SVD basis.

    The first basis comes from a randomised SVD, later ones from warm-started subspace iteration: the old
    basis is a better start than a random sketch, and it costs half as much. A few fresh random directions
    join it: what is orthogonal to the old basis, e.g. units that were dead so far, would otherwise never be
    found.

    Weights of more than two dimensions are trained as :func:`matrix_shape`.

    Group options: ``rank``; ``proj_type``, which side of the gradient ``[m, n]`` is projected:

        ==============  =================  =================  =======================
        ``proj_type``   m >= n             m < n              R
        ==============  =================  =================  =======================
        std             right              left               [m, rank] or [rank, n]
        reverse_std     left               right              [rank, n] or [m, rank]
        right, left     as named           as named
        full            both               both               [rank, rank]
        ==============  =================  =================  =======================

    ``quant`` (keep the basis in INT4), ``quant_n_bit`` (4), ``quant_group_size``; ``moments_at_refresh``:
    "keep" them as they are, as published; "rotate" them into the new basis (:class:`Turn`); "reset" them.
    ``similarity``, how a refresh is compared with the basis before it:

    * ``"overlap"``: the share ``o = ||P_new P_oldᵀ||² / ||P_old||²`` of the old subspace that the new one
      keeps, with chance taken out: ``(o - c) / (1 - c)``, where ``c = rank / length`` is what a random
      subspace would keep. 0 for unrelated subspaces, 1 for equal ones, at any rank. It knows no signs and no
      order.
    * ``"first_vector"``: the cosine of the two leading vectors as they come, as published. It reads 0 or less
      when only a sign flips or two near-equal singular values swap.

    With ``proj_type="full"`` the right factor is compared.
    """

    #: Options that decide how the state is stored, and so cannot change later.
    LAYOUT_OPTIONS = ("rank", "proj_type", "quant", "quant_n_bit", "quant_group_size", "similarity")

    @staticmethod
    def check_rank(group: dict[str, Any]) -> None:
        check_positive_integer("rank", group["rank"])

    @classmethod
    def check_options(cls, group: dict[str, Any]) -> None:
        cls.check_rank(group)
        choices = {
            "proj_type": PROJ_TYPES,
            "moments_at_refresh": MOMENTS_AT_REFRESH,
            "similarity": ("overlap", "first_vector"),
        }
        for name, allowed in choices.items():
            if group[name] not in allowed:
                raise ValueError(f"{name}: one of {', '.join(allowed)} expected, got {group[name]!r}")
        if group["quant"] and group["quant_n_bit"] != 4:
            raise ValueError(f"quant_n_bit: 4 expected, got {group['quant_n_bit']!r}")
        size = group["quant_group_size"]
        if not isinstance(size, int) or size <= 0 or size % 2:
            raise ValueError(f"quant_group_size: a positive even number expected, got {size!r}")

    # ---- shapes -------------------------------------------------------------------------------------

    @staticmethod
    def rank(shape: torch.Size, group: dict[str, Any]) -> int:
        return min(int(group["rank"]), *matrix_shape(shape))

    @staticmethod
    def _side(shape: torch.Size, group: dict[str, Any]) -> str:
        """The side that ``basis`` acts on. With "full" it is the right one, and ``basis_left`` the other."""
        proj_type = group["proj_type"]
        if proj_type in ("left", "right"):
            return proj_type
        if proj_type == "full":
            return "right"
        std = short_side(matrix_shape(shape))
        return std if proj_type == "std" else {"left": "right", "right": "left"}[std]

    @classmethod
    def low_rank_shape(cls, shape: torch.Size, group: dict[str, Any]) -> tuple[int, int]:
        """The shape of the projected gradient."""
        rank = cls.rank(shape, group)
        if group["proj_type"] == "full":
            return (rank, rank)
        return low_rank_shape(matrix_shape(shape), rank, cls._side(shape, group))

    @classmethod
    def _lengths(cls, shape: torch.Size, group: dict[str, Any]) -> dict[str, int]:
        """The length of the vectors of each stored basis."""
        m, n = matrix_shape(shape)
        lengths = {"basis": n if cls._side(shape, group) == "right" else m}
        return lengths | ({"basis_left": m} if group["proj_type"] == "full" else {})

    @classmethod
    def is_complete(cls, shape: torch.Size, group: dict[str, Any]) -> bool:
        """Whether the subspace holds every gradient, so that a residual is nothing but rounding."""
        rank = cls.rank(shape, group)
        return all(rank == length for length in cls._lengths(shape, group).values())

    @classmethod
    def state_shapes(
        cls, shape: torch.Size, group: dict[str, Any]
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each state tensor, to check a checkpoint against."""
        rank = cls.rank(shape, group)
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for name, length in cls._lengths(shape, group).items():
            if group["quant"]:
                groups = -(-length // group["quant_group_size"])
                shapes[name] = ((rank, -(-length // 2)), torch.uint8)
                shapes[f"{name}_scale"] = ((rank, groups), torch.float32)
                shapes[f"{name}_zero"] = ((rank, groups), torch.uint8)
            else:
                shapes[name] = ((rank, length), torch.float32)
        if group["similarity"] == "first_vector":
            shapes["first_vector"] = ((cls._lengths(shape, group)["basis"],), torch.float32)
        return shapes

    # ---- use ----------------------------------------------------------------------------------------

    @staticmethod
    def _stored(state: dict[str, Any], name: str = "basis") -> Basis:
        """A stored basis, as the ops take it."""
        if f"{name}_scale" in state:
            return ops.Int4Groups(state[name], state[f"{name}_scale"], state[f"{name}_zero"])
        return state[name]

    def project(
        self, grad: Tensor, state: dict[str, Any], group: dict[str, Any], *, exactly: bool = False
    ) -> Tensor:
        """R of a matrix ``grad``.

        Args:
            exactly: in float32 whatever the gradient's dtype, for a residual ``G - back(R)``.
        """
        size = group["quant_group_size"]
        project = ops.split_project if exactly else ops.project
        r = project(grad, self._stored(state), side=self._side(grad.shape, group), group_size=size)
        if group["proj_type"] == "full":
            r = ops.project(r, self._stored(state, "basis_left"), side="left", group_size=size)
        return r

    def way_back(
        self, direction: Tensor, state: dict[str, Any], group: dict[str, Any], shape: torch.Size
    ) -> tuple[Tensor, Basis, str]:
        """``(direction, basis, side)`` of the last product of the way back, the one that is fused into the
        write of the weight. With "full" the left product is made here."""
        if group["proj_type"] == "full":
            left = self._dense(state, group, "basis_left", matrix_shape(shape)[0])
            direction = matmul(left.to(direction.dtype).t(), direction)
        return direction, self._stored(state), self._side(shape, group)

    # ---- refresh ------------------------------------------------------------------------------------

    def refresh(
        self, grad: Tensor, state: dict[str, Any], group: dict[str, Any], n_iter: int = 1
    ) -> tuple[Tensor, Turn | None]:
        """Replace the basis of a matrix ``grad`` by one for it.

        Args:
            n_iter: power iterations, where there is a basis to begin with.

        Returns:
            The similarity to the basis before (1 for the first), and the :class:`Turn` between them, if
            ``moments_at_refresh`` asks for it. If ``grad`` is zero or not finite, and so has no leading
            vectors, the old basis stays and the similarity is NaN. That is decided on the device.
        """
        largest = largest_magnitude(grad)
        usable = (largest > 0) & largest.isfinite()
        lengths = self._lengths(grad.shape, group)
        if state["refreshes"] > 0:
            old = {name: self._dense(state, group, name, length) for name, length in lengths.items()}
            new = self._turned_bases(grad, old, state, group, n_iter)
            similarity = self._similarity(new["basis"], old["basis"], state, group)
        else:
            old = {}
            new = self._first_bases(grad, state, group)
            similarity = torch.ones((), device=grad.device)
        self._store(new, state, group, usable)
        turn = self._turn(old, state, grad.shape, group, usable) if old else None
        return torch.where(usable, similarity, torch.nan), turn

    def _turned_bases(
        self,
        grad: Tensor,
        old: dict[str, Tensor],
        state: dict[str, Any],
        group: dict[str, Any],
        n_iter: int,
    ) -> dict[str, Tensor]:
        side = self._side(grad.shape, group)
        bases = {"basis": self._turned_basis(grad, old["basis"], state, group, side, n_iter)}
        if "basis_left" in old:
            # The left factor needs no iteration of its own: its vectors are the images of the right ones.
            image = Scaled(grad).rows_times_transposed(bases["basis"])
            bases["basis_left"] = self._turned_to(orthonormal_rows(image).rows, old["basis_left"])
        return bases

    @staticmethod
    def _turned_to(rows: Tensor, old: Tensor) -> Tensor:
        """Each row with the sign that points it to the same side as the old one."""
        along = (rows * old).sum(dim=1, keepdim=True)
        return torch.where(along < 0, -rows, rows)

    @staticmethod
    def _turned_basis(
        grad: Tensor, old: Tensor, state: dict[str, Any], group: dict[str, Any], side: str, n_iter: int
    ) -> Tensor:
        rank, length = old.shape
        fresh = ops.rademacher_(
            old.new_empty((min(_FRESH_DIRECTIONS, length - rank), length)),
            seed=group["seed"],
            tensor_id=state["tensor_id"],
            period=state["refreshes"],
        )
        start = torch.cat([old, fresh.div_(math.sqrt(length))])
        return ops.subspace_iterate(grad, start, n_iter, side=side, rank=rank)

    def _first_bases(self, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Tensor]:
        svd = ops.randomized_svd(
            grad,
            self.rank(grad.shape, group),
            n_iter=1,  # bench/results/cpu/svd_beside_torch.md: all but 0.01 % of a gradient's energy
            seed=group["seed"],
            tensor_id=state["tensor_id"],
        )
        sides = {"right": svd.vh, "left": svd.u.t().contiguous()}
        bases = {"basis": sides[self._side(grad.shape, group)]}
        return bases | ({"basis_left": sides["left"]} if group["proj_type"] == "full" else {})

    def _dense(self, state: dict[str, Any], group: dict[str, Any], name: str, length: int) -> Tensor:
        basis = self._stored(state, name)
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
    def _store(new: dict[str, Tensor], state: dict[str, Any], group: dict[str, Any], usable: Tensor) -> None:
        parts: dict[str, Tensor] = {}
        for name, basis in new.items():
            if group["quant"]:
                packed = ops.int4_quantize(basis, group["quant_group_size"])
                parts |= zip((name, f"{name}_scale", f"{name}_zero"), packed, strict=True)
            else:
                parts[name] = basis
        if group["similarity"] == "first_vector":
            parts["first_vector"] = new["basis"][0].clone()
        for name, value in parts.items():
            state[name] = torch.where(usable, value, state[name]) if name in state else value

    def _turn(
        self,
        old: dict[str, Tensor],
        state: dict[str, Any],
        shape: torch.Size,
        group: dict[str, Any],
        usable: Tensor,
    ) -> Turn | None:
        if group["moments_at_refresh"] == "keep":
            return None
        factors: dict[str, Tensor | None] = {"left": None, "right": None}
        if group["moments_at_refresh"] == "rotate":
            for name, before in old.items():
                after = self._dense(state, group, name, before.shape[1])
                side = "left" if name == "basis_left" else self._side(shape, group)
                factors[side] = after @ before.t()
        return Turn(factors["left"], factors["right"], usable)
