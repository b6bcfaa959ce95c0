#include "core/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace frugalore {
namespace {

constexpr double kBeta1 = 0.9, kBeta2 = 0.99, kEps = 1e-3, kLr = 0.05, kDecay = 0.2;

// AdamW as its papers write it, in double precision and with powers instead of running products.
struct Textbook {
  double w, m = 0.0, v = 0.0;
  void step(double g, int t, bool eps_raw, bool decay_after) {
    m = kBeta1 * m + (1 - kBeta1) * g;
    v = kBeta2 * v + (1 - kBeta2) * g * g;
    const double correction1 = 1 - std::pow(kBeta1, t), correction2 = 1 - std::pow(kBeta2, t);
    const double direction = eps_raw ? std::sqrt(correction2) / correction1 * m / (std::sqrt(v) + kEps)
                                     : m / correction1 / (std::sqrt(v / correction2) + kEps);
    const double keep = 1 - kLr * kDecay;
    w = decay_after ? keep * (w - kLr * direction) : keep * w - kLr * direction;
  }
};

TEST(Adamw, FollowsTheTextbook) {
  for (const bool eps_raw : {false, true}) {
    for (const bool decay_after : {false, true}) {
      std::mt19937 random(1);
      std::normal_distribution<float> normal(0.0f, 0.01f);
      const AdamHyper hyper{kBeta1, kBeta2, kEps, eps_raw};
      const AdamWrite write{&kLr, kDecay, decay_after, false, 0};
      int64_t progress[kProgressLength] = {};
      double beta_powers[2] = {1.0, 1.0};
      Textbook expected{1.0};
      float w = 1.0f, m = 0.0f, v = 0.0f;
      for (int t = 1; t <= 50; ++t) {
        const float g = normal(random);
        expected.step(g, t, eps_raw, decay_after);
        advance_progress(progress, beta_powers, kBeta1, kBeta2, true);
        const AdamElement got =
            adam_element(adam_scalars(hyper, beta_powers), adam_write_scalars(write), w, g, m, v);
        EXPECT_EQ(got.skipped, 0);
        w = got.w, m = got.m, v = got.v;
        EXPECT_NEAR(w, expected.w, 1e-5);
        EXPECT_NEAR(m, expected.m, 1e-7);
        EXPECT_NEAR(v, expected.v, 1e-9);
      }
    }
  }
}

TEST(Adamw, AnElementThatIsNotFiniteStays) {
  const double beta_powers[2] = {kBeta1, kBeta2};
  const AdamScalars scalars = adam_scalars({kBeta1, kBeta2, kEps, false}, beta_powers);
  const AdamWriteScalars write = adam_write_scalars({&kLr, kDecay, false, false, 0});
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float g : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN(), 1e30f}) {
    const AdamElement got = adam_element(scalars, write, 1.0f, g, 0.5f, 0.25f);
    EXPECT_EQ(got.skipped, 1) << g;
    EXPECT_EQ(got.w, 1.0f);
    EXPECT_EQ(got.m, 0.5f);
    EXPECT_EQ(got.v, 0.25f);
  }
}

TEST(Adamw, WhatADirectionAccepts) {
  EXPECT_TRUE(adam_direction_accepts(0.0f));
  EXPECT_TRUE(adam_direction_accepts(-std::ldexp(1.0f, 63)));
  EXPECT_FALSE(adam_direction_accepts(std::nextafter(std::ldexp(1.0f, 63), 1e30f)));
  EXPECT_FALSE(adam_direction_accepts(-std::numeric_limits<float>::infinity()));
  EXPECT_FALSE(adam_direction_accepts(std::numeric_limits<float>::quiet_NaN()));
}

TEST(Progress, SkippedCallsDoNotAdvanceTheBiasCorrections) {
  int64_t progress[kProgressLength] = {};
  double beta_powers[2] = {1.0, 1.0};
  for (const bool applied : {true, false, true, false, false}) {
    advance_progress(progress, beta_powers, 0.5, 0.25, applied);
    EXPECT_EQ(progress[kProgressAppliedNow], applied ? 1 : 0);
  }
  EXPECT_EQ(progress[kProgressApplied], 2);
  EXPECT_EQ(progress[kProgressSkipped], 3);
  EXPECT_EQ(beta_powers[0], 0.25);
  EXPECT_EQ(beta_powers[1], 0.0625);
}

}  // namespace
}  // namespace frugalore
