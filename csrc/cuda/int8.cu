// INT8 weights (core/int8.h). One warp a group, two passes over the group, the second from cache.
// Bytes per element: quantise 5 from float32, dequantise 5 to float32, update 4 from bfloat16 (code read and
// written, update read once from memory and once from cache).
#include "core/int8.h"

#include "core/visit.h"
#include "cuda/group_range.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/quad.h"
#include "cuda/random_quads.h"
#include "cuda/warp.h"

namespace frugalore::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kWarpsPerBlock = kThreads / kWarpSize;
constexpr float kLevels = 255.0f;

// The update needs about 70 registers on every architecture; blocks of 128 threads waste the fewest of an
// SM's 65536, and the bounds are the largest number of blocks at which no architecture spills.
constexpr unsigned kUpdateThreads = 128;
constexpr int kUpdateBlocks = 7;         // an SM, with stochastic rounding
constexpr int kNearestUpdateBlocks = 6;  // with rounding to nearest
constexpr int64_t kUpdateGroupsPerBlock =
    8 * (kUpdateThreads / kWarpSize);  // several a warp, since a block begins by waiting for lr

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
    for (int64_t i = 4 * lane; i < span.length; i += 4 * kWarpSize) {
      const int n = quad_length(span.length - i);
      const Quad<float> value = load_floats(x + first + i, n);
      Quad<uint8_t> code = {};
      if (range.finite) {
#pragma unroll
        for (int j = 0; j < 4; ++j) code.at[j] = affine_code(value.at[j], group, kLevels);
      }
      store_quad(codes + first + i, code, n);
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
    for (int64_t i = 4 * lane_index(); i < span.length; i += 4 * kWarpSize) {
      const int n = quad_length(span.length - i);
      const Quad<uint8_t> code = load_quad(codes + first + i, n);
      Quad<T> value;
#pragma unroll
      for (int j = 0; j < 4; ++j) value.at[j] = from_float<T>((static_cast<float>(code.at[j]) - z) * s);
      store_quad(x + first + i, value, n);
    }
  }
}

// One quad of a group: codes and intended changes. Lanes outside the group have q = z and d = 0.
struct QuadDeltas {
  Quad<uint8_t> codes;
  float d[4];
};

template <class T>
struct UpdateGroup {
  uint8_t* codes;
  const T* update;
  int64_t length;
  uint64_t first_index;
  bool codes_aligned, update_aligned;
  float scale, zero, update_per_code, one_minus_keep;
};

template <class T>
__device__ UpdateGroup<T> update_group(const Int8UpdateJob& job, const T* update, int64_t g,
                                       const WeightStepScalars& step) {
  const GroupSpan span = group_span(job.layout, g);
  const int64_t first = span.row * job.layout.columns + span.column;
  const uint64_t index = static_cast<uint64_t>(job.step.first_index + first);
  uint8_t* codes = job.codes + first;
  const float scale = job.scale[g];
  return UpdateGroup<T>{codes,
                        update + first,
                        span.length,
                        index,
                        quads_are_aligned(codes, index),
                        quads_are_aligned(update + first, index),
                        scale,
                        static_cast<float>(job.zero[g]),
                        int8_update_per_code(step.coefficient, scale),
                        step.one_minus_keep};
}

template <class T>
__device__ QuadDeltas quad_deltas(const UpdateGroup<T>& group, const RunQuad& quad) {
  QuadDeltas result;
  Quad<T> update;
  load_quad(group.codes, quad, group.codes_aligned, result.codes);
  load_quad(group.update, quad, group.update_aligned, update);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const bool inside = j >= quad.first_lane && j < quad.end_lane;
    if (!inside) result.codes.at[j] = static_cast<uint8_t>(group.zero);
    const float k = static_cast<float>(result.codes.at[j]) - group.zero;
    result.d[j] =
        inside ? int8_delta(k, to_float(update.at[j]), group.update_per_code, group.one_minus_keep) : 0.0f;
  }
  return result;
}

template <class T>
__device__ Int8Range warp_update_range(const UpdateGroup<T>& group) {
  float lo = 0.0f, hi = 0.0f;
  bool outside = false, moved = false;
  const int64_t quads = quads_in_run(group.first_index, group.length);
  for (int64_t i = lane_index(); i < quads; i += kWarpSize) {
    const QuadDeltas deltas = quad_deltas(group, quad_of_run(group.first_index, group.length, i));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float q = static_cast<float>(deltas.codes.at[j]), d = deltas.d[j];
      const float y = q - group.zero + d;
      lo = y < lo ? y : lo;
      hi = y > hi ? y : hi;
      outside = outside || int8_outside(q, d);
      moved = moved || d != 0.0f;
    }
  }
  return Int8Range{warp_min(lo), warp_max(hi), !warp_all(!outside), !warp_all(!moved)};
}

template <class T, bool kStochastic>
__device__ void write_quad(const UpdateGroup<T>& group, const RunQuad& quad, const Int8Grid& grid,
                           const RandomStream& stream) {
  const QuadDeltas deltas = quad_deltas(group, quad);
  PhiloxWords words = {};
  if (kStochastic) words = philox4x32(stream, quad.quad);
  Quad<uint8_t> codes;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float d = deltas.d[j];
    const float y = static_cast<float>(deltas.codes.at[j]) - group.zero + d;
    const int32_t base = grid.kept ? deltas.codes.at[j] : static_cast<int32_t>(grid.zero);
    const float change = grid.kept ? d : y * grid.ratio;
    codes.at[j] = static_cast<uint8_t>(base + int8_round<kStochastic>(change, words.word[j]));
  }
  store_quad(group.codes, quad, group.codes_aligned, codes);
}

template <class T, bool kStochastic>
__global__ void __launch_bounds__(kUpdateThreads, kStochastic ? kUpdateBlocks : kNearestUpdateBlocks)
    int8_update_kernel(Int8UpdateJob job, const T* update) {
  __shared__ WeightStepScalars step;
  if (threadIdx.x == 0) step = weight_step_scalars(job.step);
  __syncthreads();
  if (!step.applied) return;
  const int64_t groups = group_count(job.layout);
  for (int64_t g = warp_in_grid(); g < groups; g += warps_in_grid()) {
    const UpdateGroup<T> group = update_group(job, update, g, step);
    const Int8Range range = warp_update_range(group);
    if (!range.moved) continue;
    const Int8Grid grid = int8_grid(range, group.scale, group.zero);
    const int64_t quads = quads_in_run(group.first_index, group.length);
    for (int64_t i = lane_index(); i < quads; i += kWarpSize) {
      write_quad<T, kStochastic>(group, quad_of_run(group.first_index, group.length, i), grid, step.stream);
    }
    if (lane_index() == 0 && !grid.kept) {
      job.scale[g] = grid.scale;
      job.zero[g] = static_cast<uint8_t>(grid.zero);
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

cudaError_t run(const Int8UpdateJob& job, cudaStream_t stream) {
  const LaunchShape shape{block_count(group_count(job.layout), kUpdateGroupsPerBlock), kUpdateThreads};
  return visit_float(job.update_dtype, job.update, [&](const auto* update) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(update)>>;
    return job.step.stochastic ? launch(int8_update_kernel<T, true>, shape, stream, job, update)
                               : launch(int8_update_kernel<T, false>, shape, stream, job, update);
  });
}

}  // namespace frugalore::cuda
