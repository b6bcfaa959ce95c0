"""INT8 weights that look like float parameters."""

from frugalore.weights.int8_weight import Int8Weight
from frugalore.weights.quantize import dequantize_, quantize_

__all__ = ["Int8Weight", "dequantize_", "quantize_"]
