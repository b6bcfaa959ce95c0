// Scale and zero-point of one quantisation group: the part that INT4 and INT8 share.
#pragma once

#include "core/int4.h"
#include "cpu/group_range.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {

// Writes the scale and zero-point of the group x[0, n). False: an element is not finite, the scale is
// NaN, and the codes are to be 0.
template <class T>
inline bool describe_group(const T* x, int64_t n, float levels, AffineGroup* group, float* scale,
                           uint8_t* zero) {
  const GroupRange range = group_range(x, n);
  *group = affine_group(range.lo, range.hi, levels);
  *scale = range.finite ? group->scale : bit_cast<float>(0x7fc00000u);
  *zero = static_cast<uint8_t>(range.finite ? group->zero : 0.0f);
  return range.finite;
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore::cpu
