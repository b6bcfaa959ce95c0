"""frugalore's optimizers in Lightning: nothing but ``configure_optimizers``.

    pip install lightning
    python examples/lightning_module.py --steps 100 --out runs/lightning

Checkpoints hold the optimizer as plain tensors; ``Trainer.fit(..., ckpt_path=...)`` continues to the bit.
"""

from __future__ import annotations

import argparse

import lightning
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import frugalore

LENGTH, DIGITS, HIDDEN = 8, 10, 256


class ReverseDigits(lightning.LightningModule):
    """A two-layer network that learns to reverse short strings of digits."""

    def __init__(self, lr: float = 5e-3, total_steps: int = 100):
        super().__init__()
        self.save_hyperparameters()
        self.embed = nn.Embedding(DIGITS, 32)
        self.mlp_in = nn.Linear(LENGTH * 32, HIDDEN)
        self.mlp_out = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, LENGTH * DIGITS)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        (digits,) = batch
        x = functional.gelu(self.mlp_in(self.embed(digits).flatten(1)))
        logits = self.head(functional.gelu(self.mlp_out(x))).view(-1, DIGITS)
        loss = functional.cross_entropy(logits, digits.flip(1).flatten())
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        groups = frugalore.param_groups(self, ["mlp"], rank=32, update_proj_gap=20)
        optimizer = frugalore.GaLoreAdamW(groups, lr=self.hparams.lr, seed=0)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.hparams.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def data() -> DataLoader:
    digits = torch.randint(DIGITS, (4096, LENGTH), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(digits), batch_size=128)


def trainer(steps: int, out: str, **options) -> lightning.Trainer:
    return lightning.Trainer(
        max_steps=steps,
        default_root_dir=out,
        accelerator="auto",
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", default="runs/lightning")
    arguments = parser.parse_args()
    lightning.seed_everything(0)
    run = trainer(arguments.steps, arguments.out)
    run.fit(ReverseDigits(total_steps=arguments.steps), data())
    print(f"loss {float(run.callback_metrics['loss']):.4f}")


if __name__ == "__main__":
    main()
