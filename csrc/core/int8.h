// INT8 weights in asymmetric groups, and their update with stochastic rounding.
//
// Per group a float scale s and a uint8 zero-point z:  w ~ (q - z) s.  Quantisation is that of
// core/int4.h with 255 levels.
//
// The update w <- keep w + u works in code units, with k = q - z and d = u / s - (1 - keep) k:
//
//   y = k + d.  If min(y) >= -z, max(y) <= 255 - z and max(y, 0) - min(y, 0) >= 128, then s and z stay
//   and q += SR(d).  Otherwise (the group outgrew its codes, or shrank to half of them)
//     lo, hi = min(y, 0) s, max(y, 0) s          s' = max(1.02 (hi - lo), 1e-5) / 253
//     z' = ceil(-lo / s' + (254 - (hi - lo) / s') / 2)        q = z' + SR(y s / s')
//
// Taking min and max anew at every step, as published, is biased at the extremes of each group, and
// moves codes even for a zero update. Here no clamp can ever act, and u = 0 changes nothing. A group
// whose scale is already the smallest is kept while it fits. An element whose y is not finite keeps
// its value.
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

// What a group's codes become once the range of y is known.
struct Int8Requantize {
  bool keep_grid;  // s and z stay: q += SR(d)
  float ratio;     // s / s'
  float scale;     // s'
  float zero;      // z'
};

constexpr float kInt8SmallestScale = 1e-5f / 253.0f;

// lo, hi: min and max of y over the group and 0. s, z: the group's present scale and zero-point.
FRUGALORE_HD Int8Requantize int8_requantize(float lo, float hi, float s, float z) {
  const bool fits = lo >= -z && hi <= 255.0f - z;
  const bool fine_enough = hi - lo >= 128.0f || s <= kInt8SmallestScale;
  if (fits && fine_enough) return Int8Requantize{true, 1.0f, s, z};
  const float low = lo * s, range = hi * s - low;
  const float wide = 1.02f * range;
  const float scale = (wide > 1e-5f ? wide : 1e-5f) / 253.0f;
  const float codes_below = -low / scale + (254.0f - range / scale) * 0.5f;
  const float whole = static_cast<float>(static_cast<int32_t>(codes_below));
  return Int8Requantize{false, s / scale, scale, whole < codes_below ? whole + 1.0f : whole};
}

// The intended change of one code, in code units; 0 where it is not finite or beyond all sense (2^60
// codes), so that no product with a scale can overflow later.
FRUGALORE_HD float int8_delta(float k, float update, float update_per_code, float one_minus_keep) {
  const float d = update * update_per_code - k * one_minus_keep;
  const float limit = 1152921504606846976.0f;
  return d >= -limit && d <= limit ? d : 0.0f;
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
