#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

// Moments after a few steps: any codes, an absmax per block (0 for the second).
struct State {
  int64_t count = 0;
  Bytes exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax, progress, beta_powers;
};

State state_of(int64_t count, uint64_t seed) {
  const int64_t blocks = ceil_div(count, kAdam8bitBlock);
  State s{count,
          random_bytes(count, 256, seed),
          zeros<float>(blocks),
          random_bytes(count, 256, seed + 1),
          zeros<float>(blocks),
          zeros<int64_t>(kProgressLength),
          zeros<double>(2)};
  for (int64_t b = 0; b < blocks; ++b) {
    at<float>(s.exp_avg_absmax)[b] = b == 1 ? 0.0f : 0.1f;
    at<float>(s.exp_avg_sq_absmax)[b] = b == 1 ? 0.0f : 0.01f;
  }
  at<int64_t>(s.progress)[kProgressApplied] = 5;
  at<double>(s.beta_powers)[0] = 0.6;
  at<double>(s.beta_powers)[1] = 0.99;
  return s;
}

struct StepTensor : State {
  DType param_dtype = DType::f32, grad_dtype = DType::f32;
  Bytes param, grad;
};

struct Step {
  std::vector<StepTensor> all;
  double lr = 0.01;
  bool stochastic = true;
  std::vector<Adamw8bitTensor> tensors{};

  Adamw8bitStepJob job() {
    tensors.clear();
    for (StepTensor& t : all) {
      tensors.push_back({t.param.data(), t.grad.data(), t.exp_avg.data(), at<float>(t.exp_avg_absmax),
                         t.exp_avg_sq.data(), at<float>(t.exp_avg_sq_absmax), at<int64_t>(t.progress),
                         at<double>(t.beta_powers), t.count, static_cast<uint32_t>(tensors.size() + 3),
                         t.param_dtype, t.grad_dtype});
    }
    return {tensors.data(), static_cast<int64_t>(tensors.size()), AdamHyper{0.9, 0.999, 1e-8, false},
            AdamWrite{&lr, 0.1, true, stochastic, 99}};
  }

  Bytes bytes() const {
    Bytes together;
    for (const StepTensor& t : all) {
      for (const Bytes* part : {&t.param, &t.exp_avg, &t.exp_avg_absmax, &t.exp_avg_sq, &t.exp_avg_sq_absmax,
                                &t.progress, &t.beta_powers}) {
        together.insert(together.end(), part->begin(), part->end());
      }
    }
    return together;
  }
};

void add(Step& step, int64_t count, DType param, DType grad) {
  const uint64_t seed = 10 * step.all.size();
  StepTensor t;
  static_cast<State&>(t) = state_of(count, seed);
  t.param_dtype = param;
  t.grad_dtype = grad;
  t.param = random_floats(param, count, 1.0f, seed + 2);
  t.grad = random_floats(grad, count, 0.1f, seed + 3);
  step.all.push_back(std::move(t));
}

TEST(Adamw8bit, StepOfEveryDtype) {
  Step step;
  for (const DType param : kFloats) {
    for (const DType grad : kFloats) {
      for (const int64_t count : {1, 257, 1030}) add(step, count, param, grad);
    }
  }
  for (const bool stochastic : {false, true}) {
    step.stochastic = stochastic;
    expect_same_bytes(step);
  }
}

TEST(Adamw8bit, StepOverChunksAndBatches) {
  Step step;
  add(step, 4097, DType::bf16, DType::f32);
  add(step, 0, DType::bf16, DType::f32);
  for (int i = 0; i < 40; ++i) add(step, 1 + i % 6, kFloats[i % 3], kFloats[i % 3]);
  expect_same_bytes(step);
}

TEST(Adamw8bit, StepSkipsNonFiniteElements) {
  Step step;
  for (const DType dtype : kFloats) {
    add(step, 600, dtype, dtype);
    for (int i = 0; i < 3; ++i) store(step.all.back().grad, dtype, 7 + 100 * i, kNonFinite[i]);
  }
  expect_same_bytes(step);
}

struct Direction : State {
  DType dtype = DType::f32;
  Bytes r;

  Adamw8bitDirectionJob job() {
    return {r.data(),
            dtype,
            count,
            exp_avg.data(),
            at<float>(exp_avg_absmax),
            exp_avg_sq.data(),
            at<float>(exp_avg_sq_absmax),
            at<int64_t>(progress),
            at<double>(beta_powers),
            AdamHyper{0.9, 0.999, 1e-8, true}};
  }
  auto bytes() const {
    return std::tie(r, exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax, progress, beta_powers);
  }
};

TEST(Adamw8bit, Direction) {
  for (const int64_t count : {1, 255, 300, 4099, 9001}) {
    for (const DType dtype : kFloats) {
      for (const bool refused : {false, true}) {
        Direction d;
        static_cast<State&>(d) = state_of(count, 1);
        d.dtype = dtype;
        d.r = random_floats(dtype, count, 0.1f, 2);
        if (refused) store(d.r, dtype, count - 1, kNonFinite[0]);
        expect_same_bytes(d);
      }
    }
  }
}

}  // namespace
}  // namespace frugalore::test
