// One step of FRUGAL (arXiv 2411.07837, algorithm 1) in one pass over a weight: the elements inside a
// selection (core/selection.h) follow a state-full rule, all others a state-free one.
//
//   inside    AdamW (core/adamw.h), SGD with momentum or Lion (core/momentum.h), with lr inside_scale for lr
//             in front of the direction; state exists for these elements only
//   outside   w <- keep w - lr outside_scale f(g)     (or keep (w - ..) with decay after)
//             f = sign (signSGD), g (SGD), or 0 (nothing but decay; the gradient is not read)
//
// An element that is inside is skipped as in `step` of those headers; one outside keeps its weight if g or
// the fresh weight is not finite. Progress counts both, and every call as applied. Outside elements rest,
// neither read nor written nor counted, if f = 0 and there is no decay (keep is 1 in float32).
//
// A fresh tensor starts anew: its old state counts as zero and is not read, the powers of beta begin at 1,
// and SGD takes its first update.
#pragma once

#include <type_traits>

#include "core/adamw.h"
#include "core/momentum.h"
#include "core/outside.h"
#include "core/selection.h"

namespace frugalore {

enum class SplitRule : int32_t { adamw = 0, sgdm = 1, lion = 2 };

struct SplitHyper {
  SplitRule rule;
  OutsideRule outside;
  AdamHyper adam;          // adamw
  MomentumHyper momentum;  // sgdm and lion
  double inside_scale, outside_scale;
};

// A weight as a matrix [rows, columns], row-major.
struct SplitTensor {
  void* param;          // [rows, columns] of param_dtype
  const void* grad;     // [rows, columns] of grad_dtype
  float* first;         // [selected_count]: exp_avg, or the momentum
  float* second;        // [selected_count]: exp_avg_sq; adamw only
  int64_t* progress;    // [3]; skipped counts elements here
  double* beta_powers;  // [2]; adamw only
  int64_t rows, columns;
  int64_t count;  // elements to visit: rows columns, or 0 where nothing can move
  Selection selection;
  uint32_t tensor_id;
  DType param_dtype, grad_dtype;
  bool fresh;
};

struct SplitStepJob {
  const SplitTensor* tensors;
  int64_t tensor_count;
  SplitHyper hyper;
  AdamWrite write;
};

inline namespace FRUGALORE_ISA_NAMESPACE {

// The scalars of the rule inside.
template <SplitRule rule>
using SplitScalars = std::conditional_t<rule == SplitRule::adamw, AdamScalars, MomentumScalars>;

// After progress was advanced.
template <SplitRule rule>
FRUGALORE_HD SplitScalars<rule> split_scalars(const SplitHyper& hyper, const SplitTensor& tensor) {
  if constexpr (rule == SplitRule::adamw) {
    return adam_scalars(hyper.adam, tensor.beta_powers);
  } else {
    return momentum_scalars(hyper.momentum, tensor.fresh || tensor.progress[kProgressApplied] == 1);
  }
}

FRUGALORE_HD void advance_split(const SplitHyper& hyper, const SplitTensor& tensor) {
  if (hyper.rule != SplitRule::adamw) return advance_progress(tensor.progress, true);
  if (tensor.fresh) tensor.beta_powers[0] = tensor.beta_powers[1] = 1.0;
  advance_progress(tensor.progress, tensor.beta_powers, hyper.adam.beta1, hyper.adam.beta2, true);
}

// The scalars of the write; the same for all tensors of a call.
struct SplitWriteScalars {
  AdamWriteScalars inside, outside;
  bool outside_rests;
};

FRUGALORE_HD AdamWriteScalars scaled_write_scalars(const AdamWrite& write, double scale) {
  const double keep = 1.0 - *write.lr * write.weight_decay;
  return AdamWriteScalars{static_cast<float>(keep),
                          static_cast<float>(*write.lr * scale * (write.decay_after ? keep : 1.0))};
}

FRUGALORE_HD SplitWriteScalars split_write_scalars(const SplitHyper& hyper, const AdamWrite& write) {
  const AdamWriteScalars outside = scaled_write_scalars(write, hyper.outside_scale);
  return SplitWriteScalars{
      scaled_write_scalars(write, hyper.inside_scale), outside,
      hyper.outside == OutsideRule::none && (write.weight_decay == 0.0 || outside.keep == 1.0f)};
}

// The `count` of a tensor: without decay, a rule outside or an element inside there is nothing to do.
FRUGALORE_HD int64_t split_count(const SplitHyper& hyper, const AdamWrite& write, const Selection& selection,
                                 int64_t rows, int64_t columns) {
  const bool rests = hyper.outside == OutsideRule::none && write.weight_decay == 0.0;
  return rests && selected_count(selection, rows, columns) == 0 ? 0 : rows * columns;
}

// One element outside, before the weight is rounded to its dtype.
struct OutsideElement {
  float w;
  int32_t skipped;  // 0 or 1
};

// coefficient sign(g), and 0 for g = 0: of the bits, which takes fewer instructions than a product.
FRUGALORE_HD float scaled_sign(float coefficient, float g) {
  const uint32_t bits = bit_cast<uint32_t>(g), magnitude = bits & 0x7fffffffu;
  const uint32_t scaled = bit_cast<uint32_t>(coefficient) ^ (bits & 0x80000000u);
  return bit_cast<float>(magnitude != 0 ? scaled : 0u);
}

// Whether both are finite.
FRUGALORE_HD uint32_t are_finite(float x, float y) {
  const uint32_t a = bit_cast<uint32_t>(x) & 0x7fffffffu, b = bit_cast<uint32_t>(y) & 0x7fffffffu;
  return (a > b ? a : b) < 0x7f800000u ? 1u : 0u;
}

// g is not looked at where the rule is none.
template <OutsideRule outside>
FRUGALORE_HD OutsideElement outside_element(const AdamWriteScalars& write, float w, float g) {
  float fresh = write.keep * w;
  if constexpr (outside == OutsideRule::sign) fresh = fresh - scaled_sign(write.coefficient, g);
  if constexpr (outside == OutsideRule::sgd) fresh = fresh - write.coefficient * g;
  const uint32_t applied = are_finite(outside == OutsideRule::none ? fresh : g, fresh);
  return OutsideElement{adam_select(0u - applied, fresh, w), static_cast<int32_t>(1u - applied)};
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
