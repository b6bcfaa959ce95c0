"""``frugalore doctor``: what this installation is, and whether its kernels compute what they should.

Needs torch alone, so that it can say which packages are missing.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator

import torch

from frugalore import ops
from frugalore._build import build_info, with_cuda
from frugalore.ops.gemm import float32_gemm
from frugalore.reference.int4 import int4_quantize
from frugalore.reference.int8 import int8_quantize

_FLOAT32_GEMM = {"own": "own (csrc/cpu/gemm.cpp)", "torch": "torch.mm"}
_PACKAGES = ("transformers", "safetensors", "click", "rich", "matplotlib", "numpy")


def examine() -> None:
    """Print the build, torch, the packages and the devices, and check the kernels on each device.

    Raises:
        SystemExit: a kernel computes something else than its specification.
    """
    for name, value in facts():
        print(f"{name:<24}{value}")
    failed = False
    for device in devices():
        for name, right in check_kernels(device):
            print(f"{f'{name} on {device}':<24}{'ok' if right else 'WRONG'}")
            failed |= not right
    if failed:
        raise SystemExit("frugalore: a kernel does not compute what its reference does; please report this")


def facts() -> Iterator[tuple[str, str]]:
    """Name and value of what a bug report should hold."""
    for name, value in build_info().items():
        yield name, value
    yield "float32 gemm on cpu", _FLOAT32_GEMM[float32_gemm()]
    yield "python", platform.python_version()
    yield (
        "torch",
        f"{torch.__version__} (CUDA {torch.version.cuda or 'none'}), {torch.get_num_threads()} threads",
    )
    yield "processor cores", str(os.cpu_count())
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed (pip install 'frugalore[train]')"
    yield "cuda", _cuda_status()
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        capability = f"{card.major}.{card.minor}"
        yield f"cuda:{index}", f"{card.name}, {capability}, {card.total_memory / 2**30:.0f} GiB"


def _cuda_status() -> str:
    if not with_cuda():
        return "this build has no CUDA kernels"
    if torch.version.cuda is None:
        return "built with CUDA kernels, but this torch is built without CUDA"
    return "usable" if torch.cuda.is_available() else "built with CUDA kernels, but torch sees no device"


def devices() -> list[torch.device]:
    """The devices that this build has kernels for, on this machine."""
    found = [torch.device("cpu")]
    if with_cuda():
        found += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return found


def check_kernels(device: torch.device) -> Iterator[tuple[str, bool]]:
    """Compare quantisation to 4 and to 8 bits with the reference on the CPU, to the bit.

    The input has an odd number of columns and a short last group.
    """
    x = torch.randn(33, 515, generator=torch.Generator().manual_seed(0))
    pairs = ((int4_quantize, ops.int4_quantize), (int8_quantize, ops.int8_quantize))
    for specification, kernel in pairs:
        expected, got = specification(x, 256), kernel(x.to(device), 256)
        yield kernel.__name__, all(torch.equal(a, b.cpu()) for a, b in zip(expected, got, strict=True))
