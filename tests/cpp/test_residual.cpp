#include "core/residual.h"

#include <gtest/gtest.h>

#include <limits>

namespace frugalore {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(Residual, Rules) {
  EXPECT_EQ(residual_sum<ResidualRule::sign>(2.0f, 3.0f, 1.0f, 7.0f, 0.5f, 0.25f), 1.25f);
  EXPECT_EQ(residual_sum<ResidualRule::sign>(2.0f, 1.0f, 3.0f, 7.0f, 0.5f, 0.25f), 0.75f);
  EXPECT_EQ(residual_sum<ResidualRule::sign>(2.0f, 3.0f, 3.0f, 7.0f, 0.5f, 0.25f), 1.0f);
  EXPECT_EQ(residual_sum<ResidualRule::sgd>(2.0f, 3.0f, 1.0f, 7.0f, 0.5f, 0.25f), 1.5f);
  EXPECT_EQ(residual_sum<ResidualRule::scaled>(2.0f, 3.0f, 1.0f, 7.0f, 0.5f, 0.25f), 4.5f);
}

TEST(Residual, WhatIsNotFiniteGivesOneNan) {
  const float cases[][3] = {{1.0f, kInfinity, 0.0f}, {1.0f, 0.0f, -kInfinity}, {1.0f, kInfinity, kInfinity},
                            {1.0f, -kNan, 0.0f},     {-kNan, 1.0f, 0.0f},      {-kInfinity, kNan, 0.0f}};
  for (const auto& [update, grad, projected] : cases) {
    const float sums[] = {
        residual_sum<ResidualRule::sign>(update, grad, projected, 0.0f, 1.0f, 0.0f),
        residual_sum<ResidualRule::sgd>(update, grad, projected, 0.0f, 1.0f, 1.0f),
        residual_sum<ResidualRule::scaled>(update, grad, projected, 0.0f, 1.0f, 1.0f),
    };
    for (const float sum : sums) EXPECT_EQ(bit_cast<uint32_t>(sum), 0x7fc00000u);
  }
  EXPECT_EQ(residual_sum<ResidualRule::sign>(kInfinity, 1.0f, 0.0f, 0.0f, 1.0f, 1.0f), kInfinity);
}

}  // namespace
}  // namespace frugalore
