"""GaLore (arXiv 2403.03507) with Lion (arXiv 2302.06675) inside."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from frugalore.optim.engine import SubspaceOptimizer
from frugalore.optim.galore import SUBSPACE_DEFAULTS
from frugalore.optim.low_rank import LowRank
from frugalore.rules import Lion
from frugalore.subspace import SvdSubspace


class GaLoreLion(SubspaceOptimizer):
    """GaLore with Lion: the sign of a momentum of the projected gradient, taken in the subspace.

    Args:
        params: groups as :func:`frugalore.param_groups` makes them. A group with ``rank`` trains in the
            subspace, the others by the same rule on the whole gradient. Weights may be float32, bfloat16,
            float16 or INT8 (:func:`frugalore.quantize_`).
        lr: learning rate, a float or a tensor of one element.
        betas: of the sign and of the momentum.
        weight_decay: decoupled, before the update.
        rounding: "stochastic" or "nearest" writes of bfloat16, float16 and INT8 weights.
        seed: of stochastic rounding and sketches; default: drawn from torch's generator.

    Options of a group with ``rank``: as in :class:`frugalore.GaLoreAdamW`. The momentum takes 32 bits;
    ``state_bits`` is there to refuse others clearly.

    Raises:
        TypeError, ValueError: as :class:`frugalore.GaLoreAdamW`.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        state_bits: int = 32,
        rounding: str = "stochastic",
        seed: int | None = None,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "weight_decay": weight_decay,
                "state_bits": state_bits,
                "rounding": rounding,
            },
            treatments=(LowRank(Lion(), SUBSPACE_DEFAULTS, SvdSubspace()),),
            seed=seed,
        )
