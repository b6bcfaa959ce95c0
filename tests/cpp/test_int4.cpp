#include "core/int4.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace frugalore {
namespace {

TEST(Int4, TheEvenElementIsTheLowNibble) {
  EXPECT_EQ(int4_pair(3, 10), 0xa3);
  EXPECT_EQ(int4_pair(0xf3, 0x0a), 0xa3);  // upper bits of a code are dropped
}

TEST(Int4, OneSignedGroupsKeepTheirRange) {
  const AffineGroup positive = affine_group(0.0f, 15.0f, 15.0f);
  EXPECT_EQ(positive.zero, 0.0f);
  EXPECT_EQ(positive.scale, 1.0f);
  const AffineGroup negative = affine_group(-30.0f, 0.0f, 15.0f);
  EXPECT_EQ(negative.zero, 15.0f);
  EXPECT_EQ(negative.scale, 2.0f);
  const AffineGroup zeros = affine_group(0.0f, 0.0f, 15.0f);
  EXPECT_EQ(zeros.zero, 0.0f);
  EXPECT_GT(zeros.scale, 0.0f);
}

// Zero is always a code, codes stay in range, and a value is off by half a step, or by one at the ends,
// where rounding of the zero-point can push it over the edge.
TEST(Int4, QuantisationError) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (const float levels : {15.0f, 255.0f}) {
    for (int i = 0; i < 20000; ++i) {
      const float size = std::pow(10.0f, static_cast<float>(i % 9) - 3.0f);
      const float a = size * normal(random), b = size * normal(random);
      const float lo = std::min({a, b, 0.0f}), hi = std::max({a, b, 0.0f});
      const AffineGroup group = affine_group(lo, hi, levels);
      EXPECT_EQ(group.zero, std::nearbyint(group.zero));
      EXPECT_EQ(affine_code(0.0f, group, levels), group.zero);
      for (const float x : {lo, hi, 0.5f * (lo + hi)}) {
        const float code = affine_code(x, group, levels);
        EXPECT_LE(code, levels);
        const float steps = x == lo || x == hi ? 1.001f : 0.501f;
        EXPECT_LE(std::abs((code - group.zero) * group.scale - x), steps * group.scale) << lo << " " << hi;
      }
    }
  }
}

}  // namespace
}  // namespace frugalore
