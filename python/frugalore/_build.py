"""What this installation was built with."""

from __future__ import annotations

from frugalore import _C


def build_info() -> dict[str, str]:
    """Version, compiler, CUDA compiler and architectures, the CPU's instruction set in use and its vendor."""
    return dict(_C.build_info())


def with_cuda() -> bool:
    """Whether this build has CUDA kernels (a machine without a card can have such a build)."""
    return bool(_C.with_cuda)
