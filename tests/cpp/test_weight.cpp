#include "core/weight.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace frugalore {
namespace {

constexpr uint32_t kWords[] = {0u, 0x0000ffffu, 0x7fffffffu, 0x80000000u, 0xfffe0000u, 0xffffffffu};

TEST(StochasticFromFloat, AFloatIsWrittenAsItIs) {
  EXPECT_EQ(stochastic_from_float<float>(0.1f, 0xffffffffu), 0.1f);
}

template <class T>
void expect_representable_values_never_move(uint32_t infinity) {
  for (uint32_t bits = 0; bits < infinity; ++bits) {
    for (const uint32_t sign : {0u, 0x8000u}) {
      const T value{static_cast<uint16_t>(bits | sign)};
      for (const uint32_t word : kWords) {
        EXPECT_EQ(stochastic_from_float<T>(to_float(value), word).bits, value.bits);
      }
    }
  }
}

TEST(StochasticFromFloat, RepresentableValuesNeverMove) {
  expect_representable_values_never_move<bf16>(0x7f80u);
  expect_representable_values_never_move<f16>(0x7c00u);
}

// The mean over 2^16 evenly spaced words, which is exact for as many fraction bits.
template <class T>
double mean(float x) {
  double sum = 0.0;
  for (uint32_t k = 0; k < 65536u; ++k) sum += to_float(stochastic_from_float<T>(x, k << 16));
  return sum / 65536.0;
}

TEST(StochasticFromFloat, TheMeanIsTheValue) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 12; ++i) {
    const float x = std::ldexp(normal(random), i - 10);
    EXPECT_EQ(mean<bf16>(x), x);
    EXPECT_EQ(mean<f16>(x), x);
  }
  for (int i = 0; i < 12; ++i) {  // halves without an exponent: multiples of 2^-24, here with 16 bits behind
    const float x = std::ldexp(std::floor(std::ldexp(normal(random), 24)), -40 + i / 2);
    EXPECT_EQ(mean<f16>(x), x);
  }
}

TEST(StochasticFromFloat, TheLargestFiniteValueDoesNotOverflow) {
  const float largest = bit_cast<float>(0x7f7fffffu);
  for (const uint32_t word : kWords) {
    for (const float sign : {1.0f, -1.0f}) {
      EXPECT_TRUE(std::isfinite(to_float(stochastic_from_float<bf16>(sign * largest, word))));
      EXPECT_EQ(to_float(stochastic_from_float<f16>(sign * 65519.0f, word)), sign * 65504.0f);
      EXPECT_EQ(to_float(stochastic_from_float<f16>(sign * largest, word)), sign * 65504.0f);
    }
  }
}

}  // namespace
}  // namespace frugalore
