// One quantisation group with one code a byte: the part that INT4 and INT8 share.
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

// codes[i] = affine_code(x[i])
template <class T>
inline void affine_codes(const T* __restrict__ x, int64_t n, AffineGroup group, float levels,
                         uint8_t* __restrict__ codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = affine_code(to_float(x[i]), group, levels);
}

// x[i] = (codes[i] - zero) * scale
template <class T>
inline void affine_values(const uint8_t* __restrict__ codes, int64_t n, float scale, float zero,
                          T* __restrict__ x) {
  for (int64_t i = 0; i < n; ++i) x[i] = from_float<T>((static_cast<float>(codes[i]) - zero) * scale);
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore::cpu
