#include "core/int8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace frugalore {
namespace {

// A group of one element at each end, whose scale and zero-point are s and z, and whose y are lo and hi.
Int8Grid grid_of(float lo, float hi, float s, float z) {
  return int8_grid({lo, hi, lo < -z || hi > 255.0f - z, true}, s, z);
}

// The codes nearest and farthest that stochastic rounding can give lie within 0 and 255, so the update needs
// no clamp and so has no bias at the ends of a group.
void expect_no_clamp_acts(float lo, float hi, float scale, float zero) {
  const Int8Grid grid = grid_of(lo, hi, scale, zero);
  EXPECT_GE(grid.zero, 0.0f);
  EXPECT_LE(grid.zero, 255.0f);
  EXPECT_EQ(grid.zero, std::nearbyint(grid.zero));
  EXPECT_TRUE(std::isfinite(grid.scale) && grid.scale > 0.0f);
  EXPECT_GE(grid.zero + std::floor(lo * grid.ratio), 0.0f) << lo << " " << hi << " " << scale << " " << zero;
  EXPECT_LE(grid.zero + std::ceil(hi * grid.ratio), 255.0f) << lo << " " << hi << " " << scale << " " << zero;
  if (grid.kept) {
    EXPECT_EQ(grid.scale, scale);
    EXPECT_EQ(grid.zero, zero);
  }
}

TEST(Int8Grid, NoClampActsOnRandomGroups) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  for (int i = 0; i < 1 << 20; ++i) {
    const float scale = std::pow(10.0f, -12.0f + 20.0f * uniform(random));
    const float zero = std::floor(256.0f * uniform(random));
    const float size = std::pow(10.0f, -3.0f + 9.0f * uniform(random));
    const float lo = i % 5 == 0 ? 0.0f : -size * uniform(random);
    const float hi = i % 7 == 0 ? 0.0f : size * uniform(random);
    expect_no_clamp_acts(lo, hi, scale, zero);
  }
}

TEST(Int8Grid, NoClampActsOnAdversarialGroups) {
  const float huge = 1152921504606846976.0f, infinity = std::numeric_limits<float>::infinity();
  std::vector<float> sizes{0.0f,   1e-38f, 1e-6f,  0.5f,   1.0f, 127.5f, 252.0f,
                           253.0f, 254.0f, 255.0f, 256.0f, 1e6f, huge};
  for (const float size : std::vector<float>(sizes)) {
    sizes.push_back(std::nextafter(size, infinity));
    if (size > 0.0f) sizes.push_back(std::nextafter(size, 0.0f));
  }
  const float smallest = 1e-5f / 253.0f;
  for (const float below : sizes) {
    for (const float above : sizes) {
      for (const float zero : {0.0f, 1.0f, 127.0f, 128.0f, 254.0f, 255.0f}) {
        for (const float scale :
             {1e-30f, smallest, std::nextafter(smallest, 1.0f), 1e-5f / 255.0f, 1e-3f, 1.0f, 1e12f, 1e18f}) {
          expect_no_clamp_acts(-below, above, scale, zero);
        }
      }
    }
  }
}

TEST(Int8Grid, AGroupThatFitsKeepsItsGrid) {
  EXPECT_TRUE(grid_of(-100.0f, 155.0f, 0.01f, 100.0f).kept);
  EXPECT_TRUE(grid_of(-64.0f, 64.0f, 0.01f, 100.0f).kept);
  EXPECT_FALSE(grid_of(-100.5f, 100.0f, 0.01f, 100.0f).kept);                 // outgrew its codes below
  EXPECT_FALSE(grid_of(-50.0f, 155.5f, 0.01f, 100.0f).kept);                  // and above
  EXPECT_FALSE(grid_of(-50.0f, 50.0f, 0.01f, 100.0f).kept);                   // shrank to less than half
  EXPECT_TRUE(grid_of(-50.0f, 50.0f, 1e-5f / 253.0f, 100.0f).kept);           // as fine as it gets
  EXPECT_TRUE(int8_grid({-50.0f, 50.0f, false, false}, 0.01f, 100.0f).kept);  // nothing moves
}

TEST(Int8Outside, ExactWhereTheSumWouldRound) {
  EXPECT_FALSE(int8_outside(255.0f, 0.0f));
  EXPECT_TRUE(int8_outside(255.0f, 1e-30f));
  EXPECT_TRUE(int8_outside(0.0f, -1e-30f));
  EXPECT_FALSE(int8_outside(100.0f, -100.0f));
  EXPECT_FALSE(int8_outside(100.0f, 155.0f));
}

TEST(Int8UpdatePerCode, AScaleOutOfRangeMovesNothing) {
  EXPECT_EQ(int8_update_per_code(3.0f, 2.0f), 1.5f);
  for (const float scale : {0.0f, -1.0f, std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN(), 2e18f}) {
    const float per_code = int8_update_per_code(3.0f, scale);
    EXPECT_TRUE(std::isnan(per_code));
    EXPECT_EQ(int8_delta(10.0f, 1.0f, per_code, 0.0f), 0.0f);
  }
}

TEST(Int8Delta, IsZeroWhereItIsNotANumber) {
  EXPECT_EQ(int8_delta(10.0f, 0.0f, 3.0f, 0.0f), 0.0f);
  EXPECT_EQ(int8_delta(10.0f, 2.0f, 3.0f, 0.5f), 1.0f);
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN(), 1e30f, -1e30f}) {
    EXPECT_EQ(int8_delta(10.0f, bad, 1.0f, 0.0f), 0.0f);
  }
}

TEST(WeightStep, DecayBeforeOrAfter) {
  const double lr = 0.25;
  const int64_t progress[3] = {7, 2, 1};
  WeightStep step{};
  step.lr = &lr;
  step.progress = progress;
  step.alpha = 2.0;
  step.weight_decay = 1.0;
  step.seed = 3;
  step.tensor_id = 4;
  WeightStepScalars scalars = weight_step_scalars(step);
  EXPECT_EQ(scalars.keep, 0.75f);
  EXPECT_EQ(scalars.one_minus_keep, 0.25f);
  EXPECT_EQ(scalars.coefficient, 0.5f);
  EXPECT_TRUE(scalars.applied);
  EXPECT_EQ(scalars.stream.step_and_purpose, 7u);
  step.decay_after = true;
  EXPECT_EQ(weight_step_scalars(step).coefficient, 0.375f);
}

}  // namespace
}  // namespace frugalore
