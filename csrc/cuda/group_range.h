// Minimum and maximum of a quantisation group, by one warp.
#pragma once

#include "core/floats.h"
#include "cuda/quad.h"
#include "cuda/warp.h"

namespace frugalore::cuda {

struct GroupRange {
  float lo, hi;  // over the elements and 0
  bool finite;   // false: an element is NaN or infinite, and lo and hi mean nothing
};

template <class T>
__device__ inline GroupRange warp_group_range(const T* x, int64_t n) {
  float lo = 0.0f, hi = 0.0f;
  bool finite = true;
  for (int64_t i = 4 * lane_index(); i < n; i += 4 * kWarpSize) {
    const Quad<float> quad = load_floats(x + i, quad_length(n - i));  // zeros beyond the end
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float value = quad.at[j];
      lo = value < lo ? value : lo;
      hi = value > hi ? value : hi;
      finite = finite && is_finite(value);
    }
  }
  return GroupRange{warp_min(lo), warp_max(hi), warp_all(finite)};
}

}  // namespace frugalore::cuda
