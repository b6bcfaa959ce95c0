#include "core/momentum.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>

namespace frugalore {
namespace {

constexpr double kLr = 0.05, kDecay = 0.2;

TEST(Momentum, SgdmFollowsTheTextbook) {
  for (const bool nesterov : {false, true}) {
    const double momentum = 0.9, dampening = nesterov ? 0.0 : 0.25;
    const MomentumHyper hyper{MomentumRule::sgdm, momentum, dampening, nesterov};
    const AdamWriteScalars write = adam_write_scalars({&kLr, kDecay, false, false, 0});
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, 0.1f);
    int64_t progress[kProgressLength] = {};
    double expected_w = 1.0, expected_m = 0.0;
    float w = 1.0f, m = 0.0f;
    for (int t = 1; t <= 50; ++t) {
      const float g = normal(random);
      expected_m = t == 1 ? g : momentum * expected_m + (1 - dampening) * g;
      expected_w =
          (1 - kLr * kDecay) * expected_w - kLr * (nesterov ? g + momentum * expected_m : expected_m);
      advance_progress(progress, true);
      const MomentumElement got =
          momentum_element<MomentumRule::sgdm>(momentum_scalars(hyper, progress), write, w, g, m);
      EXPECT_EQ(got.skipped, 0);
      w = got.w, m = got.m;
      EXPECT_NEAR(w, expected_w, 1e-5);
      EXPECT_NEAR(m, expected_m, 1e-5);
    }
  }
}

TEST(Momentum, LionFollowsTheTextbook) {
  const int64_t progress[kProgressLength] = {3, 0, 1};
  const MomentumScalars scalars = momentum_scalars({MomentumRule::lion, 0.75, 0.5, false}, progress);
  const AdamWriteScalars write = adam_write_scalars({&kLr, 0.0, false, false, 0});
  const float cases[][3] = {
      {1.0f, 1.0f, 1.0f}, {1.0f, -2.0f, 1.0f}, {1.0f, -4.0f, -1.0f}, {1.0f, -3.0f, 0.0f}};
  for (const auto& [m, g, sign] : cases) {
    const MomentumElement got = momentum_element<MomentumRule::lion>(scalars, write, 2.0f, g, m);
    EXPECT_EQ(got.m, 0.5f * m + 0.5f * g);
    EXPECT_NEAR(got.w, 2.0 - kLr * sign, 1e-6);
  }
}

TEST(Momentum, AnElementThatIsNotFiniteStays) {
  const int64_t progress[kProgressLength] = {1, 0, 1};
  const AdamWriteScalars write = adam_write_scalars({&kLr, kDecay, false, false, 0});
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float g : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
    const MomentumScalars lion = momentum_scalars({MomentumRule::lion, 0.9, 0.99, false}, progress);
    const MomentumScalars sgdm = momentum_scalars({MomentumRule::sgdm, 0.9, 0.0, false}, progress);
    for (const MomentumElement got : {momentum_element<MomentumRule::lion>(lion, write, 1.0f, g, 0.5f),
                                      momentum_element<MomentumRule::sgdm>(sgdm, write, 1.0f, g, 0.5f)}) {
      EXPECT_EQ(got.skipped, 1) << g;
      EXPECT_EQ(got.w, 1.0f);
      EXPECT_EQ(got.m, 0.5f);
    }
  }
}

}  // namespace
}  // namespace frugalore
