#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

constexpr MomentumHyper kRules[] = {{MomentumRule::sgdm, 0.9, 0.1, false},
                                    {MomentumRule::sgdm, 0.9, 0.0, true},
                                    {MomentumRule::lion, 0.9, 0.99, false}};

Bytes progress_after(int64_t updates) {
  Bytes progress = zeros<int64_t>(kProgressLength);
  at<int64_t>(progress)[kProgressApplied] = updates;
  at<int64_t>(progress)[kProgressSkipped] = 2;
  return progress;
}

struct StepTensor {
  int64_t count;
  DType param_dtype, grad_dtype;
  int64_t offset;  // the tensors are views that begin here, so quads may not be aligned
  Bytes param, grad, momentum, progress;
};

struct Step {
  std::vector<StepTensor> all;
  MomentumHyper hyper = kRules[0];
  double lr = 0.01, weight_decay = 0.1;
  bool decay_after = false, stochastic = true;
  std::vector<MomentumTensor> tensors{};

  MomentumStepJob job() {
    tensors.clear();
    for (StepTensor& t : all) {
      tensors.push_back({t.param.data() + t.offset * size_of(t.param_dtype),
                         t.grad.data() + t.offset * size_of(t.grad_dtype), at<float>(t.momentum),
                         at<int64_t>(t.progress), t.count, static_cast<uint32_t>(tensors.size() + 3),
                         t.param_dtype, t.grad_dtype});
    }
    return {tensors.data(), static_cast<int64_t>(tensors.size()), hyper,
            AdamWrite{&lr, weight_decay, decay_after, stochastic, 99}};
  }

  Bytes bytes() const {
    Bytes together;
    for (const StepTensor& t : all) {
      for (const Bytes* part : {&t.param, &t.momentum, &t.progress}) {
        together.insert(together.end(), part->begin(), part->end());
      }
    }
    return together;
  }
};

void add(Step& step, int64_t count, DType param, DType grad, int64_t offset = 0) {
  const uint64_t seed = 10 * step.all.size();
  step.all.push_back(StepTensor{count, param, grad, offset, random_floats(param, count + offset, 1.0f, seed),
                                random_floats(grad, count + offset, 0.1f, seed + 1),
                                random_floats(DType::f32, count, 0.1f, seed + 2),
                                progress_after(static_cast<int64_t>(step.all.size() % 2))});
}

void expect_same_bytes_for_every_rule(Step step) {
  for (const MomentumHyper& rule : kRules) {
    step.hyper = rule;
    expect_same_bytes(step);
  }
}

TEST(Momentum, StepOfEveryDtype) {
  Step step;
  for (const DType param : kFloats) {
    for (const DType grad : kFloats) {
      for (const int64_t count : {1, 3, 1030}) add(step, count, param, grad);
    }
  }
  for (const bool stochastic : {false, true}) {
    step.stochastic = stochastic;
    step.decay_after = stochastic;
    expect_same_bytes_for_every_rule(step);
  }
}

TEST(Momentum, StepOverChunksBatchesAndViews) {
  Step step;
  add(step, 4097, DType::bf16, DType::f32);
  add(step, 0, DType::bf16, DType::f32);
  for (int i = 0; i < 40; ++i) add(step, 1 + i % 6, kFloats[i % 3], kFloats[i % 3], i % 4);
  expect_same_bytes_for_every_rule(step);
}

TEST(Momentum, StepOfNothing) {
  expect_same_bytes(Step{});
}

TEST(Momentum, StepSkipsNonFiniteElements) {
  Step step;
  for (const DType dtype : kFloats) {
    add(step, 600, dtype, dtype);
    StepTensor& t = step.all.back();
    for (int i = 0; i < 3; ++i) store(t.grad, dtype, 7 + 100 * i, kNonFinite[i]);
    for (int i = 0; i < 3; ++i) store(t.param, dtype, 350 + i, kNonFinite[i]);
  }
  expect_same_bytes_for_every_rule(step);
}

struct Direction {
  int64_t count;
  DType dtype;
  MomentumHyper hyper;
  Bytes r, momentum, progress;

  MomentumDirectionJob job() {
    return {r.data(), dtype, count, at<float>(momentum), at<int64_t>(progress), hyper};
  }
  auto bytes() const { return std::tie(r, momentum, progress); }
};

Direction direction_case(int64_t count, DType dtype, const MomentumHyper& hyper) {
  return {count,
          dtype,
          hyper,
          random_floats(dtype, count, 0.1f, 2),
          random_floats(DType::f32, count, 0.1f, 3),
          progress_after(count % 2)};
}

TEST(Momentum, Direction) {
  for (const MomentumHyper& rule : kRules) {
    for (const int64_t count : {1, 7, 1024, 9001}) {
      for (const DType dtype : kFloats) expect_same_bytes(direction_case(count, dtype, rule));
    }
  }
}

TEST(Momentum, DirectionRefusesANonFiniteCall) {
  for (const MomentumHyper& rule : kRules) {
    for (const float bad : kNonFinite) {
      Direction d = direction_case(5000, DType::f32, rule);
      store(d.r, DType::f32, 4999, bad);
      expect_same_bytes(d);
    }
  }
}

}  // namespace
}  // namespace frugalore::test
