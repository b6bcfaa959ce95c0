"""INT8 weights that look like float parameters."""

from frugalore.weights.int8_weight import Int8Weight
from frugalore.weights.quantize import dequantize_, quantize_
from frugalore.weights.save import save_dequantized

__all__ = ["Int8Weight", "dequantize_", "quantize_", "save_dequantized"]
