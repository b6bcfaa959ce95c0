"""How a subspace is chosen, stored and refreshed."""

from frugalore.subspace.schedule import RefreshSchedule
from frugalore.subspace.svd import SvdSubspace

__all__ = ["RefreshSchedule", "SvdSubspace"]
