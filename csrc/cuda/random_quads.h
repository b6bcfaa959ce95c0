// Four neighbouring elements at a time: they share one Philox counter.
#pragma once

#include "core/philox.h"
#include "cuda/quad.h"

namespace frugalore::cuda {

// The part of a quad (elements 4 * quad ... 4 * quad + 3 of a tensor) that lies in a run of n elements whose
// first element has the index `first`.
struct RunQuad {
  uint64_t quad;
  int64_t begin;  // of the quad, relative to the run; may be negative
  int first_lane, end_lane;
};

__device__ inline int64_t quads_in_run(uint64_t first, int64_t n) {
  return n == 0 ? 0 : static_cast<int64_t>(((first & 3) + static_cast<uint64_t>(n) + 3) >> 2);
}

__device__ inline RunQuad quad_of_run(uint64_t first, int64_t n, int64_t i) {
  const int64_t begin = 4 * i - static_cast<int64_t>(first & 3);
  const int64_t rest = n - begin;
  return RunQuad{(first >> 2) + static_cast<uint64_t>(i), begin, begin < 0 ? static_cast<int>(-begin) : 0,
                 rest < 4 ? static_cast<int>(rest) : 4};
}

// Whether the quads of a run that starts at `data` and has the index `first` can be moved as one word.
template <class T>
__device__ inline bool quads_are_aligned(const T* data, uint64_t first) {
  return (first & 3) == 0 && reinterpret_cast<uintptr_t>(data) % sizeof(Quad<T>) == 0;
}

// run[begin + j] for the lanes j of the quad; the other lanes of the result are not set.
template <class T>
__device__ inline void load_quad(const T* run, const RunQuad& quad, bool aligned, Quad<T>& out) {
  if (aligned && quad.end_lane == 4) {
    out = *reinterpret_cast<const Quad<T>*>(run + quad.begin);
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (j >= quad.first_lane && j < quad.end_lane) out.at[j] = run[quad.begin + j];
  }
}

template <class T>
__device__ inline void store_quad(T* run, const RunQuad& quad, bool aligned, const Quad<T>& in) {
  if (aligned && quad.end_lane == 4) {
    *reinterpret_cast<Quad<T>*>(run + quad.begin) = in;
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (j >= quad.first_lane && j < quad.end_lane) run[quad.begin + j] = in.at[j];
  }
}

}  // namespace frugalore::cuda
