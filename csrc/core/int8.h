// INT8 weights in asymmetric groups, and their update with stochastic rounding.
//
// Per group a float scale s and a uint8 zero-point z:  w ~ (q - z) s.  Quantisation is that of
// core/int4.h with 255 levels.
//
// The update w <- keep w + u works in code units, with k = q - z, d = u / s - (1 - keep) k and y = k + d.
//
//   If every y fits (-q <= d <= 255 - q, exact where y would round) and max(y, 0) - min(y, 0) >= 128, then
//   s and z stay and q += SR(d).  Otherwise (the group outgrew its codes, or shrank to half of them)
//     lo, hi = min(y, 0) s, max(y, 0) s          s' = max(1.02 (hi - lo), 1e-5) / 253
//     z' = ceil(-lo / s' + (254 - (hi - lo) / s') / 2)        q = z' + SR(y s / s')
//
// Taking min and max anew at every step, as published, is biased at the extremes of each group, and
// moves codes even for a zero update. Here no clamp can ever act, and a group of which no element moves
// is left alone whatever its range. A group whose scale is already the smallest is kept while it fits. An
// element whose d is not finite keeps its value, and so does a group whose scale is not in (0, 2^60).
#pragma once

#include "core/int4.h"
#include "core/philox.h"
#include "core/progress.h"

namespace frugalore {

struct Int8QuantizeJob {
  const void* x;  // [rows, columns] of x_dtype
  DType x_dtype;
  uint8_t* codes;  // [rows, columns]
  float* scale;    // [rows, groups]
  uint8_t* zero;   // [rows, groups]
  GroupLayout layout;
};

struct Int8DequantizeJob {
  const uint8_t* codes;
  const float* scale;
  const uint8_t* zero;
  void* x;  // [rows, columns] of x_dtype
  DType x_dtype;
  GroupLayout layout;
};

// How one step moves a weight:  w <- keep w + coefficient * update, where
//   keep        = 1 - lr * weight_decay
//   coefficient = lr * alpha            (decay before the update: torch, FRUGAL)
//               = lr * alpha * keep     (decay after the update: bitsandbytes, GaLore, Q-GaLore)
// lr is read where the kernel runs. Nothing happens when progress says that this step was skipped.
struct WeightStep {
  const double* lr;         // [1]
  const int64_t* progress;  // [3], core/progress.h; the applied count is the step of the random stream
  double alpha;
  double weight_decay;
  bool decay_after;
  bool stochastic;  // false: round to nearest
  uint64_t seed;
  uint32_t tensor_id;
  int64_t first_index;  // global index of element (0, 0): row panels and shards
};

struct Int8UpdateJob {
  uint8_t* codes;
  float* scale;
  uint8_t* zero;
  const void* update;  // [rows, columns] of update_dtype
  DType update_dtype;
  GroupLayout layout;
  WeightStep step;
};

inline namespace FRUGALORE_ISA_NAMESPACE {

struct WeightStepScalars {
  float one_minus_keep;
  float keep;
  float coefficient;
  bool applied;
  RandomStream stream;
};

FRUGALORE_HD WeightStepScalars weight_step_scalars(const WeightStep& step) {
  const double lr = *step.lr;
  const double decay = lr * step.weight_decay;
  const double coefficient = lr * step.alpha * (step.decay_after ? 1.0 - decay : 1.0);
  return WeightStepScalars{
      static_cast<float>(decay), static_cast<float>(1.0 - decay), static_cast<float>(coefficient),
      step.progress[kProgressAppliedNow] != 0,
      random_stream(step.seed, step.tensor_id, step.progress[kProgressApplied], Purpose::weight)};
}

// u / s as a factor of the update. NaN for a scale that is not in (0, 2^60): no element then moves.
FRUGALORE_HD float int8_update_per_code(float coefficient, float scale) {
  const float limit = 1152921504606846976.0f;
  return scale > 0.0f && scale < limit ? coefficient / scale : bit_cast<float>(0x7fc00000u);
}

// The intended change d of one code, in code units; 0 where it is not finite or beyond 2^60 codes, so
// that no product with a scale can overflow later.
FRUGALORE_HD float int8_delta(float k, float update, float update_per_code, float one_minus_keep) {
  const float d = update * update_per_code - k * one_minus_keep;
  const float limit = 1152921504606846976.0f;
  return d >= -limit && d <= limit ? d : 0.0f;
}

// Whether q + SR(d) could leave 0..255. Compared without adding: k + d rounds a tiny d away.
FRUGALORE_HD bool int8_outside(float q, float d) {
  return d < -q || d > 255.0f - q;
}

// The whole group's y.
struct Int8Range {
  float lo, hi;  // min and max over the elements and 0
  bool outside;  // an element might leave its codes
  bool moved;    // an element has d != 0
};

// What becomes of the group.
struct Int8Grid {
  bool kept;    // s and z stay: q += SR(d)
  float ratio;  // s / s'
  float scale;  // s'
  float zero;   // z'
};

FRUGALORE_HD Int8Grid int8_grid(const Int8Range& range, float s, float z) {
  const float smallest_scale = 1e-5f / 253.0f;
  const bool fine_enough = range.hi - range.lo >= 128.0f || s <= smallest_scale;
  if (!range.moved || (!range.outside && fine_enough)) return Int8Grid{true, 1.0f, s, z};
  const float low = range.lo * s, width = range.hi * s - low;
  const float wide = 1.02f * width;
  const float scale = (wide > 1e-5f ? wide : 1e-5f) / 253.0f;
  const float codes_below = -low / scale + (254.0f - width / scale) * 0.5f;
  const float whole = static_cast<float>(static_cast<int32_t>(codes_below));
  return Int8Grid{false, s / scale, scale, whole < codes_below ? whole + 1.0f : whole};
}

// SR, or rounding to nearest even, of a change |x| <= 255.
template <bool kStochastic>
FRUGALORE_HD int32_t int8_round(float x, uint32_t word) {
  return kStochastic ? stochastic_round(x, word) : static_cast<int32_t>(round_even(x));
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
