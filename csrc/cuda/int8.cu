// INT8 weights (core/int8.h). One warp a group, two passes over the group, the second from cache.
// Bytes per element: quantise 5 from float32, dequantise 5 to float32.
#include "core/int8.h"

#include "core/visit.h"
#include "cuda/group_range.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/warp.h"

namespace frugalore::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kWarpsPerBlock = kThreads / kWarpSize;
constexpr float kLevels = 255.0f;

template <class T>
__global__ void int8_quantize_kernel(const T* x, uint8_t* codes, float* scale, uint8_t* zero,
                                     GroupLayout layout) {
  const int64_t groups = group_count(layout);
  const int lane = lane_index();
  for (int64_t g = warp_in_grid(); g < groups; g += warps_in_grid()) {
    const GroupSpan span = group_span(layout, g);
    const int64_t first = span.row * layout.columns + span.column;
    const GroupRange range = warp_group_range(x + first, span.length);
    const AffineGroup group = affine_group(range.lo, range.hi, kLevels);
    if (lane == 0) {
      scale[g] = range.finite ? group.scale : bit_cast<float>(0x7fc00000u);
      zero[g] = range.finite ? static_cast<uint8_t>(group.zero) : 0;
    }
    for (int64_t i = lane; i < span.length; i += kWarpSize) {
      codes[first + i] = range.finite ? affine_code(to_float(x[first + i]), group, kLevels) : 0;
    }
  }
}

template <class T>
__global__ void int8_dequantize_kernel(const uint8_t* codes, const float* scale, const uint8_t* zero, T* x,
                                       GroupLayout layout) {
  const int64_t groups = group_count(layout);
  for (int64_t g = warp_in_grid(); g < groups; g += warps_in_grid()) {
    const GroupSpan span = group_span(layout, g);
    const int64_t first = span.row * layout.columns + span.column;
    const float s = scale[g], z = static_cast<float>(zero[g]);
    for (int64_t i = lane_index(); i < span.length; i += kWarpSize) {
      x[first + i] = from_float<T>((static_cast<float>(codes[first + i]) - z) * s);
    }
  }
}

}  // namespace

cudaError_t run(const Int8QuantizeJob& job, cudaStream_t stream) {
  const LaunchShape shape{block_count(group_count(job.layout), kWarpsPerBlock), kThreads};
  return visit_float(job.x_dtype, job.x, [&](const auto* x) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(x)>>;
    return launch(int8_quantize_kernel<T>, shape, stream, x, job.codes, job.scale, job.zero, job.layout);
  });
}

cudaError_t run(const Int8DequantizeJob& job, cudaStream_t stream) {
  const LaunchShape shape{block_count(group_count(job.layout), kWarpsPerBlock), kThreads};
  return visit_float(job.x_dtype, job.x, [&](auto* x) {
    using T = std::remove_pointer_t<decltype(x)>;
    return launch(int8_dequantize_kernel<T>, shape, stream, job.codes, job.scale, job.zero, x, job.layout);
  });
}

}  // namespace frugalore::cuda
