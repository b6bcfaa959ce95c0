"""How a subspace is chosen, stored and refreshed."""

from frugalore.subspace.density import DensitySubspace
from frugalore.subspace.schedule import RefreshSchedule
from frugalore.subspace.svd import SvdSubspace, matrix_shape
from frugalore.subspace.turn import Turn

__all__ = ["DensitySubspace", "RefreshSchedule", "SvdSubspace", "Turn", "matrix_shape"]
