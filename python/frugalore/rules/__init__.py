"""What happens to a gradient once it is split: the state-full rules of the inside."""

from frugalore.rules.adafactor import Adafactor
from frugalore.rules.adamw import AdamW
from frugalore.rules.lion import Lion
from frugalore.rules.sgdm import SGDM

__all__ = ["SGDM", "Adafactor", "AdamW", "Lion"]
