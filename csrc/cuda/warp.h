// Warp collectives. All 32 lanes call them, and all get the result.
#pragma once

#include "cuda/launch.h"

namespace frugalore::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

__device__ inline int lane_index() {
  return static_cast<int>(threadIdx.x % kWarpSize);
}

// The warp's index in the grid and the number of warps in it, for loops over groups.
__device__ inline int64_t warp_in_grid() {
  return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarpSize;
}
__device__ inline int64_t warps_in_grid() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x / kWarpSize;
}

// The same for single threads, for loops over elements.
__device__ inline int64_t thread_in_grid() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t threads_in_grid() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

__device__ inline float warp_min(float value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kFullWarp, value, offset);
    value = other < value ? other : value;
  }
  return value;
}

__device__ inline float warp_max(float value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kFullWarp, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

__device__ inline bool warp_all(bool value) {
  return __all_sync(kFullWarp, value) != 0;
}

}  // namespace frugalore::cuda
