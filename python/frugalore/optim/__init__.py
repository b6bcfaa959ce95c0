"""The engine and its presets."""

from frugalore.optim.badam import BAdam
from frugalore.optim.engine import SubspaceOptimizer
from frugalore.optim.fira import Fira
from frugalore.optim.frugal import FrugalAdamW
from frugalore.optim.frugal_momentum import FrugalLion, FrugalSGDM
from frugalore.optim.galore import GaLoreAdamW, GaLoreAdamW8bit
from frugalore.optim.galore_adafactor import GaLoreAdafactor
from frugalore.optim.galore_lion import GaLoreLion
from frugalore.optim.galore_sgdm import GaLoreSGDM
from frugalore.optim.param_groups import param_groups
from frugalore.optim.per_layer import PerLayerUpdates, per_layer_updates
from frugalore.optim.qgalore import FusedQGaLore

__all__ = [
    "BAdam",
    "Fira",
    "FrugalAdamW",
    "FrugalLion",
    "FrugalSGDM",
    "FusedQGaLore",
    "GaLoreAdafactor",
    "GaLoreAdamW",
    "GaLoreAdamW8bit",
    "GaLoreLion",
    "GaLoreSGDM",
    "PerLayerUpdates",
    "SubspaceOptimizer",
    "param_groups",
    "per_layer_updates",
]
