// Rounding to integers: to nearest even, and stochastically by an integer comparison.
#pragma once

#include "core/floats.h"

namespace frugalore {
inline namespace FRUGALORE_ISA_NAMESPACE {

// Round to nearest, ties to even, for |x| < 2^22. The addition pushes the fraction out of the
// mantissa; unlike rintf this vectorises on every instruction set and needs no rounding-mode call.
FRUGALORE_HD float round_even(float x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23
  return (x + magic) - magic;
}

FRUGALORE_HD float clamp(float x, float low, float high) {
  return x < low ? low : (x > high ? high : x);
}

// Stochastic rounding of x to an integer, for |x| < 2^31: E[result] = x up to 2^-31, and an integer x
// never moves. The fraction is compared as a 31-bit integer with the random word; the rounding acts
// on the magnitude, so that a small negative x keeps all its bits (floor(x) + 1 - |x| would not). The
// sign is taken off and put back with integers: a select would become a branch, and the loop scalar.
FRUGALORE_HD int32_t stochastic_round(float x, uint32_t word) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const float magnitude = bit_cast<float>(bits & 0x7fffffffu);
  const int32_t sign = -static_cast<int32_t>(bits >> 31);
  const int32_t whole = static_cast<int32_t>(magnitude);
  const float fraction = magnitude - static_cast<float>(whole);
  const int32_t threshold = static_cast<int32_t>(fraction * 2147483648.0f);
  const int32_t rounded = whole + (static_cast<int32_t>(word >> 1) < threshold ? 1 : 0);
  return (rounded ^ sign) - sign;
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
