// The way into and out of a subspace that is spanned by coordinates (core/selection.h).
//
//   project   R[slot of e] = G[e]                             for the elements e that are inside
//   back      U[e] = inside_scale D[slot of e]                inside
//             U[e] = outside_scale f(G[e])                    outside; f: 0, the sign, or G[e] itself
//
// sign(0) = 0. A gradient outside that is not finite gives a U that is not finite, whatever f (but 0), so
// that the op which writes U into the weight leaves that element as it is.
#pragma once

#include "core/floats.h"
#include "core/outside.h"
#include "core/selection.h"

namespace frugalore {

struct CoordinatesProjectJob {
  const void* grad;  // [rows, columns]
  void* r;           // [selected_count]
  DType dtype;       // of both
  int64_t rows, columns;
  Selection selection;
};

// One panel of rows. `direction` belongs to the whole matrix, `out` and `grad` to the panel.
struct CoordinatesBackJob {
  float* out;             // [rows, columns]
  const void* direction;  // [selected_count of the whole matrix]
  const void* grad;       // [rows, columns]; not read with OutsideRule::none
  DType direction_dtype, grad_dtype;
  int64_t rows, columns;
  int64_t first_row;  // of the panel within the matrix
  Selection selection;
  OutsideRule outside;
  float inside_scale, outside_scale;
};

inline namespace FRUGALORE_ISA_NAMESPACE {

// NaN where x is not finite, else `value`.
FRUGALORE_HD float unless_not_finite(float x, float value) {
  const uint32_t nan = is_finite(x) ? 0u : 0x7fc00000u;
  return bit_cast<float>(bit_cast<uint32_t>(value) | nan);
}

// U of an element that is outside.
template <OutsideRule rule>
FRUGALORE_HD float outside_update(float g, float scale) {
  if (rule == OutsideRule::none) return 0.0f;
  return rule == OutsideRule::sgd ? scale * g : unless_not_finite(g, scale * sign_of(g));
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
