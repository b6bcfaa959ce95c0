#include "core/rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace frugalore {
namespace {

TEST(Rounding, RoundEven) {
  for (int half_steps = -4001; half_steps <= 4001; ++half_steps) {
    const float x = 0.5f * static_cast<float>(half_steps);
    EXPECT_EQ(round_even(x), std::nearbyint(x)) << x;
  }
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-4194303.0f, 4194303.0f);
  for (int i = 0; i < 1 << 18; ++i) {
    const float x = uniform(random) * (i % 2 == 0 ? 1.0f : 1e-5f);
    EXPECT_EQ(round_even(x), std::nearbyint(x)) << x;
  }
}

TEST(Rounding, Clamp) {
  EXPECT_EQ(clamp(-0.5f, 0.0f, 15.0f), 0.0f);
  EXPECT_EQ(clamp(15.5f, 0.0f, 15.0f), 15.0f);
  EXPECT_EQ(clamp(7.25f, 0.0f, 15.0f), 7.25f);
}

TEST(StochasticRound, IntegersNeverMove) {
  for (const float x :
       {0.0f, -0.0f, 1.0f, -1.0f, 255.0f, -255.0f, 16777216.0f, -16777217.0f, 2147483520.0f}) {
    for (const uint32_t word : {0u, 1u, 0x7fffffffu, 0x80000000u, 0xffffffffu}) {
      EXPECT_EQ(stochastic_round(x, word), static_cast<int32_t>(x));
    }
  }
}

// Over 2^16 evenly spaced words the mean is exact when the fraction is a multiple of 2^-16.
TEST(StochasticRound, TheMeanIsTheValue) {
  for (const int numerator : {1, 77, 32768, 65535, 65537, 100001, 1 << 20 | 3}) {
    for (const int sign : {1, -1}) {
      const float x = static_cast<float>(sign * numerator) / 65536.0f;
      int64_t sum = 0;
      for (uint32_t k = 0; k < 65536u; ++k) sum += stochastic_round(x, k << 16);
      EXPECT_EQ(sum, sign * numerator) << x;
    }
  }
}

TEST(StochasticRound, NeighboursOnly) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(-300.0f, 300.0f);
  for (int i = 0; i < 1 << 18; ++i) {
    const float x = uniform(random);
    const int32_t rounded = stochastic_round(x, static_cast<uint32_t>(random()));
    EXPECT_GE(rounded, std::floor(x));
    EXPECT_LE(rounded, std::ceil(x));
  }
}

// A value of 2^-30 goes up for two of the 2^31 thresholds, on either side of zero.
TEST(StochasticRound, SmallValuesKeepTheirBits) {
  const float tiny = std::ldexp(1.0f, -30);
  for (const float sign : {1.0f, -1.0f}) {
    EXPECT_EQ(stochastic_round(sign * tiny, 3u), static_cast<int32_t>(sign));  // word >> 1 = 1
    EXPECT_EQ(stochastic_round(sign * tiny, 4u), 0);                           // word >> 1 = 2
  }
}

}  // namespace
}  // namespace frugalore
