// Barriers, shuffles and votes of CUDA over the runner's fibres. The place of the call is part of the
// collective: lanes that reach the same operation in different lines do not meet.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda_on_cpu/launch.h"

namespace cuda_on_cpu {

template <class T>
uint64_t to_word(T value) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "what CUDA can shuffle");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  return word;
}

template <class T>
T from_word(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// The lane that a shuffle reads: `wanted` if it is in the segment of `width` lanes, else the lane's own.
template <class T, class SourceOfLane>
T shuffle(Site site, unsigned mask, T value, int width, SourceOfLane source_of_lane) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    fail(site, "width must be a power of two up to 32");
  const WarpValues values = warp_exchange(site, mask, to_word(value));
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const int first = lane / width * width;
  const int wanted = source_of_lane(lane, first);
  const int source = wanted >= first && wanted < first + width ? wanted : lane;
  if ((mask >> source & 1u) == 0) fail(site, "reads a lane that is not in the mask");
  return from_word<T>(values.lane[source]);
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::shuffle({"__shfl_sync", file, line}, mask, value, width,
                              [=](int, int first) { return first + (source & (width - 1)); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::shuffle({"__shfl_xor_sync", file, line}, mask, value, width,
                              [=](int lane, int) { return lane ^ lane_mask; });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::shuffle({"__shfl_down_sync", file, line}, mask, value, width,
                              [=](int lane, int) { return lane + static_cast<int>(delta); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::shuffle({"__shfl_up_sync", file, line}, mask, value, width,
                              [=](int lane, int) { return lane - static_cast<int>(delta); });
}

inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_ON_CPU_PLACE) {
  cuda_on_cpu::warp_exchange({"__syncwarp", file, line}, mask, 0);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_PLACE) {
  const auto values = cuda_on_cpu::warp_exchange({"__ballot_sync", file, line}, mask, predicate != 0 ? 1 : 0);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) != 0 && values.lane[lane] != 0) ballot |= 1u << lane;
  }
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_PLACE) {
  return __ballot_sync(mask, predicate, file, line) != 0 ? 1 : 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_PLACE) {
  return __ballot_sync(mask, predicate, file, line) == mask ? 1 : 0;
}

inline void __syncthreads(CUDA_ON_CPU_PLACE) {
  cuda_on_cpu::block_exchange({"__syncthreads", file, line}, false);
}
inline int __syncthreads_count(int predicate, CUDA_ON_CPU_PLACE) {
  return static_cast<int>(cuda_on_cpu::block_exchange({"__syncthreads_count", file, line}, predicate != 0));
}
inline int __syncthreads_or(int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::block_exchange({"__syncthreads_or", file, line}, predicate != 0) != 0 ? 1 : 0;
}
inline int __syncthreads_and(int predicate, CUDA_ON_CPU_PLACE) {
  return cuda_on_cpu::block_exchange({"__syncthreads_and", file, line}, predicate == 0) == 0 ? 1 : 0;
}

#undef CUDA_ON_CPU_PLACE
