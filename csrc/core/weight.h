// The update of a float weight:  w <- keep w + coefficient * update  (WeightStep in core/int8.h).
//
// float32 is written as it is. bfloat16 and float16 are rounded stochastically, because an update
// smaller than half a unit in the last place would otherwise be lost at every step. An element whose
// new value is not finite keeps its old value.
#pragma once

#include "core/int8.h"

namespace frugalore {

struct WeightUpdateJob {
  void* weight;  // [count] of weight_dtype
  DType weight_dtype;
  const void* update;  // [count] of update_dtype
  DType update_dtype;
  int64_t count;
  WeightStep step;
};

inline namespace FRUGALORE_ISA_NAMESPACE {

// Stochastic rounding of a finite x to T: the bits below T's mantissa are compared with as many random
// bits by adding them and truncating, so E[result] = x, and a value that T can hold never moves.
template <class T>
FRUGALORE_HD T stochastic_from_float(float x, uint32_t word);

template <>
FRUGALORE_HD float stochastic_from_float<float>(float x, uint32_t) {
  return x;
}

// A carry out of the largest finite bfloat16 would give infinity; the value is then truncated.
template <>
FRUGALORE_HD bf16 stochastic_from_float<bf16>(float x, uint32_t word) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = bits + (word >> 16);
  const bool overflow = (rounded & 0x7f800000u) == 0x7f800000u;
  return bf16{static_cast<uint16_t>((overflow ? bits : rounded) >> 16)};
}

// Below 2^-14 halves are 2^-24 apart, whatever x's own exponent: x is brought onto that grid as an
// integer. Beyond 65504 the result is the largest half.
template <>
FRUGALORE_HD f16 stochastic_from_float<f16>(float x, uint32_t word) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const float magnitude = bit_cast<float>(bits & 0x7fffffffu);
  const float in_steps = (magnitude < 6.103515625e-5f ? magnitude : 0.0f) * 16777216.0f;  // 2^24
  const uint32_t subnormal = static_cast<uint32_t>(stochastic_round(in_steps, word));
  const uint32_t normal = (bit_cast<uint32_t>(magnitude) + (word >> 19) - 0x38000000u) >> 13;
  uint32_t result = magnitude < 6.103515625e-5f ? subnormal : normal;
  result = result > 0x7bffu || magnitude >= 65504.0f ? 0x7bffu : result;
  return f16{static_cast<uint16_t>(sign | result)};
}

// A conditional of the storage types would be a branch, and the loop around it scalar.
FRUGALORE_HD float select(bool condition, float yes, float no) {
  return condition ? yes : no;
}
FRUGALORE_HD bf16 select(bool condition, bf16 yes, bf16 no) {
  return bf16{condition ? yes.bits : no.bits};
}
FRUGALORE_HD f16 select(bool condition, f16 yes, f16 no) {
  return f16{condition ? yes.bits : no.bits};
}

// One element. Rounding to nearest can also reach infinity; stochastic rounding ends at the largest finite
// number.
template <bool kStochastic, class T>
FRUGALORE_HD T updated_weight(T weight, float update, uint32_t word, float keep, float coefficient) {
  const float x = keep * to_float(weight) + coefficient * update;
  const T rounded = kStochastic ? stochastic_from_float<T>(x, word) : from_float<T>(x);
  return select(is_finite(kStochastic ? x : to_float(rounded)), rounded, weight);
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
