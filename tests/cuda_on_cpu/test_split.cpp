#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

constexpr SplitRule kRules[] = {SplitRule::adamw, SplitRule::sgdm, SplitRule::lion};
constexpr OutsideRule kOutside[] = {OutsideRule::sign, OutsideRule::sgd, OutsideRule::none};
constexpr SelectionKind kKinds[] = {SelectionKind::none, SelectionKind::all, SelectionKind::columns,
                                    SelectionKind::rows, SelectionKind::randk};

SplitHyper hyper_of(SplitRule rule, OutsideRule outside) {
  const bool is_lion = rule == SplitRule::lion;
  return SplitHyper{rule,
                    outside,
                    AdamHyper{0.9, 0.99, 1e-6, false},
                    MomentumHyper{is_lion ? MomentumRule::lion : MomentumRule::sgdm, 0.9, 0.1, false},
                    0.5,
                    0.25};
}

// Lines of which about a third are chosen, as int32 `below` and `chosen`.
struct Lines {
  std::vector<int32_t> below{0}, chosen{};
};

Lines random_lines(int64_t length, uint64_t seed) {
  std::mt19937_64 random(seed);
  Lines lines;
  for (int64_t i = 0; i < length; ++i) {
    if (random() % 3 == 0) lines.chosen.push_back(static_cast<int32_t>(i));
    lines.below.push_back(static_cast<int32_t>(lines.chosen.size()));
  }
  return lines;
}

struct SplitCase {
  int64_t rows, columns;
  SelectionKind kind;
  DType param_dtype, grad_dtype;
  bool fresh;
  int64_t offset;  // the tensors are views that begin here, so quads may not be aligned
  Lines lines;
  Bytes param, grad, first, second, progress, beta_powers;

  Selection selection() const {
    Selection selection{};
    selection.kind = kind;
    selection.below = lines.below.data();
    selection.chosen = lines.chosen.data();
    selection.count = static_cast<int64_t>(lines.chosen.size());
    selection.fraction = (1ull << 32) / 3;
    selection.stream = random_stream(77, static_cast<uint32_t>(columns), 5, Purpose::selection);
    return selection;
  }
};

struct Step {
  std::vector<SplitCase> all{};
  SplitHyper hyper = hyper_of(SplitRule::adamw, OutsideRule::sign);
  double lr = 0.01, weight_decay = 0.1;
  bool decay_after = false, stochastic = true;
  std::vector<SplitTensor> tensors{};

  SplitStepJob job() {
    const AdamWrite write{&lr, weight_decay, decay_after, stochastic, 99};
    tensors.clear();
    for (SplitCase& c : all) {
      SplitTensor t{};
      t.param = c.param.data() + c.offset * size_of(c.param_dtype);
      t.grad = c.grad.data() + c.offset * size_of(c.grad_dtype);
      t.first = at<float>(c.first);
      t.second = at<float>(c.second);
      t.progress = at<int64_t>(c.progress);
      t.beta_powers = at<double>(c.beta_powers);
      t.rows = c.rows;
      t.columns = c.columns;
      t.selection = c.selection();
      t.count = split_count(hyper, write, t.selection, t.rows, t.columns);
      t.tensor_id = static_cast<uint32_t>(tensors.size() + 3);
      t.param_dtype = c.param_dtype;
      t.grad_dtype = c.grad_dtype;
      t.fresh = c.fresh;
      tensors.push_back(t);
    }
    return {tensors.data(), static_cast<int64_t>(tensors.size()), hyper, write};
  }

  Bytes bytes() const {
    Bytes together;
    for (const SplitCase& c : all) {
      for (const Bytes* part : {&c.param, &c.first, &c.second, &c.progress, &c.beta_powers}) {
        together.insert(together.end(), part->begin(), part->end());
      }
    }
    return together;
  }
};

void add(Step& step, SelectionKind kind, int64_t rows, int64_t columns, DType param, DType grad,
         bool fresh = false, int64_t offset = 0) {
  const uint64_t seed = 10 * step.all.size();
  const int64_t count = rows * columns;
  SplitCase c{rows, columns, kind, param, grad, fresh, offset, {}, {}, {}, {}, {}, {}, {}};
  if (kind == SelectionKind::columns) c.lines = random_lines(columns, seed);
  if (kind == SelectionKind::rows) c.lines = random_lines(rows, seed);
  c.param = random_floats(param, count + offset, 1.0f, seed + 1);
  c.grad = random_floats(grad, count + offset, 0.1f, seed + 2);
  const int64_t inside = selected_count(c.selection(), rows, columns);
  c.first = random_floats(DType::f32, inside, 0.1f, seed + 3);
  c.second = random_floats(DType::f32, inside, 0.1f, seed + 4);
  for (int64_t i = 0; i < inside; ++i) at<float>(c.second)[i] *= at<float>(c.second)[i];
  c.progress = zeros<int64_t>(kProgressLength);
  at<int64_t>(c.progress)[kProgressApplied] = static_cast<int64_t>(seed % 20);
  c.beta_powers = zeros<double>(2);
  at<double>(c.beta_powers)[0] = 0.9;
  at<double>(c.beta_powers)[1] = 0.99;
  step.all.push_back(c);
}

void expect_same_bytes_for_all_rules(Step step) {
  for (const SplitRule rule : kRules) {
    for (const OutsideRule outside : kOutside) {
      SCOPED_TRACE(10 * static_cast<int>(rule) + static_cast<int>(outside));
      step.hyper = hyper_of(rule, outside);
      expect_same_bytes(step);
    }
  }
}

TEST(Split, EveryKindAndDtype) {
  Step step;
  for (const SelectionKind kind : kKinds) {
    for (const DType param : kFloats) {
      for (const DType grad : {DType::f32, DType::bf16}) {
        add(step, kind, 7, 61, param, grad);
        add(step, kind, 2, 513, param, grad);
      }
    }
  }
  for (const bool other : {false, true}) {
    step.stochastic = !other;
    step.decay_after = other;
    step.weight_decay = other ? 0.0 : 0.1;
    expect_same_bytes_for_all_rules(step);
  }
}

TEST(Split, NarrowAndLongRows) {
  Step step;
  for (const SelectionKind kind : kKinds) {
    for (const int64_t columns : {1, 2, 3, 5, 257})
      add(step, kind, 1 + 600 / columns, columns, DType::bf16, DType::f32);
    add(step, kind, 2, 4099, DType::f32, DType::f32);  // rows longer than a chunk, quads across rows
    add(step, kind, 3, 4095, DType::bf16, DType::f16);
    add(step, kind, 1, 9000, DType::f16, DType::f32);
  }
  expect_same_bytes_for_all_rules(step);
}

TEST(Split, BatchesAndViews) {
  Step step;
  for (int i = 0; i < 70; ++i) {
    add(step, kKinds[i % 5], 1 + i % 4, 1 + 7 * (i % 9), kFloats[i % 3], kFloats[i % 2], i % 4 == 0, i % 4);
  }
  add(step, SelectionKind::columns, 0, 5, DType::f32, DType::f32);
  add(step, SelectionKind::randk, 5, 0, DType::f32, DType::f32);
  expect_same_bytes_for_all_rules(step);
}

TEST(Split, Nothing) {
  expect_same_bytes(Step{});
}

TEST(Split, FreshStateIsNotRead) {
  Step step;
  for (const SelectionKind kind : kKinds) {
    add(step, kind, 5, 300, DType::bf16, DType::bf16, true);
    SplitCase& c = step.all.back();
    for (Bytes* state : {&c.first, &c.second}) {
      for (size_t i = 0; i < state->size() / 4; ++i) at<float>(*state)[i] = kNonFinite[2];
    }
  }
  expect_same_bytes_for_all_rules(step);
}

TEST(Split, SkipsNonFiniteElements) {
  Step step;
  for (const SelectionKind kind : kKinds) {
    for (const DType dtype : kFloats) {
      add(step, kind, 3, 400, dtype, dtype);
      SplitCase& c = step.all.back();
      for (int i = 0; i < 30; ++i) store(c.grad, dtype, 7 + 31 * i, kNonFinite[i % 3]);
      for (int i = 0; i < 30; ++i) store(c.param, dtype, 20 + 37 * i, kNonFinite[i % 3]);
    }
  }
  for (const double weight_decay : {0.1, 0.0}) {
    step.weight_decay = weight_decay;
    expect_same_bytes_for_all_rules(step);
  }
}

}  // namespace
}  // namespace frugalore::test
