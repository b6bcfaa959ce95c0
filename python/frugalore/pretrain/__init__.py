"""Pre-training of a small language model from its configuration, as ``frugalore pretrain`` does it.

Needs the packages of ``pip install 'frugalore[train]'``; ``import frugalore`` alone does not.
"""

from frugalore.pretrain.config import MODELS, PRESETS, PretrainConfig
from frugalore.pretrain.errors import CheckpointError, ConfigError, DataError, PretrainError
from frugalore.pretrain.optimizers import REGISTRY
from frugalore.pretrain.report import Summary
from frugalore.pretrain.run import pretrain

__all__ = [
    "MODELS",
    "PRESETS",
    "REGISTRY",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "PretrainConfig",
    "PretrainError",
    "Summary",
    "pretrain",
]
