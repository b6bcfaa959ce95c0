// Packed INT4 (core/int4.h). Quantisation: one warp a group, two passes over the group, the second from
// cache. Bytes per element: quantise 4.5 from float32, dequantise 4.5 to float32, pack and unpack 1.5.
#include "core/int4.h"

#include "core/visit.h"
#include "cuda/group_range.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/quad.h"
#include "cuda/warp.h"

namespace frugalore::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kWarpsPerBlock = kThreads / kWarpSize;
constexpr float kLevels = 15.0f;

// Eight elements a lane: four bytes of codes, so that a group of 256 is one round of the warp.
struct Octet {
  float at[8];
};

template <class T>
__device__ Octet load_octet(const T* x, int64_t rest) {
  const Quad<float> low = load_floats(x, quad_length(rest)), high = load_floats(x + 4, quad_length(rest - 4));
  Octet octet;
#pragma unroll
  for (int j = 0; j < 8; ++j) octet.at[j] = j < 4 ? low.at[j & 3] : high.at[j & 3];
  return octet;
}

__device__ inline uint8_t code_or_zero(float x, const AffineGroup& group, bool exists) {
  return exists ? affine_code(x, group, kLevels) : static_cast<uint8_t>(0);
}

template <class T>
__global__ void int4_quantize_kernel(const T* x, uint8_t* packed, float* scale, uint8_t* zero,
                                     GroupLayout layout) {
  const int64_t groups = group_count(layout), row_bytes = ceil_div(layout.columns, 2);
  const int lane = lane_index();
  for (int64_t g = warp_in_grid(); g < groups; g += warps_in_grid()) {
    const GroupSpan span = group_span(layout, g);
    const T* row = x + span.row * layout.columns + span.column;
    const GroupRange range = warp_group_range(row, span.length);
    const bool finite = range.finite;
    const AffineGroup group = affine_group(range.lo, range.hi, kLevels);
    if (lane == 0) {
      scale[g] = finite ? group.scale : bit_cast<float>(0x7fc00000u);
      zero[g] = finite ? static_cast<uint8_t>(group.zero) : 0;
    }
    uint8_t* out = packed + span.row * row_bytes + span.column / 2;
    for (int64_t i = 8 * lane; i < span.length; i += 8 * kWarpSize) {
      const int64_t rest = span.length - i;
      Octet x8 = {};
      if (finite) x8 = load_octet(row + i, rest);
      Quad<uint8_t> bytes;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint8_t even = code_or_zero(x8.at[2 * j], group, finite && 2 * j < rest);
        const uint8_t odd = code_or_zero(x8.at[2 * j + 1], group, finite && 2 * j + 1 < rest);
        bytes.at[j] = int4_pair(even, odd);
      }
      store_quad(out + i / 2, bytes, quad_length((rest + 1) / 2));
    }
  }
}

template <class T>
__global__ void int4_dequantize_kernel(const uint8_t* packed, const float* scale, const uint8_t* zero, T* x,
                                       GroupLayout layout) {
  const int64_t groups = group_count(layout), row_bytes = ceil_div(layout.columns, 2);
  for (int64_t g = warp_in_grid(); g < groups; g += warps_in_grid()) {
    const GroupSpan span = group_span(layout, g);
    const uint8_t* in = packed + span.row * row_bytes + span.column / 2;
    T* row = x + span.row * layout.columns + span.column;
    const float s = scale[g], z = static_cast<float>(zero[g]);
    for (int64_t i = 8 * lane_index(); i < span.length; i += 8 * kWarpSize) {
      const int64_t rest = span.length - i;
      const Quad<uint8_t> bytes = load_quad(in + i / 2, quad_length((rest + 1) / 2));
      Quad<T> low, high;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        Quad<T>& half = j < 2 ? low : high;
        const uint8_t pair = bytes.at[j];
        half.at[2 * (j % 2)] = from_float<T>((static_cast<float>(pair & 15u) - z) * s);
        half.at[2 * (j % 2) + 1] = from_float<T>((static_cast<float>(pair >> 4) - z) * s);
      }
      store_quad(row + i, low, quad_length(rest));
      store_quad(row + i + 4, high, quad_length(rest - 4));
    }
  }
}

__global__ void int4_pack_kernel(const uint8_t* codes, uint8_t* packed, int64_t rows, int64_t columns) {
  const int64_t row_bytes = ceil_div(columns, 2);
  for (int64_t i = thread_in_grid(); i < rows * row_bytes; i += threads_in_grid()) {
    const int64_t row = i / row_bytes, column = 2 * (i - row * row_bytes);
    const uint8_t* in = codes + row * columns + column;
    packed[i] = int4_pair(in[0], column + 1 < columns ? in[1] : 0);
  }
}

__global__ void int4_unpack_kernel(const uint8_t* packed, uint8_t* codes, int64_t rows, int64_t columns) {
  const int64_t row_bytes = ceil_div(columns, 2);
  for (int64_t i = thread_in_grid(); i < rows * row_bytes; i += threads_in_grid()) {
    const int64_t row = i / row_bytes, column = 2 * (i - row * row_bytes);
    uint8_t* out = codes + row * columns + column;
    out[0] = packed[i] & 15u;
    if (column + 1 < columns) out[1] = packed[i] >> 4;
  }
}

}  // namespace

cudaError_t run(const Int4QuantizeJob& job, cudaStream_t stream) {
  const LaunchShape shape{block_count(group_count(job.layout), kWarpsPerBlock), kThreads};
  return visit_float(job.x_dtype, job.x, [&](const auto* x) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(x)>>;
    return launch(int4_quantize_kernel<T>, shape, stream, x, job.packed, job.scale, job.zero, job.layout);
  });
}

cudaError_t run(const Int4DequantizeJob& job, cudaStream_t stream) {
  const LaunchShape shape{block_count(group_count(job.layout), kWarpsPerBlock), kThreads};
  return visit_float(job.x_dtype, job.x, [&](auto* x) {
    using T = std::remove_pointer_t<decltype(x)>;
    return launch(int4_dequantize_kernel<T>, shape, stream, job.packed, job.scale, job.zero, x, job.layout);
  });
}

cudaError_t run(const Int4PackJob& job, cudaStream_t stream) {
  const LaunchShape shape{block_count(job.rows * ceil_div(job.columns, 2), kThreads), kThreads};
  return launch(int4_pack_kernel, shape, stream, job.codes, job.packed, job.rows, job.columns);
}

cudaError_t run(const Int4UnpackJob& job, cudaStream_t stream) {
  const LaunchShape shape{block_count(job.rows * ceil_div(job.columns, 2), kThreads), kThreads};
  return launch(int4_unpack_kernel, shape, stream, job.packed, job.codes, job.rows, job.columns);
}

}  // namespace frugalore::cuda
