"""FRUGAL (arXiv 2411.07837): a state-full rule inside a subspace, a state-free one outside of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from frugalore.optim import checks
from frugalore.optim.coordinates import COORDINATES, Coordinates
from frugalore.optim.engine import SubspaceOptimizer
from frugalore.optim.low_rank import LowRank
from frugalore.optim.treatment import Group
from frugalore.rules import AdamW
from frugalore.rules.outside import INACTIVE_UPDATE_RULES, Fira, OutsideRule
from frugalore.subspace import DensitySubspace, RefreshSchedule

LOW_RANK = ("svd", "random")

#: Options of a group with ``density`` in every FRUGAL preset, where neither the group nor the constructor
#: says otherwise.
FRUGAL_DEFAULTS = {
    "density": 0.25,
    "update_gap": 200,
    "subspace": "columns",
    "inactive_update_rule": "sign_sgd",
    "inactive_lr_scale": 1.0,
    "proj_params_lr_scale": 1.0,
    "moments_at_refresh": "reset",
    # blocks
    "block_order": "descending",
    "block_budget": "count",
    "blocks": "parameters",
    "block_prefixes": None,
    "include_embedding": False,
    "include_lm_head": False,
    "active_blocks": None,
    "start_block": None,
    "freeze_inactive": False,
    # svd and random
    "proj_type": "std",
    "quant": False,
    "quant_n_bit": 4,
    "quant_group_size": 256,
    "cos_threshold": None,
    "gamma_proj": 2,
    "queue_size": 5,
    "similarity": "overlap",
    "stagger": False,
    "fira_mode": "paper",
    "fira_limit": 1.01,
}


class DensityLowRank(LowRank):
    """FRUGAL in an SVD or random subspace of ``density`` of the short side."""

    marker = "density"

    def __init__(self, inside: Any, defaults: dict[str, Any]):
        super().__init__(inside, defaults, DensitySubspace(), RefreshSchedule("update_gap"))

    def takes(self, group: Group) -> bool:
        return group["subspace"] in LOW_RANK and group["density"] != 0

    def outside(self, group: Group) -> OutsideRule:
        if group["inactive_update_rule"] == "fira":
            return Fira(mode=group["fira_mode"], limit=group["fira_limit"])
        return OutsideRule(INACTIVE_UPDATE_RULES[group["inactive_update_rule"]])

    def scales(self, group: Group) -> tuple[float, float]:
        inside = float(group["proj_params_lr_scale"])
        return inside, inside * float(group["inactive_lr_scale"])

    def check_options(self, group: Group) -> None:
        for name in ("inactive_lr_scale", "proj_params_lr_scale"):
            checks.check_not_negative(name, group[name])
        checks.check_density(group["density"])
        rules = (*INACTIVE_UPDATE_RULES, "fira")
        checks.check_choice("inactive_update_rule", group["inactive_update_rule"], rules)
        if group["inactive_update_rule"] == "fira":
            check_fira(group, self.inside)
            if group["inactive_lr_scale"] != 1.0:
                raise ValueError(
                    f"inactive_lr_scale: 1 expected with the rule 'fira', got {group['inactive_lr_scale']!r}"
                )
        super().check_options(group)

    def is_state_free(self, p: Tensor, group: Group) -> bool:
        return False


def check_fira(group: Group, inside: Any) -> None:
    """ValueError, naming the option, unless Fira's outside rule goes with the others."""
    checks.check_choice("fira_mode", group["fira_mode"], ("code", "paper"))
    limit = group["fira_limit"]
    checks.check_not_negative("fira_limit", limit)
    if limit < 1:
        raise ValueError(f"fira_limit: 1 or more expected, got {limit!r}")
    if not isinstance(inside, AdamW):
        raise ValueError(f"inactive_update_rule: 'fira' goes with AdamW inside, got {type(inside).__name__}")
    if group["proj_type"] == "full":
        raise ValueError("proj_type: one side expected with the rule 'fira', got 'full'")


class FrugalOptimizer(SubspaceOptimizer):
    """What the FRUGAL presets share: their treatments and the spelling of their groups."""

    def __init__(
        self,
        params: Iterable,
        defaults: dict[str, Any],
        inside: Any,
        options: dict[str, Any],
        seed: int | None,
    ):
        unknown = sorted(options.keys() - FRUGAL_DEFAULTS.keys())
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: no option of {type(self).__name__}")
        coordinates = Coordinates(inside, FRUGAL_DEFAULTS | options)
        low_rank = DensityLowRank(inside, coordinates.defaults)
        super().__init__(params, defaults, treatments=(low_rank, coordinates), seed=seed)
        if not any("density" in group for group in self.param_groups):
            checks.warn(
                "no param group has a density, so every parameter trains whole; "
                "frugalore.param_groups(model, density=...) makes the groups"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in :class:`SubspaceOptimizer`. The published ``is_proj_params=True`` puts a group into the
        subspace too."""
        group = dict(param_group)
        if group.pop("is_proj_params", False):
            group.setdefault("density", self._treatments[0].defaults["density"])
        if "density" in group:
            known = (*COORDINATES, *LOW_RANK)
            checks.check_choice("subspace", (self._treatments[0].defaults | group)["subspace"], known)
        super().add_param_group(group)


class FrugalAdamW(FrugalOptimizer):
    """FRUGAL with AdamW inside the subspace and signSGD outside: full-rank updates, the state of a part.

        W <- (1 - lr weight_decay) W
        inside    W <- W - lr proj_params_lr_scale AdamW(R)
        outside   W <- W - lr proj_params_lr_scale inactive_lr_scale sign(G - back(R))

    Args:
        params: groups as ``frugalore.param_groups(model, density=0.25)`` makes them. A group with ``density``
            (or the published ``is_proj_params=True``) trains in the subspace, the others by AdamW on the
            whole gradient. Weights may be float32, bfloat16, float16 or INT8 (:func:`frugalore.quantize_`).
        lr: learning rate, a float or a tensor of one element.
        betas, eps, weight_decay: of AdamW, in every group. Decay comes before the update and is decoupled.
        state_bits: 32, 8 or 4 bits a moment.
        rounding: "stochastic" or "nearest" writes of bfloat16, float16 and INT8 weights.
        seed: of stochastic rounding and of what is chosen; default: drawn from torch's generator. With one
            seed every process chooses the same coordinates.
        **options: defaults of the options of groups with ``density``:

    * ``density`` (0.25): share of the columns, rows, elements, blocks or of the rank. 0: signSGD, no state.
    * ``update_gap`` (200): steps between two choices.
    * ``subspace``: "columns" (default; input features), "rows", "randk" (single elements), "randperm"
      (columns or rows, whichever is the short side), "blocks" (whole parameters), "svd" (leading singular
      vectors of the gradient), "random" (random orthonormal vectors).
    * ``inactive_update_rule``: "sign_sgd" (default), "sgd", "no"; with "svd" and "random" also "fira".
    * ``inactive_lr_scale``, ``proj_params_lr_scale`` (1): factors of the learning rate, above.
    * ``moments_at_refresh``, at a new choice: "reset" (default) begins anew; "keep" leaves the moments where
      they are; "rotate" re-projects them: coordinates in both choices keep theirs, others begin with zero.
    * blocks: ``block_order`` ("descending", "ascending", "random", "mirror": half from each end),
      ``block_budget`` ("count" of parameters, or "bytes" of state), ``freeze_inactive`` (inactive ones
      neither move nor get gradients), ``blocks`` ("parameters", or "layers" by their names).
    * svd, random: ``proj_type``, ``quant*``, ``stagger`` and the others of :class:`frugalore.GaLoreAdamW`.

    ``density`` and ``update_gap`` of coordinates may change between steps; a new density holds from the next
    choice on.

    Raises:
        TypeError: a parameter of another dtype than float32, bfloat16 or float16, or of another class; an
            unknown option. ValueError: an option out of range, a parameter that is not a matrix in a group
            with ``density`` (other than blocks), is not contiguous or is there twice; the message names it.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        state_bits: int = 32,
        rounding: str = "stochastic",
        seed: int | None = None,
        **options: Any,
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
            AdamW(eps_mode="corrected", decay="before"),
            options,
            seed,
        )
