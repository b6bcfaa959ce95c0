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

// Below 2^-14 halves are 2^-24 apart, whatever x's own exponent: there x is brought onto that grid as an
// integer. At 2^-14 both forms give 0x0400 whatever the word, so the result is the one of the part below plus
// the one of the part above, without a select, which would become a branch and the loop scalar. Beyond 65504
// the result is the largest half.
template <>
FRUGALORE_HD f16 stochastic_from_float<f16>(float x, uint32_t word) {
  const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const uint32_t smallest_normal = 0x38800000u;  // 2^-14
  const uint32_t below = magnitude < smallest_normal ? magnitude : smallest_normal;
  const uint32_t above = magnitude > smallest_normal ? magnitude : smallest_normal;
  const int32_t subnormal = stochastic_round(bit_cast<float>(below) * 16777216.0f, word);  // 2^24
  const uint32_t normal = (above + (word >> 19) - 0x38000000u) >> 13;
  const uint32_t result = normal + static_cast<uint32_t>(subnormal) - 0x0400u;
  return f16{static_cast<uint16_t>(((bits >> 16) & 0x8000u) | (result > 0x7bffu ? 0x7bffu : result))};
}

// A conditional of the storage types would be a branch, and the loop around it scalar; so would one of the
// bits of a half, whose rounding is long.
FRUGALORE_HD float select(bool condition, float yes, float no) {
  return condition ? yes : no;
}
FRUGALORE_HD bf16 select(bool condition, bf16 yes, bf16 no) {
  return bf16{condition ? yes.bits : no.bits};
}
FRUGALORE_HD f16 select(bool condition, f16 yes, f16 no) {
  const uint32_t mask = condition ? 0xffffffffu : 0u;
  return f16{static_cast<uint16_t>((yes.bits & mask) | (no.bits & ~mask))};
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
