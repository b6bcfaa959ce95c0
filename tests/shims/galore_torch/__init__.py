"""A stand-in for the package of the same name, for tests only: transformers' Trainer then runs our optimizers
under its own ``optim="galore_adamw"``. Put on the path of a subprocess, never installed."""

from frugalore import GaLoreAdafactor, GaLoreAdamW, GaLoreAdamW8bit

__all__ = ["GaLoreAdafactor", "GaLoreAdamW", "GaLoreAdamW8bit"]
