#include "core/floats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace frugalore {
namespace {

// The nearest of the two 16-bit neighbours, ties to the even one; an independent reading of "round".
uint16_t nearest_bf16(uint32_t bits) {
  const uint32_t below = bits >> 16, rest = bits & 0xffffu;
  if (rest > 0x8000u || (rest == 0x8000u && (below & 1u) != 0)) return static_cast<uint16_t>(below + 1);
  return static_cast<uint16_t>(below);
}

TEST(Floats, EveryBf16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const float value = to_float(bf16{static_cast<uint16_t>(bits)});
    EXPECT_EQ(bit_cast<uint32_t>(value), bits << 16);
    const uint16_t back = from_float<bf16>(value).bits;
    EXPECT_EQ(back, std::isnan(value) ? bits | 0x40u : bits);
  }
}

TEST(Floats, Bf16RoundsToNearestEven) {
  std::mt19937 random(1);
  for (int i = 0; i < 1 << 20; ++i) {
    // Half of them on or beside a tie.
    const uint32_t word = static_cast<uint32_t>(random());
    const uint32_t bits = i % 2 == 0 ? word : ((word & 0xffff0000u) | (0x7fffu + word % 3));
    const float value = bit_cast<float>(bits);
    const uint16_t got = from_float<bf16>(value).bits;
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(bf16{got})));
    } else {
      EXPECT_EQ(got, nearest_bf16(bits)) << value;
    }
  }
}

TEST(Floats, Bf16OverflowIsInfinity) {
  EXPECT_EQ(from_float<bf16>(std::numeric_limits<float>::max()).bits, 0x7f80u);
  EXPECT_EQ(from_float<bf16>(-std::numeric_limits<float>::max()).bits, 0xff80u);
}

// A half from its definition: sign, 5 bits of exponent, 10 of mantissa.
double value_of_half(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31u);
  const double mantissa = bits & 0x3ffu;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024.0 + mantissa, exponent - 25);
  return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
}

TEST(Floats, EveryF16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const float value = to_float(f16{static_cast<uint16_t>(bits)});
    const uint16_t back = from_float<f16>(value).bits;
    if ((bits & 0x7fffu) > 0x7c00u) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_EQ(back, bits | 0x200u);
    } else {
      EXPECT_EQ(back, bits);
      if ((bits & 0x7fffu) == 0x7c00u) {
        EXPECT_TRUE(std::isinf(value));
      } else {
        EXPECT_EQ(value, value_of_half(bits));
        EXPECT_EQ(std::signbit(value), (bits & 0x8000u) != 0);
      }
    }
  }
}

TEST(Floats, F16RoundsToNearestEvenBetweenAllNeighbours) {
  for (uint32_t bits = 0; bits < 0x7bffu; ++bits) {
    const double below = value_of_half(bits), above = value_of_half(bits + 1);
    const float middle = static_cast<float>((below + above) / 2);  // exact: one bit more than a half
    const float infinity = std::numeric_limits<float>::infinity();
    const uint32_t even = (bits & 1u) == 0 ? bits : bits + 1;
    EXPECT_EQ(from_float<f16>(middle).bits, even);
    EXPECT_EQ(from_float<f16>(std::nextafter(middle, 0.0f)).bits, bits);
    EXPECT_EQ(from_float<f16>(std::nextafter(middle, infinity)).bits, bits + 1);
    EXPECT_EQ(from_float<f16>(-middle).bits, even | 0x8000u);
  }
}

TEST(Floats, F16OverflowAndUnderflow) {
  EXPECT_EQ(from_float<f16>(65519.996f).bits, 0x7bffu);
  EXPECT_EQ(from_float<f16>(65520.0f).bits, 0x7c00u);
  EXPECT_EQ(from_float<f16>(-1e30f).bits, 0xfc00u);
  EXPECT_EQ(from_float<f16>(std::ldexp(1.0f, -25)).bits, 0u);
  EXPECT_EQ(from_float<f16>(-std::ldexp(1.0f, -25)).bits, 0x8000u);
  EXPECT_EQ(from_float<f16>(std::numeric_limits<float>::denorm_min()).bits, 0u);
}

#if defined(__FLT16_MAX__)
TEST(Floats, F16AgreesWithTheCompiler) {
  std::mt19937 random(2);
  for (int i = 0; i < 1 << 20; ++i) {
    // Exponents around those of halves, so that few of them are simply zero or infinity.
    const uint32_t word = static_cast<uint32_t>(random());
    const float value =
        std::ldexp(bit_cast<float>((word & 0x807fffffu) | 0x3f800000u), static_cast<int>(random() % 48) - 28);
    EXPECT_EQ(from_float<f16>(value).bits, bit_cast<uint16_t>(static_cast<_Float16>(value))) << value;
  }
}
#endif

TEST(Floats, IsFinite) {
  EXPECT_TRUE(is_finite(0.0f));
  EXPECT_TRUE(is_finite(-std::numeric_limits<float>::max()));
  EXPECT_FALSE(is_finite(std::numeric_limits<float>::infinity()));
  EXPECT_FALSE(is_finite(-std::numeric_limits<float>::infinity()));
  EXPECT_FALSE(is_finite(std::numeric_limits<float>::quiet_NaN()));
}

}  // namespace
}  // namespace frugalore
