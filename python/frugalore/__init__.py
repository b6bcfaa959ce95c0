"""frugalore: train LLMs in a fraction of the memory.

Fused ops are in :mod:`frugalore.ops`, their plain-torch specification in :mod:`frugalore.reference`,
optimizers and model preparation at the top level.
"""

from frugalore import ops
from frugalore._build import build_info

__all__ = ["build_info", "ops"]
__version__ = build_info()["version"]
