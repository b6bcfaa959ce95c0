#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

constexpr AdamHyper kHyper{0.9, 0.999, 1e-8, false};

// What both jobs keep about a tensor, after a few steps: any codes will do.
struct State {
  int64_t count = 0;
  Bytes exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax, progress, beta_powers;
};

Bytes absmaxs(int64_t count, uint64_t seed) {
  Bytes values = random_floats(DType::f32, ceil_div(count, kAdam8bitBlock), 0.1f, seed);
  for (int64_t i = 0; i < ceil_div(count, kAdam8bitBlock); ++i) {
    at<float>(values)[i] = std::abs(at<float>(values)[i]);
  }
  return values;
}

State state_of(int64_t count, uint64_t seed) {
  State s{count,
          random_bytes(count, 256, seed),
          absmaxs(count, seed + 1),
          random_bytes(count, 256, seed + 2),
          absmaxs(count, seed + 3),
          zeros<int64_t>(kProgressLength),
          zeros<double>(2)};
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
  std::vector<Adamw8bitTensor> tensors{};

  Adamw8bitStepJob job() {
    tensors.clear();
    for (StepTensor& t : all) {
      tensors.push_back({t.param.data() + t.offset * size_of(t.param_dtype),
                         t.grad.data() + t.offset * size_of(t.grad_dtype), t.exp_avg.data(),
                         at<float>(t.exp_avg_absmax), t.exp_avg_sq.data(), at<float>(t.exp_avg_sq_absmax),
                         at<int64_t>(t.progress), at<double>(t.beta_powers), t.count,
                         static_cast<uint32_t>(tensors.size() + 3), t.param_dtype, t.grad_dtype});
    }
    return {tensors.data(), static_cast<int64_t>(tensors.size()), hyper,
            AdamWrite{&lr, weight_decay, decay_after, stochastic, 99}};
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

void add(Step& step, int64_t count, DType param, DType grad, int64_t offset = 0) {
  const uint64_t seed = 10 * step.all.size();
  StepTensor t;
  static_cast<State&>(t) = state_of(count, seed);
  t.param_dtype = param;
  t.grad_dtype = grad;
  t.offset = offset;
  t.param = random_floats(param, count + offset, 1.0f, seed + 4);
  t.grad = random_floats(grad, count + offset, 0.1f, seed + 5);
  step.all.push_back(std::move(t));
}

TEST(Adamw8bit, StepOfEveryDtype) {
  Step step;
  for (const DType param : kFloats) {
    for (const DType grad : kFloats) {
      for (const int64_t count : {1, 255, 258, 1030}) add(step, count, param, grad);
    }
  }
  for (const bool stochastic : {false, true}) {
    step.stochastic = stochastic;
    step.decay_after = stochastic;
    step.hyper.eps_raw = stochastic;
    expect_same_bytes(step);
  }
}

TEST(Adamw8bit, StepOverChunksAndBatches) {
  Step step;
  add(step, 4096, DType::bf16, DType::f32);
  add(step, 0, DType::bf16, DType::f32);
  add(step, 4097, DType::bf16, DType::f32);
  for (int i = 0; i < 40; ++i) add(step, 1 + i % 6, kFloats[i % 3], kFloats[i % 3]);
  expect_same_bytes(step);
}

TEST(Adamw8bit, StepOfViews) {
  Step step;
  for (const DType dtype : kFloats) {
    for (const int64_t offset : {1, 2, 3}) add(step, 517, dtype, dtype, offset);
  }
  expect_same_bytes(step);
}

TEST(Adamw8bit, StepOfZerosAndOddValues) {
  Step step;
  for (const DType dtype : kFloats) {
    add(step, 1100, dtype, dtype);
    StepTensor& t = step.all.back();
    for (int64_t i = 0; i < kAdam8bitBlock; ++i) store(t.grad, dtype, i, 0.0f);
    at<float>(t.exp_avg_absmax)[0] = at<float>(t.exp_avg_sq_absmax)[0] = 0.0f;  // a block of zeros stays one
    at<float>(t.exp_avg_absmax)[1] = 1e-38f;                                    // below the normal numbers
    for (int i = 0; i < 3; ++i) store(t.grad, dtype, 600 + i, kNonFinite[i]);
    for (int i = 0; i < 3; ++i) store(t.param, dtype, 700 + i, kNonFinite[i]);
    if (dtype != DType::f16) store(t.grad, dtype, 1099, 1e30f);
  }
  expect_same_bytes(step);
}

struct Direction : State {
  DType dtype = DType::f32;
  Bytes r;
  AdamHyper hyper = kHyper;

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
            hyper};
  }
  auto bytes() const {
    return std::tie(r, exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax, progress, beta_powers);
  }
};

Direction direction_case(int64_t count, DType dtype) {
  Direction d;
  static_cast<State&>(d) = state_of(count, 1);
  d.dtype = dtype;
  d.r = random_floats(dtype, count, 0.1f, 2);
  return d;
}

TEST(Adamw8bit, Direction) {
  for (const int64_t count : {1, 7, 256, 1027, 8200}) {
    for (const DType dtype : kFloats) {
      Direction d = direction_case(count, dtype);
      d.hyper.eps_raw = count % 2 == 0;
      expect_same_bytes(d);
    }
  }
}

TEST(Adamw8bit, DirectionRefusesANonFiniteCall) {
  for (const DType dtype : kFloats) {
    Direction d = direction_case(1100, dtype);
    store(d.r, dtype, 1099, kNonFinite[2]);
    expect_same_bytes(d);
  }
}

}  // namespace
}  // namespace frugalore::test
