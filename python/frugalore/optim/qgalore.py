"""Q-GaLore (arXiv 2407.08296): INT4 projection, INT8 weights, 8-bit Adam, layer-adaptive subspaces."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from frugalore.optim.engine import SubspaceOptimizer
from frugalore.optim.low_rank import LowRank
from frugalore.rules import AdamW
from frugalore.subspace import SvdSubspace

#: Options of a group with ``rank``, where the group does not say otherwise.
SUBSPACE_DEFAULTS = {
    "update_proj_gap": 200,
    "scale": 0.25,
    "proj_type": "std",
    "quant": True,
    "quant_n_bit": 4,
    "quant_group_size": 256,
    "cos_threshold": 0.4,
    "gamma_proj": 2,
    "queue_size": 5,
    "similarity": "overlap",
    "stagger": True,
    "moments_at_refresh": "keep",
}


class FusedQGaLore(SubspaceOptimizer):
    """Q-GaLore with fused kernels: full-parameter training with a low-rank, 8-bit state.

    Args:
        params: groups as :func:`frugalore.param_groups` makes them. A group with ``rank`` trains in the
            subspace; weights that went through :func:`frugalore.quantize_` are INT8 and are written with
            stochastic rounding, float weights stay float (bfloat16 and float16 with stochastic rounding).
        lr: learning rate, a float or a tensor of one element.
        betas, eps, weight_decay: of AdamW, in every group. Decay comes after the update and is decoupled, as
            in the published code.
        state_bits: 8 (blocks of 256; parameters below 4096 elements keep float32), 4 (blocks of 128; without
            a fused kernel so far, so slower) or 32.
        rounding: "stochastic" or "nearest" writes.
        seed: of stochastic rounding and sketches; default: drawn from torch's generator.

    Options of a group with ``rank``, in the spelling of the published code: ``update_proj_gap`` (200),
    ``scale`` (0.25, multiplies the projected update), ``proj_type`` ("std"), ``quant`` (True: INT4 basis),
    ``quant_n_bit`` (4), ``quant_group_size`` (256), ``cos_threshold`` (0.4; None: fixed gap), ``gamma_proj``
    (2), ``queue_size`` (5); ours: ``similarity`` ("overlap", or "first_vector" as published).

    What decides how state is stored (``rank``, ``quant*``, ``proj_type``, ``similarity``, ``state_bits``) and
    ``update_proj_gap`` cannot change once a group was added; the rest may change between steps.

    Raises:
        TypeError: a parameter of another dtype than float32, bfloat16 or float16, or of another class.
        ValueError: an option out of range, a parameter that is not a matrix in a group with ``rank``, is not
            contiguous or is there twice; the message names it.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
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
