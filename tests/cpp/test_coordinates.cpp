#include "core/coordinates.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace frugalore {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST(Coordinates, OutsideRules) {
  EXPECT_EQ(outside_update<OutsideRule::sign>(3.0f, 0.5f), 0.5f);
  EXPECT_EQ(outside_update<OutsideRule::sign>(-1e-40f, 0.5f), -0.5f);
  EXPECT_EQ(outside_update<OutsideRule::sign>(0.0f, 0.5f), 0.0f);
  EXPECT_EQ(outside_update<OutsideRule::sign>(-0.0f, 0.5f), 0.0f);
  EXPECT_EQ(outside_update<OutsideRule::sgd>(-3.0f, 0.5f), -1.5f);
  EXPECT_EQ(outside_update<OutsideRule::none>(kInfinity, 0.5f), 0.0f);
}

TEST(Coordinates, WhatIsNotFiniteOutsideStaysSo) {
  for (const float g : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
    for (const float scale : {0.5f, -2.0f, 0.0f}) {
      EXPECT_TRUE(std::isnan(outside_update<OutsideRule::sign>(g, scale))) << g;
      EXPECT_FALSE(std::isfinite(outside_update<OutsideRule::sgd>(g, scale))) << g;
    }
  }
}

}  // namespace
}  // namespace frugalore
