#include "core/split.h"

#include <gtest/gtest.h>

#include <limits>

namespace frugalore {
namespace {

constexpr double kLr = 0.5;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

SplitHyper hyper_of(OutsideRule outside) {
  SplitHyper hyper{};
  hyper.rule = SplitRule::adamw;
  hyper.outside = outside;
  hyper.inside_scale = 2.0;
  hyper.outside_scale = 0.25;
  return hyper;
}

TEST(Split, ScalesMultiplyTheLearningRateButNotTheDecay) {
  for (const bool decay_after : {false, true}) {
    const AdamWrite write{&kLr, 0.5, decay_after, false, 0};
    const SplitWriteScalars scalars = split_write_scalars(hyper_of(OutsideRule::sign), write);
    const float factor = decay_after ? 0.75f : 1.0f;
    EXPECT_EQ(scalars.inside.keep, 0.75f);
    EXPECT_EQ(scalars.inside.coefficient, factor);
    EXPECT_EQ(scalars.outside.keep, 0.75f);
    EXPECT_EQ(scalars.outside.coefficient, 0.125f * factor);
  }
}

TEST(Split, OutsideRestsWithoutARuleAndDecay) {
  const Selection nothing{}, half{SelectionKind::columns, nullptr, nullptr, 3, 0, {}};
  for (const OutsideRule outside : {OutsideRule::sign, OutsideRule::sgd, OutsideRule::none}) {
    for (const double weight_decay : {0.0, 0.1}) {
      const AdamWrite write{&kLr, weight_decay, false, false, 0};
      const bool rests = outside == OutsideRule::none && weight_decay == 0.0;
      const SplitHyper hyper = hyper_of(outside);
      EXPECT_EQ(split_write_scalars(hyper, write).outside_rests, rests);
      EXPECT_EQ(split_count(hyper, write, nothing, 4, 6), rests ? 0 : 24);
      EXPECT_EQ(split_count(hyper, write, half, 4, 6), 24);
    }
  }
}

template <OutsideRule outside>
void expect_outside(float g, float w, float expected, int32_t skipped) {
  const OutsideElement got = outside_element<outside>({0.5f, 0.25f}, w, g);
  EXPECT_EQ(got.w, expected);
  EXPECT_EQ(got.skipped, skipped);
}

TEST(Split, ElementsOutside) {
  expect_outside<OutsideRule::sign>(3.0f, 2.0f, 0.75f, 0);
  expect_outside<OutsideRule::sign>(-0.1f, 2.0f, 1.25f, 0);
  expect_outside<OutsideRule::sign>(0.0f, 2.0f, 1.0f, 0);
  expect_outside<OutsideRule::sgd>(3.0f, 2.0f, 0.25f, 0);
  expect_outside<OutsideRule::none>(3.0f, 2.0f, 1.0f, 0);
  for (const float bad : {kNan, kInfinity, -kInfinity}) {
    expect_outside<OutsideRule::sign>(bad, 2.0f, 2.0f, 1);
    expect_outside<OutsideRule::sgd>(bad, 2.0f, 2.0f, 1);
    expect_outside<OutsideRule::none>(bad, 2.0f, 1.0f, 0);
  }
  expect_outside<OutsideRule::sign>(1.0f, kInfinity, kInfinity, 1);
  expect_outside<OutsideRule::none>(1.0f, -kInfinity, -kInfinity, 1);
}

TEST(Split, AFreshTensorBeginsAnew) {
  int64_t progress[kProgressLength] = {5, 0, 1};
  double powers[2] = {0.1, 0.2};
  SplitTensor tensor{};
  tensor.progress = progress;
  tensor.beta_powers = powers;
  tensor.fresh = true;
  SplitHyper hyper = hyper_of(OutsideRule::sign);
  hyper.adam = AdamHyper{0.75, 0.5, 0.0, false};
  advance_split(hyper, tensor);
  EXPECT_EQ(powers[0], 0.75);
  EXPECT_EQ(powers[1], 0.5);
  EXPECT_EQ(progress[kProgressApplied], 6);
  hyper.rule = SplitRule::sgdm;
  hyper.momentum = MomentumHyper{MomentumRule::sgdm, 0.5, 0.25, false};
  advance_split(hyper, tensor);
  EXPECT_EQ(progress[kProgressApplied], 7);
  EXPECT_EQ(split_scalars<SplitRule::sgdm>(hyper, tensor).rest, 1.0f);
  tensor.fresh = false;
  EXPECT_EQ(split_scalars<SplitRule::sgdm>(hyper, tensor).rest, 0.75f);
}

}  // namespace
}  // namespace frugalore
