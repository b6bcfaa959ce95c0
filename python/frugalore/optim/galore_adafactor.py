"""GaLore (arXiv 2403.03507) with Adafactor (arXiv 1804.04235) inside."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from frugalore.optim.engine import SubspaceOptimizer
from frugalore.optim.galore import SUBSPACE_DEFAULTS
from frugalore.optim.low_rank import LowRank
from frugalore.rules import Adafactor
from frugalore.subspace import SvdSubspace


class GaLoreAdafactor(SubspaceOptimizer):
    """GaLore with Adafactor: second moments of the projected gradient as row and column means.

    State of a matrix ``[m, n]`` at rank r: the basis and ``max(m, n) + r`` numbers, plus ``max(m, n) r`` with
    ``beta1``. The formulas are those of :class:`frugalore.rules.Adafactor`; statistics, clipping and momentum
    live in the subspace, the step size and decay see the whole weight, as in the published code.

    Args:
        params: groups as :func:`frugalore.param_groups` makes them. A group with ``rank`` trains in the
            subspace, the others by the same Adafactor on the whole gradient. Weights may be float32,
            bfloat16, float16 or INT8 (:func:`frugalore.quantize_`).
        lr: learning rate, a float or a tensor of one element, with ``relative_step=False``; otherwise None,
            and the step size follows from the number of updates.
        eps: added to squared gradients; the least RMS of a weight that scales its step.
        clip_threshold: the largest RMS of an update before the step size.
        decay_rate: of the second moments, whose weight of the past is ``1 - t^decay_rate``.
        beta1: of the momentum of updates; None: none.
        weight_decay: decoupled, times the step size, before the update.
        scale_parameter: multiply the step size by the RMS of the weight.
        relative_step: the step size is ``min(1e-2, 1 / sqrt(t))``.
        warmup_init: with ``relative_step``, ``min(1e-6 t, 1 / sqrt(t))``.
        rounding: "stochastic" or "nearest" writes of bfloat16, float16 and INT8 weights.
        seed: of stochastic rounding and sketches; default: drawn from torch's generator.

    Options of a group with ``rank``: as in :class:`frugalore.GaLoreAdamW`. ``beta1`` cannot change once a
    group was added. A parameter whose gradient has a NaN or infinite element skips the whole update, also
    without ``rank``: its elements share their statistics.

    Raises:
        TypeError, ValueError: as :class:`frugalore.GaLoreAdamW`; ``lr`` together with ``relative_step``, or
            ``warmup_init`` without it.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        *,
        rounding: str = "stochastic",
        seed: int | None = None,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "eps": eps,
                "clip_threshold": clip_threshold,
                "decay_rate": decay_rate,
                "beta1": beta1,
                "weight_decay": weight_decay,
                "scale_parameter": scale_parameter,
                "relative_step": relative_step,
                "warmup_init": warmup_init,
                "rounding": rounding,
            },
            treatments=(LowRank(Adafactor(), SUBSPACE_DEFAULTS, SvdSubspace()),),
            seed=seed,
        )
