"""The fused ops. Each has a schema under ``torch.ops.frugalore`` and a fake kernel.

Those without a GEMM have a CPU and a CUDA kernel, and a specification in plain torch under
:mod:`frugalore.reference`; projections and the SVD are composed of them and :func:`gemm`, which is csrc's or
``torch.mm``. Names that end in
``_`` write their arguments in place. No op is differentiable.
"""

from frugalore.ops.adamw import adamw_direction_, adamw_step_
from frugalore.ops.adamw8bit import adamw8bit_direction_, adamw8bit_step_
from frugalore.ops.cholesky import CholeskyInverse, cholesky_inverse
from frugalore.ops.coordinates import coordinates_back_, coordinates_back_update_, coordinates_project
from frugalore.ops.fira import fira_back_update_
from frugalore.ops.gemm import gemm
from frugalore.ops.gram import gram
from frugalore.ops.int4 import Int4Groups, int4_dequantize, int4_pack, int4_quantize, int4_unpack
from frugalore.ops.int8 import Int8Groups, int8_dequantize, int8_quantize, int8_stochastic_update_
from frugalore.ops.momentum import lion_direction_, lion_step_, sgdm_direction_, sgdm_step_
from frugalore.ops.projection import Basis, Step, project, project_back_update_, projected_adam_step_
from frugalore.ops.residual import residual_add_
from frugalore.ops.selection import Selection, select
from frugalore.ops.sketch import rademacher_
from frugalore.ops.split import split_step_
from frugalore.ops.split_low_rank import split_back_update_, split_project
from frugalore.ops.svd import SVD, randomized_svd, subspace_iterate, truncated_svd
from frugalore.ops.weight import weight_update_

__all__ = [
    "SVD",
    "Basis",
    "CholeskyInverse",
    "Int4Groups",
    "Int8Groups",
    "Selection",
    "Step",
    "adamw8bit_direction_",
    "adamw8bit_step_",
    "adamw_direction_",
    "adamw_step_",
    "cholesky_inverse",
    "coordinates_back_",
    "coordinates_back_update_",
    "coordinates_project",
    "fira_back_update_",
    "gemm",
    "gram",
    "int4_dequantize",
    "int4_pack",
    "int4_quantize",
    "int4_unpack",
    "int8_dequantize",
    "int8_quantize",
    "int8_stochastic_update_",
    "lion_direction_",
    "lion_step_",
    "project",
    "project_back_update_",
    "projected_adam_step_",
    "rademacher_",
    "randomized_svd",
    "residual_add_",
    "select",
    "sgdm_direction_",
    "sgdm_step_",
    "split_back_update_",
    "split_project",
    "split_step_",
    "subspace_iterate",
    "truncated_svd",
    "weight_update_",
]
