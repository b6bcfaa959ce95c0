"""From a model to parameter groups: which weights train in the subspace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from frugalore.target_modules import matching_linears

#: The projections of attention and MLP, as in the published recipes.
DEFAULT_TARGETS = ("attn", "mlp")

DEFAULT_RANK = 128


def param_groups(
    model: nn.Module,
    target_modules: str | Sequence[str] = DEFAULT_TARGETS,
    *,
    rank: int = DEFAULT_RANK,
    density: float | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into the two groups that the optimizers take.

    Args:
        model: frozen parameters (``requires_grad=False``) are left out.
        target_modules: which ``nn.Linear`` weights train in the subspace, matched as transformers does:
            "all-linear", a regular expression for the whole name, or a list of names, parts of names or
            regular expressions.
        rank: of the subspace, at least 1; clipped, with a warning, to the short side of smaller matrices. For
            the GaLore presets, Q-GaLore and Fira; default 128, unless there is a ``density``.
        density: share of the subspace, for the FRUGAL presets.
        **options: further options of the group, e.g. ``update_proj_gap`` and ``scale``, or ``subspace`` and
            ``update_gap``.

    Returns:
        ``[{"params": the rest}, {"params": the targets, "rank": rank, ...}]`` (or ``"density"``), with
        ``(name, parameter)`` pairs. The first is left out if it is empty.

    Raises:
        TypeError: ``target_modules`` is neither a string nor strings. ValueError: no module matches, or none
            of the matches is trainable; both ``rank`` and ``density``.
    """
    if density is not None and rank != DEFAULT_RANK:
        raise ValueError(f"density: one of rank and density expected, got {density!r} beside rank {rank!r}")
    share = {"rank": rank} if density is None else {"density": density}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matched = {f"{name}.weight" if name else "weight" for name, _ in matching_linears(model, target_modules)}
    targets = [(name, p) for name, p in trainable.items() if name in matched]
    rest = [(name, p) for name, p in trainable.items() if name not in matched]
    if not targets:
        raise ValueError(
            f"target_modules {target_modules!r}: none of the {len(matched)} matches is trainable"
        )
    groups: list[dict[str, Any]] = [{"params": rest}] if rest else []
    return [*groups, {"params": targets, **share, **options}]
