"""What a user can get wrong. The command line shows the message and no traceback."""

from __future__ import annotations


class PretrainError(ValueError):
    """A run that cannot start or continue; the message names the thing and what was expected."""


class ConfigError(PretrainError):
    """An unknown key, a value out of range, or options that contradict each other."""


class DataError(PretrainError):
    """Text that is missing, empty or too short."""


class CheckpointError(PretrainError):
    """A checkpoint that is missing, corrupt, foreign, or of another run."""
