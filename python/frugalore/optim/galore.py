"""GaLore (arXiv 2403.03507): AdamW on the gradient's projection into its leading singular subspace."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from frugalore.optim.engine import SubspaceOptimizer
from frugalore.optim.low_rank import LowRank
from frugalore.rules import AdamW
from frugalore.subspace import SvdSubspace

#: Options of a group with ``rank`` in every GaLore preset, where the group does not say otherwise.
SUBSPACE_DEFAULTS = {
    "update_proj_gap": 200,
    "scale": 0.25,
    "proj_type": "std",
    "quant": False,
    "quant_n_bit": 4,
    "quant_group_size": 256,
    "cos_threshold": None,
    "gamma_proj": 2,
    "queue_size": 5,
    "similarity": "overlap",
    "stagger": True,
    "moments_at_refresh": "keep",
}


class GaLoreAdamW(SubspaceOptimizer):
    """GaLore with AdamW: full-parameter training with moments of the projected gradient only.

    Args:
        params: groups as :func:`frugalore.param_groups` makes them. A group with ``rank`` trains in the
            subspace, the others by the same AdamW on the whole gradient. Weights may be float32, bfloat16,
            float16 or INT8 (:func:`frugalore.quantize_`).
        lr: learning rate, a float or a tensor of one element.
        betas, eps, weight_decay: of AdamW, in every group. ``eps`` joins the root of the second moment before
            its bias is corrected, and decay comes after the update, as in the published code.
        state_bits: 32, 8 or 4 bits a moment.
        rounding: "stochastic" or "nearest" writes of bfloat16, float16 and INT8 weights.
        seed: of stochastic rounding and sketches; default: drawn from torch's generator.

    Options of a group with ``rank``: ``update_proj_gap`` (200), ``scale`` (0.25, multiplies the projected
    update), ``proj_type`` ("std"; "reverse_std", "left", "right", "full"), and those of
    :class:`frugalore.FusedQGaLore`, here with ``quant=False`` and a fixed gap (``cos_threshold=None``).

    Raises:
        TypeError, ValueError: as :class:`frugalore.FusedQGaLore`.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
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
                "eps": eps,
                "weight_decay": weight_decay,
                "state_bits": state_bits,
                "rounding": rounding,
            },
            treatments=(LowRank(AdamW(eps_mode="raw", decay="after"), SUBSPACE_DEFAULTS, SvdSubspace()),),
            seed=seed,
        )


class GaLoreAdamW8bit(SubspaceOptimizer):
    """GaLore with 8-bit AdamW: :class:`GaLoreAdamW` with the defaults and conventions of bitsandbytes.

    ``eps`` (1e-8) joins the corrected root, ``weight_decay`` is 0.01, moments take 8 bits in blocks of 256
    elements (float32 below 4096 elements). Everything else is as in :class:`GaLoreAdamW`.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        state_bits: int = 8,
        rounding: str = "stochastic",
        seed: int | None = None,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "state_bits": state_bits,
                "rounding": rounding,
            },
            treatments=(
                LowRank(AdamW(eps_mode="corrected", decay="after"), SUBSPACE_DEFAULTS, SvdSubspace()),
            ),
            seed=seed,
        )
