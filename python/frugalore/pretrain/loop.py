"""The training loop: one step, the learning rate, clipping, validation, and the state to continue from."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frugalore.pretrain import memory
from frugalore.pretrain.config import PretrainConfig
from frugalore.pretrain.data import Batches


def learning_rate_factor(config: PretrainConfig, step: int) -> float:
    """The part of the peak at a step counted from 1: linear warm-up, then a cosine to ``min_lr_ratio``."""
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    progress = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2


class Trainer:
    """Holds what changes from step to step."""

    def __init__(
        self,
        config: PretrainConfig,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        device: torch.device,
    ):
        self.config = config
        self.model = model
        self.optimizer = optimizer
        self.batches = batches
        self.device = device
        self.step_count = 0
        self.skipped = 0  #: steps left out because the gradient was not finite
        self.gradient_bytes = 0  #: the most that a backward left behind
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def step(self) -> dict[str, float]:
        """One batch forward, backward and update. The metrics are those before the update."""
        started = time.perf_counter()
        self.model.train()
        step = self.step_count + 1
        factor = learning_rate_factor(self.config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        loss = self._loss(self.batches.train(step))
        loss.backward()
        self.gradient_bytes = max(self.gradient_bytes, memory.gradient_bytes(self.model.parameters()))
        norm = self._clip()
        if math.isfinite(norm):
            self.optimizer.step()
        else:
            # Clipping has spread a NaN norm to every gradient; an update now would reach every weight.
            self.skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.step_count = step
        seconds = time.perf_counter() - started
        tokens = self.config.batch_size * self.config.sequence_length
        return {
            "step": step,
            "loss": loss.item(),
            "lr": self.config.lr * factor,
            "gradient_norm": norm,
            "skipped": self.skipped,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            **memory.usage(self.device),
        }

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean cross-entropy over the fixed validation batches, in nats per byte."""
        self.model.eval()
        count = self.config.validation_batches
        return sum(self._loss(batch).item() for batch in self.batches.validation(count)) / count

    def state(self) -> dict[str, Any]:
        """Everything but the weights that the next step depends on; tensors, numbers and containers only."""
        state = {
            "step": self.step_count,
            "skipped": self.skipped,
            "gradient_bytes": self.gradient_bytes,
            "optimizer": self.optimizer.state_dict(),
            "random_cpu": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore(self, model_state: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Continue after :meth:`state`.

        To the bit on the same machine, build and thread count; on CUDA as far as torch's own kernels (the
        backward of attention, for one) add in a fixed order.
        """
        self.model.load_state_dict(model_state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_count = state["step"]
        self.skipped = state["skipped"]
        self.gradient_bytes = state["gradient_bytes"]
        torch.set_rng_state(state["random_cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def _loss(self, batch: Tensor) -> Tensor:
        batch = batch.to(self.device)
        logits = self.model(input_ids=batch[:, :-1]).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())

    def _clip(self) -> float:
        # max_norm 0 asks for no clipping; the norm is still reported.
        limit = self.config.max_norm or math.inf
        return torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit).item()
