"""frugalore: train LLMs in a fraction of the memory.

Fused ops are in :mod:`frugalore.ops`, their plain-torch specification in :mod:`frugalore.reference`,
optimizers and model preparation at the top level.
"""

from frugalore import ops
from frugalore._build import build_info
from frugalore.optim import (
    BAdam,
    Fira,
    FrugalAdamW,
    FrugalLion,
    FrugalSGDM,
    FusedQGaLore,
    GaLoreAdafactor,
    GaLoreAdamW,
    GaLoreAdamW8bit,
    GaLoreLion,
    GaLoreSGDM,
    param_groups,
    per_layer_updates,
)
from frugalore.weights import Int8Weight, dequantize_, quantize_, save_dequantized

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
    "Int8Weight",
    "build_info",
    "dequantize_",
    "ops",
    "param_groups",
    "per_layer_updates",
    "quantize_",
    "save_dequantized",
]
__version__ = build_info()["version"]
