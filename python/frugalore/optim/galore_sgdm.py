"""GaLore (arXiv 2403.03507) with SGD and momentum inside."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from frugalore.optim.engine import SubspaceOptimizer
from frugalore.optim.galore import SUBSPACE_DEFAULTS
from frugalore.optim.low_rank import LowRank
from frugalore.rules import SGDM
from frugalore.subspace import SvdSubspace


class GaLoreSGDM(SubspaceOptimizer):
    """GaLore with SGD and momentum: one buffer of the projected gradient.

    Args:
        params: groups as :func:`frugalore.param_groups` makes them. A group with ``rank`` trains in the
            subspace, the others by the same rule on the whole gradient. Weights may be float32, bfloat16,
            float16 or INT8 (:func:`frugalore.quantize_`).
        lr: learning rate, a float or a tensor of one element.
        momentum, dampening, nesterov: as in ``torch.optim.SGD``.
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
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        state_bits: int = 32,
        rounding: str = "stochastic",
        seed: int | None = None,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "state_bits": state_bits,
                "rounding": rounding,
            },
            treatments=(LowRank(SGDM(), SUBSPACE_DEFAULTS, SvdSubspace()),),
            seed=seed,
        )
