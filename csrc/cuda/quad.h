// Four consecutive elements a thread: one vector access where they are aligned and all there.
#pragma once

#include "core/floats.h"
#include "cuda/launch.h"

namespace frugalore::cuda {

template <class T>
struct alignas(4 * sizeof(T)) Quad {
  T at[4];
};

// How many of four elements exist where `rest` are left; rest may be negative.
__device__ inline int quad_length(int64_t rest) {
  return static_cast<int>(rest < 0 ? 0 : (rest < 4 ? rest : 4));
}

template <class T>
__device__ inline bool whole_quad(const T* data, int n) {
  return n == 4 && reinterpret_cast<uintptr_t>(data) % sizeof(Quad<T>) == 0;
}

// The first n of four elements at `data`; the others are T{}.
template <class T>
__device__ inline Quad<T> load_quad(const T* data, int n) {
  if (whole_quad(data, n)) return *reinterpret_cast<const Quad<T>*>(data);
  Quad<T> quad{};
  for (int j = 0; j < 4; ++j) {
    if (j < n) quad.at[j] = data[j];
  }
  return quad;
}

template <class T>
__device__ inline void store_quad(T* data, const Quad<T>& quad, int n) {
  if (whole_quad(data, n)) {
    *reinterpret_cast<Quad<T>*>(data) = quad;
    return;
  }
  for (int j = 0; j < 4; ++j) {
    if (j < n) data[j] = quad.at[j];
  }
}

template <class T>
__device__ inline Quad<float> load_floats(const T* data, int n) {
  const Quad<T> quad = load_quad(data, n);
  return Quad<float>{
      {to_float(quad.at[0]), to_float(quad.at[1]), to_float(quad.at[2]), to_float(quad.at[3])}};
}

// Elements index ... index+n-1 of a tensor whose dtype is known at run time only.
__device__ inline Quad<float> load_floats(const void* data, DType dtype, int64_t index, int n) {
  switch (dtype) {
    case DType::bf16:
      return load_floats(static_cast<const bf16*>(data) + index, n);
    case DType::f16:
      return load_floats(static_cast<const f16*>(data) + index, n);
    default:
      return load_floats(static_cast<const float*>(data) + index, n);
  }
}

}  // namespace frugalore::cuda
