"""BAdam (arXiv 2404.02827): AdamW on one block of layers at a time, the rest stands still."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from frugalore.optim.frugal import FrugalOptimizer
from frugalore.rules import AdamW

#: The published names of the orders.
SWITCH_MODES = {"descending": "descending", "ascending": "ascending", "random": "shuffle", "fixed": "fixed"}


class BAdam(FrugalOptimizer):
    """Block coordinate descent with AdamW: FRUGAL with layer blocks and nothing outside.

    For ``switch_block_every`` steps one block trains; then its moments are dropped and the next one's turn
    comes. The other blocks have ``requires_grad=False``, so backward neither computes nor keeps their
    gradients: it is called on the parameters of the active block alone. Each parameter of a block is thawed
    when its turn comes, also one that was frozen before: leave out those that shall never train.

    Args:
        params: ``model.named_parameters()``: the names tell the layers. Or groups of such pairs; one with
            ``density`` takes part in the blocks, one without always trains whole.
        lr, betas, eps, weight_decay: of AdamW; decay is decoupled and comes before the update.
        switch_block_every: steps of a block's turn (K).
        switch_mode: "descending" (from the last layer), "ascending", "random" (a permutation, shuffled anew
            for each round), "fixed".
        start_block: index of the first block; default: the order's own.
        block_prefix_list: one block for each of these parts of names, "layers.0"; default: one for each
            layer's number.
        include_embedding, include_lm_head: give these a block of their own. Otherwise what belongs to no
            block is frozen, as in the published code.
        active_modules: parts of names of parameters that train in every step, by AdamW on the whole gradient.
        state_bits, rounding, seed: as in :class:`frugalore.FrugalAdamW`.

    Raises:
        TypeError, ValueError: as :class:`frugalore.FrugalAdamW`; also where no name has a layer's number.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        switch_block_every: int = 50,
        switch_mode: str = "descending",
        start_block: int | None = None,
        block_prefix_list: Sequence[str] | None = None,
        include_embedding: bool = False,
        include_lm_head: bool = False,
        active_modules: Sequence[str] = (),
        state_bits: int = 32,
        rounding: str = "stochastic",
        seed: int | None = None,
    ):
        if switch_mode not in SWITCH_MODES:
            raise ValueError(f"switch_mode: one of {', '.join(SWITCH_MODES)} expected, got {switch_mode!r}")
        options = {
            "update_gap": switch_block_every,
            "subspace": "blocks",
            "blocks": "layers",
            "active_blocks": 1,
            "block_order": SWITCH_MODES[switch_mode],
            "start_block": start_block,
            "block_prefixes": block_prefix_list,
            "include_embedding": include_embedding,
            "include_lm_head": include_lm_head,
            "inactive_update_rule": "no",
            "freeze_inactive": True,
        }
        super().__init__(
            _grouped(params, active_modules),
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


def _grouped(params: Iterable, active_modules: Sequence[str]) -> list[dict[str, Any]]:
    """Groups of named parameters, those of ``active_modules`` apart."""
    entries = list(params)
    if entries and isinstance(entries[0], dict):
        return entries
    for entry in entries:
        if not isinstance(entry, tuple) or len(entry) != 2:
            raise TypeError(
                f"params: pairs of a name and a parameter expected (model.named_parameters()), got "
                f"{type(entry).__name__}"
            )
    always = [entry for entry in entries if any(part in entry[0] for part in active_modules)]
    blocks = [entry for entry in entries if not any(part in entry[0] for part in active_modules)]
    groups: list[dict[str, Any]] = [{"params": always}] if always else []
    return [*groups, {"params": blocks, "density": 1.0}] if blocks else groups
