// AdamW with moments in 8 bits (Dettmers et al., arXiv 2110.02861): codes of the dynamic maps, one float
// absmax per block of 256 elements of the flattened tensor (the last block may be short). Conventions,
// formulas and what is skipped: core/adamw.h.
//
//   m = value[code] absmax                       before the update
//   code = map(m * (1 / max|m|)), absmax = max|m|    after it; v likewise in the unsigned map
//
// The update uses the fresh moments before they are quantised again. A block in which some elements are
// skipped is quantised anew with the old values of those. If max|m| is below 2^-126, the reciprocal would
// not be a normal number: the block then counts as zeros, with absmax 0 and the codes of 0.
#pragma once

#include "core/adamw.h"
#include "core/dynamic_map.h"

namespace frugalore {

constexpr int64_t kAdam8bitBlock = 256;

struct Adamw8bitTensor {
  void* param;            // [count] of param_dtype
  const void* grad;       // [count] of grad_dtype
  uint8_t* exp_avg;       // codes of the signed map
  float* exp_avg_absmax;  // [ceil(count / 256)]
  uint8_t* exp_avg_sq;    // codes of the unsigned map
  float* exp_avg_sq_absmax;
  int64_t* progress;    // [3]; skipped counts elements here
  double* beta_powers;  // [2]
  int64_t count;
  uint32_t tensor_id;
  DType param_dtype, grad_dtype;
};

struct Adamw8bitStepJob {
  const Adamw8bitTensor* tensors;
  int64_t tensor_count;
  AdamHyper hyper;
  AdamWrite write;
};

struct Adamw8bitDirectionJob {
  void* r;  // [count] of r_dtype: the projected gradient, replaced by the direction
  DType r_dtype;
  int64_t count;
  uint8_t* exp_avg;
  float* exp_avg_absmax;
  uint8_t* exp_avg_sq;
  float* exp_avg_sq_absmax;
  int64_t* progress;  // skipped counts calls here
  double* beta_powers;
  AdamHyper hyper;
};

inline namespace FRUGALORE_ISA_NAMESPACE {

// The absmax that is stored, and the factor that brings the block into [-1, 1].
struct Adam8bitScale {
  float absmax, inverse;
};

FRUGALORE_HD Adam8bitScale adam8bit_scale(float largest) {
  const bool normal = largest >= 1.17549435e-38f;  // 2^-126
  return Adam8bitScale{normal ? largest : 0.0f, normal ? 1.0f / largest : 0.0f};
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
