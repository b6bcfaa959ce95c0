// The CUDA launchers: plain pointers and sizes in a job, a stream last, no allocation, no synchronisation.
// Each returns the error of its launch; the caller has set the device.
#pragma once

#include <cuda_runtime.h>

#include "core/adamw.h"
#include "core/adamw8bit.h"
#include "core/cholesky.h"
#include "core/coordinates.h"
#include "core/gram.h"
#include "core/int4.h"
#include "core/int8.h"
#include "core/momentum.h"
#include "core/residual.h"
#include "core/selection.h"
#include "core/sketch.h"
#include "core/split.h"
#include "core/weight.h"

namespace frugalore::cuda {

cudaError_t run(const Int4QuantizeJob& job, cudaStream_t stream);
cudaError_t run(const Int4DequantizeJob& job, cudaStream_t stream);
cudaError_t run(const Int4PackJob& job, cudaStream_t stream);
cudaError_t run(const Int4UnpackJob& job, cudaStream_t stream);

cudaError_t run(const Int8QuantizeJob& job, cudaStream_t stream);
cudaError_t run(const Int8DequantizeJob& job, cudaStream_t stream);
cudaError_t run(const Int8UpdateJob& job, cudaStream_t stream);

cudaError_t run(const WeightUpdateJob& job, cudaStream_t stream);

cudaError_t run(const AdamwStepJob& job, cudaStream_t stream);
cudaError_t run(const AdamwDirectionJob& job, cudaStream_t stream);

cudaError_t run(const Adamw8bitStepJob& job, cudaStream_t stream);
cudaError_t run(const Adamw8bitDirectionJob& job, cudaStream_t stream);

cudaError_t run(const MomentumStepJob& job, cudaStream_t stream);
cudaError_t run(const MomentumDirectionJob& job, cudaStream_t stream);

cudaError_t run(const ResidualJob& job, cudaStream_t stream);

cudaError_t run(const SplitStepJob& job, cudaStream_t stream);

cudaError_t run(const RademacherJob& job, cudaStream_t stream);

cudaError_t run(const GramJob& job, cudaStream_t stream);

cudaError_t run(const CholeskyInverseJob& job, cudaStream_t stream);

cudaError_t run(const SelectJob& job, cudaStream_t stream);

cudaError_t run(const CoordinatesProjectJob& job, cudaStream_t stream);
cudaError_t run(const CoordinatesBackJob& job, cudaStream_t stream);

}  // namespace frugalore::cuda
