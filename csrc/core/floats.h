// Float formats: the dtype tags that cross the binding, and exact conversions of bfloat16 and float16.
//
// All conversions are integer arithmetic or exact float operations, so they give the same bits on
// every device. Rounding is to nearest, ties to even; NaN stays NaN; overflow gives infinity.
#pragma once

#include <cstring>

#include "core/config.h"

namespace frugalore {

enum class DType : uint8_t { f32, f16, bf16, f64, u8, i8, i32, i64, other };

// Storage types: 16 bits and nothing else, so that a pointer to them can be a pointer into a tensor.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline namespace FRUGALORE_ISA_NAMESPACE {

template <class To, class From>
FRUGALORE_HD To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

FRUGALORE_HD bool is_finite(float x) {
  return (bit_cast<uint32_t>(x) & 0x7f800000u) != 0x7f800000u;
}

// 1, 0 or -1; 0 for NaN.
FRUGALORE_HD float sign_of(float x) {
  return static_cast<float>(static_cast<int32_t>(x > 0.0f) - static_cast<int32_t>(x < 0.0f));
}

FRUGALORE_HD float to_float(float x) {
  return x;
}

FRUGALORE_HD float to_float(bf16 x) {
  return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

// Shift the 15 magnitude bits into float's place and rebase the exponent by an exact multiplication
// with 2^112, which also normalises subnormals; infinity and NaN get their exponent filled in.
FRUGALORE_HD float to_float(f16 x) {
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const float scaled = bit_cast<float>(magnitude) * bit_cast<float>(0x77800000u);  // 2^112
  uint32_t bits = bit_cast<uint32_t>(scaled);
  bits = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : bits;
  return bit_cast<float>(bits | (static_cast<uint32_t>(x.bits & 0x8000u) << 16));
}

template <class T>
FRUGALORE_HD T from_float(float x);

template <>
FRUGALORE_HD float from_float<float>(float x) {
  return x;
}

template <>
FRUGALORE_HD bf16 from_float<bf16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x0040u;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return bf16{static_cast<uint16_t>(nan ? quiet_nan : rounded)};
}

// Below the smallest normal half (2^-14) the addition of 0.5 lets the float adder round at 2^-24.
template <>
FRUGALORE_HD f16 from_float<f16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0x0fffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;                                  // 65520 and more
  result = magnitude > 0x7f800000u ? (0x7e00u | ((magnitude >> 13) & 0x3ffu)) : result;  // NaN
  return f16{static_cast<uint16_t>(sign | result)};
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
