#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

constexpr AdamHyper kHyper{0.9, 0.999, 1e-8, false};

// What both jobs keep about a tensor, after a few steps.
struct State {
  int64_t count = 0;
  Bytes exp_avg, exp_avg_sq, progress, beta_powers;
};

State state_of(int64_t count, uint64_t seed) {
  State s{count, random_floats(DType::f32, count, 0.1f, seed),
          random_floats(DType::f32, count, 0.1f, seed + 1), zeros<int64_t>(kProgressLength),
          zeros<double>(2)};
  for (int64_t i = 0; i < count; ++i) at<float>(s.exp_avg_sq)[i] *= at<float>(s.exp_avg_sq)[i];
  at<int64_t>(s.progress)[kProgressApplied] = 5;
  at<int64_t>(s.progress)[kProgressSkipped] = 2;
  at<double>(s.beta_powers)[0] = std::pow(0.9, 5.0);
  at<double>(s.beta_powers)[1] = std::pow(0.999, 5.0);
  return s;
}

struct StepTensor : State {
  DType param_dtype = DType::f32, grad_dtype = DType::f32;
  int64_t offset = 0;  // the tensors are views that begin here, so quads may not be aligned
  Bytes param, grad;
};

struct Step {
  std::vector<StepTensor> all;
  AdamHyper hyper = kHyper;
  double lr = 0.01, weight_decay = 0.1;
  bool decay_after = false, stochastic = true;
  std::vector<AdamwTensor> tensors{};

  AdamwStepJob job() {
    tensors.clear();
    for (StepTensor& t : all) {
      tensors.push_back({t.param.data() + t.offset * size_of(t.param_dtype),
                         t.grad.data() + t.offset * size_of(t.grad_dtype), at<float>(t.exp_avg),
                         at<float>(t.exp_avg_sq), at<int64_t>(t.progress), at<double>(t.beta_powers), t.count,
                         static_cast<uint32_t>(tensors.size() + 3), t.param_dtype, t.grad_dtype});
    }
    return {tensors.data(), static_cast<int64_t>(tensors.size()), hyper,
            AdamWrite{&lr, weight_decay, decay_after, stochastic, 99}};
  }

  Bytes bytes() const {
    Bytes together;
    for (const StepTensor& t : all) {
      for (const Bytes* part : {&t.param, &t.exp_avg, &t.exp_avg_sq, &t.progress, &t.beta_powers}) {
        together.insert(together.end(), part->begin(), part->end());
      }
    }
    return together;
  }
};

void add(Step& step, int64_t count, DType param, DType grad, int64_t offset = 0) {
  const uint64_t seed = 10 * step.all.size();
  StepTensor t;
  static_cast<State&>(t) = state_of(count, seed);
  t.param_dtype = param;
  t.grad_dtype = grad;
  t.offset = offset;
  t.param = random_floats(param, count + offset, 1.0f, seed + 2);
  t.grad = random_floats(grad, count + offset, 0.1f, seed + 3);
  step.all.push_back(std::move(t));
}

TEST(Adamw, StepOfEveryDtype) {
  Step step;
  for (const DType param : kFloats) {
    for (const DType grad : kFloats) {
      for (const int64_t count : {1, 3, 1030}) add(step, count, param, grad);
    }
  }
  for (const bool stochastic : {false, true}) {
    for (const bool decay_after : {false, true}) {
      step.stochastic = stochastic;
      step.decay_after = decay_after;
      step.hyper.eps_raw = decay_after;
      expect_same_bytes(step);
    }
  }
}

TEST(Adamw, StepOverChunksAndBatches) {
  Step step;
  add(step, 4096, DType::bf16, DType::f32);
  add(step, 0, DType::bf16, DType::f32);
  add(step, 4097, DType::bf16, DType::f32);
  for (int i = 0; i < 70; ++i) add(step, 1 + i % 6, kFloats[i % 3], kFloats[i % 3]);
  expect_same_bytes(step);
}

TEST(Adamw, StepOfViews) {
  Step step;
  for (const DType dtype : kFloats) {
    for (const int64_t offset : {1, 2, 3}) add(step, 1027, dtype, dtype, offset);
  }
  expect_same_bytes(step);
}

TEST(Adamw, StepOfNothing) {
  expect_same_bytes(Step{});
}

TEST(Adamw, StepSkipsNonFiniteElements) {
  Step step;
  for (const DType dtype : kFloats) {
    add(step, 600, dtype, dtype);
    StepTensor& t = step.all.back();
    for (int i = 0; i < 3; ++i) store(t.grad, dtype, 7 + 100 * i, kNonFinite[i]);
    for (int i = 0; i < 3; ++i) store(t.param, dtype, 350 + i, kNonFinite[i]);
    if (dtype != DType::f16) store(t.grad, dtype, 599, 1e30f);
  }
  expect_same_bytes(step);
}

struct Direction : State {
  DType dtype = DType::f32;
  Bytes r;
  AdamHyper hyper = kHyper;

  AdamwDirectionJob job() {
    return {r.data(),
            dtype,
            count,
            at<float>(exp_avg),
            at<float>(exp_avg_sq),
            at<int64_t>(progress),
            at<double>(beta_powers),
            hyper};
  }
  auto bytes() const { return std::tie(r, exp_avg, exp_avg_sq, progress, beta_powers); }
};

Direction direction_case(int64_t count, DType dtype) {
  Direction d;
  static_cast<State&>(d) = state_of(count, 1);
  d.dtype = dtype;
  d.r = random_floats(dtype, count, 0.1f, 2);
  return d;
}

TEST(Adamw, Direction) {
  for (const int64_t count : {1, 2, 7, 1024, 4099, 9001}) {
    for (const DType dtype : kFloats) {
      Direction d = direction_case(count, dtype);
      d.hyper.eps_raw = count % 2 == 0;
      expect_same_bytes(d);
    }
  }
}

TEST(Adamw, DirectionRefusesANonFiniteCall) {
  for (const DType dtype : kFloats) {
    for (const float bad : kNonFinite) {
      Direction d = direction_case(5000, dtype);
      store(d.r, dtype, 4999, bad);
      expect_same_bytes(d);
    }
  }
}

}  // namespace
}  // namespace frugalore::test
