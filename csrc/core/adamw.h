// AdamW (Loshchilov & Hutter, arXiv 1711.05101) with the two conventions that the methods here differ in.
//
//   m <- beta1 m + (1 - beta1) g         v <- beta2 v + (1 - beta2) g^2
//   direction = m a / (sqrt(v) b + eps)
//     eps corrected (torch, bitsandbytes, FRUGAL, Q-GaLore):
//       a = 1 / (1 - beta1^t)                        b = 1 / sqrt(1 - beta2^t)
//     eps raw (GaLore):
//       a = sqrt(1 - beta2^t) / (1 - beta1^t)        b = 1
//   w <- keep w - lr direction           decay before the update (torch, FRUGAL)
//   w <- keep (w - lr direction)         decay after (bitsandbytes, GaLore, Q-GaLore);  keep = 1 - lr wd
//
// t counts this update too: progress is advanced first. Two uses:
//
// `step` moves full-rank parameters. An element whose fresh m, v or w is not finite (a gradient that is
// NaN, infinite or too large to be squared) keeps its weight and its moments; progress counts the
// elements so skipped. The call itself always counts as applied.
//
// `direction` replaces a projected gradient R by its direction. If any element of R is NaN or larger
// than 2^63 in magnitude (its square would leave no room in v), the whole call is skipped: R becomes
// zero, the moments stay, and progress counts one skipped call.
#pragma once

#include <cmath>

#include "core/floats.h"
#include "core/progress.h"
#include "core/weight.h"

namespace frugalore {

struct AdamHyper {
  double beta1, beta2, eps;
  bool eps_raw;
};

// How `step` writes the parameters of one call.
struct AdamWrite {
  const double* lr;  // [1], on the parameters' device
  double weight_decay;
  bool decay_after;
  bool stochastic;  // stochastic rounding of bfloat16 and float16 parameters; else to nearest
  uint64_t seed;
};

struct AdamwTensor {
  void* param;       // [count] of param_dtype
  const void* grad;  // [count] of grad_dtype
  float* exp_avg;
  float* exp_avg_sq;
  int64_t* progress;    // [3]; skipped counts elements here
  double* beta_powers;  // [2]
  int64_t count;
  uint32_t tensor_id;
  DType param_dtype, grad_dtype;
};

struct AdamwStepJob {
  const AdamwTensor* tensors;
  int64_t tensor_count;
  AdamHyper hyper;
  AdamWrite write;
};

struct AdamwDirectionJob {
  void* r;  // [count] of r_dtype: the projected gradient, replaced by the direction
  DType r_dtype;
  int64_t count;
  float* exp_avg;
  float* exp_avg_sq;
  int64_t* progress;  // skipped counts calls here
  double* beta_powers;
  AdamHyper hyper;
};

inline namespace FRUGALORE_ISA_NAMESPACE {

// The scalars of one tensor's step, computed once in double precision.
struct AdamScalars {
  float beta1, rest1, beta2, rest2;  // rest = 1 - beta
  float a, b, eps;
};

FRUGALORE_HD AdamScalars adam_scalars(const AdamHyper& hyper, const double* beta_powers) {
  const double correction1 = 1.0 - beta_powers[0], correction2 = sqrt(1.0 - beta_powers[1]);
  return AdamScalars{static_cast<float>(hyper.beta1),
                     static_cast<float>(1.0 - hyper.beta1),
                     static_cast<float>(hyper.beta2),
                     static_cast<float>(1.0 - hyper.beta2),
                     static_cast<float>((hyper.eps_raw ? correction2 : 1.0) / correction1),
                     static_cast<float>(hyper.eps_raw ? 1.0 : 1.0 / correction2),
                     static_cast<float>(hyper.eps)};
}

FRUGALORE_HD float adam_exp_avg(const AdamScalars& s, float m, float g) {
  return s.beta1 * m + s.rest1 * g;
}

FRUGALORE_HD float adam_exp_avg_sq(const AdamScalars& s, float v, float g) {
  return s.beta2 * v + s.rest2 * (g * g);
}

FRUGALORE_HD float adam_direction(const AdamScalars& s, float m, float v) {
  return (m * s.a) / (sqrtf(v) * s.b + s.eps);
}

FRUGALORE_HD bool adam_direction_accepts(float g) {
  return (bit_cast<uint32_t>(g) & 0x7fffffffu) <= 0x5f000000u;  // |g| <= 2^63
}

// The scalars of the write; the same for all tensors of a call.
struct AdamWriteScalars {
  float keep;
  float coefficient;  // w <- keep w - coefficient direction
};

FRUGALORE_HD AdamWriteScalars adam_write_scalars(const AdamWrite& write) {
  const double keep = 1.0 - *write.lr * write.weight_decay;
  return AdamWriteScalars{static_cast<float>(keep),
                          static_cast<float>(*write.lr * (write.decay_after ? keep : 1.0))};
}

// One element of `step`, before the weight is rounded to its dtype.
struct AdamElement {
  float w, m, v;
  int32_t skipped;  // 0 or 1
};

FRUGALORE_HD float adam_select(uint32_t mask, float fresh, float old) {
  return bit_cast<float>((bit_cast<uint32_t>(fresh) & mask) | (bit_cast<uint32_t>(old) & ~mask));
}

// The three choices share one condition, which a compiler would turn into a branch; a mask keeps the
// loops of the CPU in vectors.
FRUGALORE_HD AdamElement adam_element(const AdamScalars& s, const AdamWriteScalars& write, float w, float g,
                                      float m, float v) {
  const float fresh_m = adam_exp_avg(s, m, g), fresh_v = adam_exp_avg_sq(s, v, g);
  const float fresh_w = write.keep * w - write.coefficient * adam_direction(s, fresh_m, fresh_v);
  const uint32_t applied = static_cast<uint32_t>(is_finite(fresh_m)) &
                           static_cast<uint32_t>(is_finite(fresh_v)) &
                           static_cast<uint32_t>(is_finite(fresh_w));
  const uint32_t mask = 0u - applied;
  return AdamElement{adam_select(mask, fresh_w, w), adam_select(mask, fresh_m, m),
                     adam_select(mask, fresh_v, v), static_cast<int32_t>(1u - applied)};
}

// The weight as it is stored. A weight that was NaN or infinite before stays so.
template <class T>
FRUGALORE_HD T adam_weight(float w, uint32_t word, bool stochastic) {
  return stochastic && is_finite(w) ? stochastic_from_float<T>(w, word) : from_float<T>(w);
}

// What is not finite here was a bfloat16 before, with zeros in the lower half: stochastic rounding then finds
// no room for a carry and truncates, so it needs no second rounding to choose from.
template <>
FRUGALORE_HD bf16 adam_weight<bf16>(float w, uint32_t word, bool stochastic) {
  return stochastic ? stochastic_from_float<bf16>(w, word) : from_float<bf16>(w);
}

FRUGALORE_HD RandomStream adam_random_stream(const AdamWrite& write, uint32_t tensor_id,
                                             const int64_t* progress) {
  return random_stream(write.seed, tensor_id, progress[kProgressApplied], Purpose::weight);
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
