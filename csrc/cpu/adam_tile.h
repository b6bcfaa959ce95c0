// What the AdamW kernels share on the CPU: all tensors of a call cut into tiles of 256 elements, and one
// tile's arithmetic in float32. float32 tensors are worked on in place, bfloat16 and float16 in a buffer.
#pragma once

#include "core/adamw.h"
#include "core/groups.h"
#include "core/visit.h"
#include "cpu/random_words.h"
#include "cpu/thread_pool.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {

constexpr int64_t kTile = 256;
constexpr int64_t kTileGrain = 32;  // tiles that one thread takes at a time

inline int64_t tile_length(int64_t count, int64_t tile) {
  const int64_t rest = count - tile * kTile;
  return rest < kTile ? rest : kTile;
}

// Body: int64_t(const Tensor&, first_tile, end_tile), the number of elements it skipped.
template <class Tensor, class Body>
void for_tiles(const Tensor* tensors, int64_t tensor_count, Body&& body) {
  int64_t tiles = 0;
  for (int64_t i = 0; i < tensor_count; ++i) tiles += ceil_div(tensors[i].count, kTile);
  parallel_for(tiles, kTileGrain, [&](int64_t begin, int64_t end) {
    int64_t before = 0;  // tiles of the tensors before this one
    for (int64_t i = 0; i < tensor_count && before < end; ++i) {
      const Tensor& tensor = tensors[i];
      const int64_t own = ceil_div(tensor.count, kTile);
      const int64_t first = begin > before ? begin - before : 0;
      const int64_t last = end - before < own ? end - before : own;
      if (first < last) {
        const int64_t skipped = body(tensor, first, last);
        if (skipped != 0) {
          __atomic_fetch_add(tensor.progress + kProgressSkipped, skipped, __ATOMIC_RELAXED);
        }
      }
      before += own;
    }
  });
}

// Elements first ... first+n-1 as floats: in place if they are float32, else in `buffer`.
inline const float* load_tile(const void* data, DType dtype, int64_t first, int64_t n, float* buffer) {
  if (dtype == DType::f32) return static_cast<const float*>(data) + first;
  visit_float(dtype, data, [&](const auto* x) {
    for (int64_t i = 0; i < n; ++i) buffer[i] = to_float(x[first + i]);
  });
  return buffer;
}

template <class T>
inline void store_weights(const float* __restrict__ w, T* __restrict__ param, int64_t n,
                          const uint32_t* __restrict__ words) {
  if (words != nullptr) {
    for (int64_t i = 0; i < n; ++i) param[i] = adam_weight<T>(w[i], words[i], true);
  } else {
    for (int64_t i = 0; i < n; ++i) param[i] = adam_weight<T>(w[i], 0, false);
  }
}

inline int64_t step_floats(const AdamScalars& s, const AdamWriteScalars& write, float* __restrict__ w,
                           const float* __restrict__ g, float* __restrict__ m, float* __restrict__ v,
                           int64_t n) {
  int32_t skipped = 0;
  for (int64_t i = 0; i < n; ++i) {
    const AdamElement element = adam_element(s, write, w[i], g[i], m[i], v[i]);
    w[i] = element.w;
    m[i] = element.m;
    v[i] = element.v;
    skipped += element.skipped;
  }
  return skipped;
}

// The scalars of one tensor within one call of `step`.
struct AdamStepContext {
  AdamScalars scalars;
  AdamWriteScalars write;
  RandomStream stream;
  bool stochastic;
};

template <class Tensor>
inline AdamStepContext adam_step_context(const AdamHyper& hyper, const AdamWrite& write,
                                         const Tensor& tensor) {
  return AdamStepContext{adam_scalars(hyper, tensor.beta_powers), adam_write_scalars(write),
                         adam_random_stream(write, tensor.tensor_id, tensor.progress), write.stochastic};
}

// Moves the parameters first ... first+n-1 of a tensor. Body: int64_t(float* w, const float* g), which writes
// the tile's weights and returns how many it skipped.
template <class Tensor, class Body>
inline int64_t move_tile(const Tensor& tensor, const RandomStream& stream, bool stochastic, int64_t first,
                         int64_t n, Body&& body) {
  alignas(64) float grad_buffer[kTile], weight_buffer[kTile];
  alignas(64) uint32_t words[kTile];
  const float* g = load_tile(tensor.grad, tensor.grad_dtype, first, n, grad_buffer);
  if (tensor.param_dtype == DType::f32) {
    return body(static_cast<float*>(tensor.param) + first, g);
  }
  load_tile(tensor.param, tensor.param_dtype, first, n, weight_buffer);
  const int64_t skipped = body(static_cast<float*>(weight_buffer), g);
  if (stochastic) random_words(stream, static_cast<uint64_t>(first), n, words);
  visit_float(tensor.param_dtype, tensor.param, [&](auto* param) {
    store_weights(weight_buffer, param + first, n, stochastic ? words : nullptr);
  });
  return skipped;
}

// Steps the parameters first ... first+n-1 of a tensor; m and v are the tile's moments as floats.
template <class Tensor>
inline int64_t step_tile(const AdamStepContext& context, const Tensor& tensor, int64_t first, int64_t n,
                         float* m, float* v) {
  return move_tile(tensor, context.stream, context.stochastic, first, n, [&](float* w, const float* g) {
    return step_floats(context.scalars, context.write, w, g, m, v, n);
  });
}

template <class T>
inline bool direction_accepts_tile(const T* r, int64_t n) {
  int32_t refused = 0;
  for (int64_t i = 0; i < n; ++i) refused |= adam_direction_accepts(to_float(r[i])) ? 0 : 1;
  return refused == 0;
}

// Replaces r by its direction and updates the tile's moments.
template <class T>
inline void direction_tile(const AdamScalars& s, T* __restrict__ r, float* __restrict__ m,
                           float* __restrict__ v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = to_float(r[i]);
    m[i] = adam_exp_avg(s, m[i], g);
    v[i] = adam_exp_avg_sq(s, v[i], g);
    r[i] = from_float<T>(adam_direction(s, m[i], v[i]));
  }
}

template <class T>
inline bool accepts_all(const T* r, int64_t count) {
  int refused = 0;
  parallel_for(ceil_div(count, kTile), kTileGrain, [&](int64_t begin, int64_t end) {
    const int64_t last = end * kTile < count ? end * kTile : count;
    if (!direction_accepts_tile(r + begin * kTile, last - begin * kTile)) {
      __atomic_store_n(&refused, 1, __ATOMIC_RELAXED);
    }
  });
  return refused == 0;
}

template <class T>
inline void zero_all(T* r, int64_t count) {
  parallel_for(ceil_div(count, kTile), kTileGrain, [&](int64_t begin, int64_t end) {
    const int64_t last = end * kTile < count ? end * kTile : count;
    for (int64_t i = begin * kTile; i < last; ++i) r[i] = from_float<T>(0.0f);
  });
}

// Looks at all of r, advances progress accordingly, and zeroes r if the call is skipped. Returns whether
// the call applies.
template <class T>
inline bool begin_direction(T* r, int64_t count, const AdamHyper& hyper, int64_t* progress,
                            double* beta_powers) {
  const bool applied = accepts_all(r, count);
  advance_progress(progress, beta_powers, hyper.beta1, hyper.beta2, applied);
  if (!applied) zero_all(r, count);
  return applied;
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore::cpu
