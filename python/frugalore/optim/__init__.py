"""The engine and its presets."""

from frugalore.optim.engine import SubspaceOptimizer
from frugalore.optim.param_groups import param_groups
from frugalore.optim.qgalore import FusedQGaLore

__all__ = ["FusedQGaLore", "SubspaceOptimizer", "param_groups"]
