// The part of a gradient outside of a subspace, added to the update inside of it:
//
//   update <- inside_scale update + outside_scale f(x),   x = grad - projected  (grad without `projected`)
//
//   sign     f(x) = sign(x), and sign(0) = 0        FRUGAL (arXiv 2411.07837)
//   sgd      f(x) = x                               FRUGAL
//   scaled   f(x) = factor x, one factor a column or a row      Fira (arXiv 2410.01623)
//
// In float32, rounded once to update's dtype. Where x is not finite, or the sum is NaN, the result is the NaN
// 0x7fc00000 on every device; the write of the weight that follows then keeps the element.
#pragma once

#include "core/floats.h"

namespace frugalore {

enum class ResidualRule { sign, sgd, scaled };

struct ResidualJob {
  void* update;           // [rows, columns] of update_dtype
  const void* grad;       // the same, of grad_dtype
  const void* projected;  // the same, of projected_dtype; or null
  const float* factor;    // scaled: [rows] if factor_of_rows, else [columns]; otherwise null
  DType update_dtype, grad_dtype, projected_dtype;
  ResidualRule rule;
  bool factor_of_rows;
  int64_t rows, columns;
  double inside_scale, outside_scale;
};

inline namespace FRUGALORE_ISA_NAMESPACE {

template <ResidualRule rule>
FRUGALORE_HD float residual_sum(float update, float grad, float projected, float factor, float inside_scale,
                                float outside_scale) {
  const float x = grad - projected;
  const float outside =
      rule == ResidualRule::sign ? sign_of(x) : (rule == ResidualRule::sgd ? x : factor * x);
  const float sum = inside_scale * update + outside_scale * outside;
  const uint32_t is_number = static_cast<uint32_t>(is_finite(x)) & static_cast<uint32_t>(sum == sum);
  const uint32_t mask = 0u - is_number;
  return bit_cast<float>((bit_cast<uint32_t>(sum) & mask) | (0x7fc00000u & ~mask));
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
