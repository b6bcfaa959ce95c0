"""FRUGAL (arXiv 2411.07837) in plain torch (specification): one parameter, and what a switch does to it.

Written to be read beside the paper; slow, in the dtype of its arguments. Subspaces are given
(:mod:`frugalore.reference.frugal_subspaces`), because random draws and singular vectors cannot be compared;
everything after them is specified. With a step's gradient G, learning rate lr and ``scale``
(``proj_params_lr_scale``):

    W <- W (1 - lr weight_decay)
    R  = inside(G)                         coordinates of G in the subspace
    W <- W - lr scale back(rule(R))        AdamW, SGD with momentum or Lion, whose state has R's shape
    W <- W - lr scale inactive_lr_scale outside(G - back(R))      outside: sign, identity ("sgd"), or 0 ("no")

A parameter without gradient does nothing, nor does it decay. BAdam (arXiv 2404.02827) is the same with whole
tensors, the outside "no" and no gradient where a tensor is frozen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from frugalore.reference.frugal_subspaces import Subspace, Whole

#: sign(0) and sign(NaN) are 0, as in torch.
OUTSIDE = {
    "sign_sgd": torch.sign,
    "sgd": lambda residual: residual,
    "no": torch.zeros_like,
}
AT_SWITCH = ("reset", "keep", "rotate")


class Rule(Protocol):
    """The state-full rule. ``moments`` names its state tensors and whether one is of squares."""

    moments: ClassVar[dict[str, bool]]

    def __call__(self, r: Tensor, state: dict[str, Tensor], t: int) -> Tensor:
        """Update the state in place by R and return the direction; ``t`` is 1 at the first call after a
        reset."""


@dataclass(frozen=True)
class AdamW:
    """m̂ / (sqrt(v̂) + eps): eps is added to the corrected root, as in torch."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    moments: ClassVar[dict[str, bool]] = {"exp_avg": False, "exp_avg_sq": True}

    def __call__(self, r: Tensor, state: dict[str, Tensor], t: int) -> Tensor:
        beta1, beta2 = self.betas
        m, v = state["exp_avg"], state["exp_avg_sq"]
        m.mul_(beta1).add_(r, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(r, r, value=1 - beta2)
        return m / (1 - beta1**t) / (v.sqrt() / math.sqrt(1 - beta2**t) + self.eps)


@dataclass(frozen=True)
class Sgdm:
    """As torch.optim.SGD: the first update after a reset sets the buffer to R, whatever ``dampening``.

    (The published code begins with the buffer equal to the weights.)
    """

    momentum: float = 0.9
    dampening: float = 0.0
    nesterov: bool = False
    moments: ClassVar[dict[str, bool]] = {"momentum_buffer": False}

    def __call__(self, r: Tensor, state: dict[str, Tensor], t: int) -> Tensor:
        m = state["momentum_buffer"]
        m.mul_(self.momentum).add_(r, alpha=1.0 if t == 1 else 1 - self.dampening)
        return r + self.momentum * m if self.nesterov else m.clone()


@dataclass(frozen=True)
class Lion:
    betas: tuple[float, float] = (0.9, 0.99)
    moments: ClassVar[dict[str, bool]] = {"exp_avg": False}

    def __call__(self, r: Tensor, state: dict[str, Tensor], t: int) -> Tensor:
        beta1, beta2 = self.betas
        m = state["exp_avg"]
        direction = (beta1 * m + (1 - beta1) * r).sign()
        m.mul_(beta2).add_(r, alpha=1 - beta2)
        return direction


@dataclass
class Frugal:
    """One parameter.

    Attributes:
        weight: changed in place.
        lr: of the next step; may be set between steps. The weight decay is with this plain one.
        inactive_update_rule: "sign_sgd", "sgd" or "no".
        moments_at_refresh: what a switch does to the state:

            * "reset": zero, and t with it;
            * "keep": nothing, so that coordinates change their meaning (GaLore);
            * "rotate": the same vector in the new subspace (:meth:`Subspace.moment_from`); t goes on.

            A tensor that was wholly outside begins with a reset; one that is now wholly outside has no state.
        t: applied updates since the last reset; 0 where there is no state.
    """

    weight: Tensor
    rule: Rule = field(default_factory=AdamW)
    lr: float = 1e-3
    weight_decay: float = 0.0
    inactive_update_rule: str = "sign_sgd"
    inactive_lr_scale: float = 1.0
    proj_params_lr_scale: float = 1.0
    moments_at_refresh: str = "reset"
    subspace: Subspace | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    t: int = 0

    def __post_init__(self) -> None:
        if self.inactive_update_rule not in OUTSIDE or self.moments_at_refresh not in AT_SWITCH:
            raise ValueError(f"{self.inactive_update_rule}, {self.moments_at_refresh}: no such option")

    @torch.no_grad()
    def switch(self, subspace: Subspace) -> None:
        """The first or another subspace, for the steps from now on."""
        old, self.subspace = self.subspace, subspace
        shape = subspace.shape_of_state(tuple(self.weight.shape))
        if shape is None:
            self.state, self.t = {}, 0
        elif self.moments_at_refresh == "reset" or not self.state:
            self.state = {name: self.weight.new_zeros(shape) for name in self.rule.moments}
            self.t = 0
        elif self.moments_at_refresh == "rotate":
            self.state = {
                name: subspace.moment_from(old, self.state[name], tuple(self.weight.shape), squares)
                for name, squares in self.rule.moments.items()
            }

    @torch.no_grad()
    def step(self, grad: Tensor | None) -> None:
        """One update. ``grad`` None: nothing."""
        if grad is None:
            return
        self.weight.mul_(1 - self.lr * self.weight_decay)
        eta = self.lr * self.proj_params_lr_scale
        residual = grad
        if self.state:
            self.t += 1
            r = self.subspace.inside(grad)
            direction = self.rule(r, self.state, self.t)
            self.weight.sub_(eta * self.subspace.back(direction, grad.shape))
            residual = self.subspace.outside(grad, r)
        self.weight.sub_(eta * self.inactive_lr_scale * OUTSIDE[self.inactive_update_rule](residual))


def whole(weight: Tensor, **options) -> Frugal:
    """A parameter that the subspace does not concern: the rule moves all of it, always."""
    parameter = Frugal(weight, **options)
    parameter.switch(Whole())
    return parameter
