"""What happens to a gradient once it is split: the state-full rules of the inside."""

from frugalore.rules.adafactor import Adafactor
from frugalore.rules.adamw import AdamW

__all__ = ["Adafactor", "AdamW"]
