// The progress record of one parameter: it lives on the parameter's device, is advanced there, and is
// part of the optimizer state. Kernels read it, so a step needs no host round trip and can be captured.
//
//   progress      int64[3]  applied updates t · skipped updates · 1 if the last call applied its update
//                           (a full-rank step always applies; there the middle counts skipped elements)
//   beta_powers   double[2] beta1^t, beta2^t as running products
#pragma once

#include "core/config.h"

namespace frugalore {

constexpr int kProgressApplied = 0;
constexpr int kProgressSkipped = 1;
constexpr int kProgressAppliedNow = 2;
constexpr int kProgressLength = 3;

inline namespace FRUGALORE_ISA_NAMESPACE {

// One call: counts it as applied or as skipped.
FRUGALORE_HD void advance_progress(int64_t* progress, bool applied) {
  progress[kProgressAppliedNow] = applied ? 1 : 0;
  progress[applied ? kProgressApplied : kProgressSkipped] += 1;
}

// The same, and advances the bias corrections only when applied.
FRUGALORE_HD void advance_progress(int64_t* progress, double* beta_powers, double beta1, double beta2,
                                   bool applied) {
  advance_progress(progress, applied);
  if (applied) {
    beta_powers[0] *= beta1;
    beta_powers[1] *= beta2;
  }
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
