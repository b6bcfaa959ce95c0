"""The published optimizers, ready to run on a CPU beside ours. Nothing of them is in this repository.

* GaLore: ``pip install --no-deps galore-torch==1.0``. Runs as it is.
* Q-GaLore with INT8 weights: a clone of https://github.com/VITA-Group/Q-GaLore (its package on PyPI lacks
  ``utils``). Its optimizer was written for bitsandbytes 0.43; here only its calls are adapted to the
  bitsandbytes that is installed, and its waits for a GPU are left out. No arithmetic is touched.
* FRUGAL: a clone of https://github.com/fzmushko/FRUGAL (it is on no index), and transformers. A private
  name of torch that it imports, and that torch no longer has, is given back.
* BAdam: ``pip install --no-deps badam==1.4``, and transformers.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from frugalore import param_groups

#: Leaf names that the published training script makes INT8.
INT8_LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj")

_QGALORE_OPTIONS = {
    "quant": True,
    "quant_n_bit": 4,
    "quant_group_size": 256,
    "cos_threshold": 0.4,
    "gamma_proj": 2,
    "queue_size": 5,
}


def galore_adamw(groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    """``galore_torch.GaLoreAdamW`` over groups of plain parameters (no names)."""
    galore_torch = importlib.import_module("galore_torch")
    return galore_torch.GaLoreAdamW(groups, lr=lr, no_deprecation_warning=True)


def qgalore_groups(matrices: list, rest: list, rank: int, gap: int, scale: float) -> list[dict[str, Any]]:
    """Groups with every key that the published optimizer asks for."""
    low_rank = {"rank": rank, "update_proj_gap": gap, "scale": scale, "proj_type": "std", **_QGALORE_OPTIONS}
    groups: list[dict[str, Any]] = [{"params": matrices, **low_rank}]
    return [{"params": rest}, *groups] if rest else groups


class QGaLore:
    """The published Q-GaLore from a clone of its repository.

    Args:
        repository: the clone's folder.
    """

    def __init__(self, repository: Path):
        if not (repository / "q_galore_torch" / "utils" / "quantization.py").is_file():
            raise FileNotFoundError(f"{repository}: no clone of VITA-Group/Q-GaLore")
        sys.path.insert(0, str(repository))
        self._optimizer = importlib.import_module("q_galore_torch.q_galore_adamw8bit")
        self._quantization = _load(repository / "q_galore_torch" / "utils" / "quantization.py")
        self._optimizer.F = SimpleNamespace(
            optimizer_update_8bit_blockwise=_update_8bit, optimizer_update_32bit=_update_32bit
        )
        self._optimizer.torch = _TorchWithoutGpu()

    @property
    def projector(self) -> type:
        """The published ``GaLoreProjector``."""
        return self._optimizer.GaLoreProjector

    def quantize_(self, model: nn.Module, rounding: str = "stochastic") -> None:
        """Replace the seven linear layers of every block by the published INT8 ones."""
        options = SimpleNamespace(
            weight_bits=8, weight_group_size=256, stochastic_round=rounding == "stochastic"
        )
        self._quantization.prepare_model_for_int8_training(model, options, INT8_LEAVES)

    def int8_weight(self, weight: torch.Tensor) -> nn.Parameter:
        """One weight as the published INT8 parameter."""
        return self._quantization.QGaLoreLinear(nn.Parameter(weight), None).weight

    def adamw8bit(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        """The published ``AdamW8bit`` without weight decay."""

        class Adapted(self._optimizer.AdamW8bit):
            def get_config(self, *where: Any) -> dict[str, Any]:
                known = super().get_config(*where)
                # Arguments that bitsandbytes no longer has, and what it reads in their places.
                return known | {
                    "percentile_clipping": 100,
                    "block_wise": True,
                    "max_unorm": 0.0,
                    "skip_zeros": False,
                }

            def init_state(self, *where: Any) -> None:
                self.args.max_unorm = 0.0
                super().init_state(*where)

        return Adapted(groups, lr=lr, weight_decay=0.0)


@contextmanager
def basis_from_qr(published: QGaLore) -> Iterator[None]:
    """Let the published projector take any orthonormal basis, so that its first step costs no SVD."""
    projector = published.projector

    def orthonormal(self: Any, weights: torch.Tensor, rank: int, type: str) -> torch.Tensor:
        length = weights.shape[1] if type == "right" else weights.shape[0]
        basis = torch.linalg.qr(torch.randn(length, rank)).Q.to(weights.dtype)
        return basis.t().contiguous() if type == "right" else basis

    theirs = projector.get_orthogonal_matrix
    projector.get_orthogonal_matrix = orthonormal
    try:
        yield
    finally:
        projector.get_orthogonal_matrix = theirs


def llama_groups(model: nn.Module, rank: int, gap: int, scale: float) -> list[dict[str, Any]]:
    """The groups of a float LLaMA for :func:`galore_adamw`."""
    groups = param_groups(model, rank=rank, update_proj_gap=gap, scale=scale, proj_type="std")
    return [group | {"params": [p for _, p in group["params"]]} for group in groups]


def llama_int8_groups(model: nn.Module, rank: int, gap: int, scale: float) -> list[dict[str, Any]]:
    """The groups of a LLaMA after :meth:`QGaLore.quantize_`."""
    matrices = [p for p in model.parameters() if p.dtype == torch.uint8]
    rest = [p for p in model.parameters() if p.dtype != torch.uint8]
    return qgalore_groups(matrices, rest, rank, gap, scale)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("qgalore_quantization", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Frugal:
    """The published FRUGAL from a clone of its repository.

    ``Block...``, ``Coord...`` and ``Galore...`` ``AdamW`` and ``Lion`` are its attributes. The momentum
    buffers of its ``...SGD`` begin with the weights: do not compare with them.

    Args:
        repository: the clone's folder. Default: the environment variable ``FRUGALORE_FRUGAL_REPOSITORY``.

    Raises:
        FileNotFoundError: there is no clone. ImportError: transformers is missing.
    """

    def __init__(self, repository: Path | None = None):
        where = repository or os.environ.get("FRUGALORE_FRUGAL_REPOSITORY")
        if not where:
            raise FileNotFoundError("FRUGALORE_FRUGAL_REPOSITORY: not set to a clone of fzmushko/FRUGAL")
        repository = Path(where)
        if not (repository / "frugal" / "proj_optimizer_templates.py").is_file():
            raise FileNotFoundError(f"{repository}: no clone of fzmushko/FRUGAL")
        optimizer = importlib.import_module("torch.optim.optimizer")
        if not hasattr(optimizer, "_dispatch_sqrt"):
            optimizer._dispatch_sqrt = math.sqrt
        if str(repository) not in sys.path:
            sys.path.insert(0, str(repository))
        self._package = importlib.import_module("frugal")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._package, name)

    def adamw(
        self, matrices: list, rest: list, lr: float, *, kind: str = "columns", **options: Any
    ) -> torch.optim.Optimizer:
        """FRUGAL with AdamW over plain parameters.

        Args:
            matrices: the state-full part of these is chosen anew in each period. rest: always state-full.
            kind: "block"; "columns", "rows" or "randk"; "svd", "random" or "randperm".
            **options: of the published classes, e.g. ``density``, ``update_gap``, ``block_order``.
        """
        groups = [{"params": matrices, "is_proj_params": True}]
        if rest:
            groups.insert(0, {"params": rest, "is_proj_params": False})
        options |= {"lr": lr, "no_deprecation_warning": True}
        if kind == "block":
            return self.BlockAdamW(groups, **options)
        if kind in ("columns", "rows", "randk"):
            return self.CoordAdamW(groups, coord_choice=kind, **options)
        return self.GaloreAdamW(groups, proj_type=kind, **options)


def badam(
    base: torch.optim.Optimizer, names: list[tuple[str, nn.Parameter]], **options: Any
) -> torch.optim.Optimizer:
    """``badam.BlockOptimizer`` around ``base``. Its first block is trained one step less than the others, and
    the weight decay of ``base``'s groups is lost to that of its defaults."""
    return importlib.import_module("badam").BlockOptimizer(base, names, verbose=0, **options)


class _TorchWithoutGpu:
    """torch, but for the published code's wait after every parameter, which needs a card."""

    cuda = SimpleNamespace(synchronize=lambda: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _update_8bit(
    name, g, p, state1, state2, beta1, beta2, eps, step, lr, qmap1, qmap2, absmax1, absmax2, decay, **rest
):
    from bitsandbytes import functional

    functional.optimizer_update_8bit_blockwise(
        *(name, g, p, state1, state2, beta1, beta2, 0.0, 0.0, eps, step, lr, qmap1, qmap2, absmax1, absmax2),
        decay,
        **rest,
    )


def _update_32bit(name, g, p, state1, beta1, eps, step, lr, state2, beta2, decay, gnorm_scale, unorm, **rest):
    from bitsandbytes import functional

    functional.optimizer_update_32bit(
        *(name, g, p, state1, beta1, eps, step, lr, state2, beta2, 0.0, 0.0, decay, gnorm_scale, unorm),
        **rest,
    )
