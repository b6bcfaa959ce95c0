#include "core/dynamic_map.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace frugalore {
namespace {

const DynamicTables kTables = make_dynamic_tables();

uint8_t signed_code(float x) {
  return dynamic_signed_code(kTables.signed_cell[dynamic_cell(x)], x);
}
uint8_t unsigned_code(float x) {
  return dynamic_unsigned_code(kTables.unsigned_cell[dynamic_cell(x)], x);
}

// The nearest code by search over all values; half-way, the value of smaller magnitude.
int nearest(const float (&values)[256], float x) {
  int best = 0;
  for (int code = 1; code < 256; ++code) {
    const double distance = std::abs(static_cast<double>(values[code]) - x);
    const double least = std::abs(static_cast<double>(values[best]) - x);
    if (distance < least || (distance == least && std::abs(values[code]) < std::abs(values[best])))
      best = code;
  }
  return best;
}

TEST(DynamicMap, ValuesAscendAndHoldZeroAndOne) {
  for (int code = 1; code < 256; ++code) {
    EXPECT_LT(kTables.signed_value[code - 1], kTables.signed_value[code]);
    EXPECT_LT(kTables.unsigned_value[code - 1], kTables.unsigned_value[code]);
  }
  EXPECT_EQ(kTables.signed_value[kDynamicSignedZero], 0.0f);
  EXPECT_EQ(kTables.signed_value[255], 1.0f);
  EXPECT_EQ(kTables.unsigned_value[0], 0.0f);
  EXPECT_EQ(kTables.unsigned_value[255], 1.0f);
}

TEST(DynamicMap, EveryValueKeepsItsCode) {
  for (int code = 0; code < 256; ++code) {
    EXPECT_EQ(signed_code(kTables.signed_value[code]), code);
    EXPECT_EQ(unsigned_code(kTables.unsigned_value[code]), code);
  }
}

// On the midpoint of every two neighbours, and one float to either side.
TEST(DynamicMap, MidpointsAreExact) {
  const auto around = [](float a, float b) {
    const float middle = static_cast<float>(0.5 * (static_cast<double>(a) + b));
    return std::vector<float>{std::nextafter(middle, -2.0f), middle, std::nextafter(middle, 2.0f)};
  };
  for (int code = 1; code < 256; ++code) {
    for (const float x : around(kTables.signed_value[code - 1], kTables.signed_value[code])) {
      EXPECT_EQ(signed_code(x), nearest(kTables.signed_value, x)) << x;
    }
    for (const float x : around(kTables.unsigned_value[code - 1], kTables.unsigned_value[code])) {
      EXPECT_EQ(unsigned_code(x), nearest(kTables.unsigned_value, x)) << x;
    }
  }
}

TEST(DynamicMap, RandomValuesGetTheNearestCode) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  for (int i = 0; i < 50000; ++i) {
    const float x = uniform(random) * std::pow(10.0f, -8.0f * static_cast<float>(i % 16) / 16.0f);
    EXPECT_EQ(signed_code(x), nearest(kTables.signed_value, x)) << x;
    EXPECT_EQ(unsigned_code(std::abs(x)), nearest(kTables.unsigned_value, std::abs(x))) << x;
  }
}

TEST(DynamicMap, NoFloatLeavesTheTables) {
  for (const float x : {0.0f, -0.0f, 1e-45f, 1.0f, -1.0f, 1.5f, 3e38f, -INFINITY, NAN}) {
    EXPECT_GE(dynamic_cell(x), 0);
    EXPECT_LT(dynamic_cell(x), kDynamicCells);
  }
  EXPECT_EQ(signed_code(-0.0f), kDynamicSignedZero);
  EXPECT_EQ(signed_code(-1.0f), 0);
}

}  // namespace
}  // namespace frugalore
