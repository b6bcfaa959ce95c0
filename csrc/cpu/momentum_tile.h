// One tile's arithmetic in float32 for the rules with one buffer.
#pragma once

#include "core/momentum.h"
#include "cpu/adam_tile.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {

template <MomentumRule rule>
inline int64_t momentum_floats(const MomentumScalars& s, const AdamWriteScalars& write, float* __restrict__ w,
                               const float* __restrict__ g, float* __restrict__ m, int64_t n) {
  int32_t skipped = 0;
  for (int64_t i = 0; i < n; ++i) {
    const MomentumElement element = momentum_element<rule>(s, write, w[i], g[i], m[i]);
    w[i] = element.w;
    m[i] = element.m;
    skipped += element.skipped;
  }
  return skipped;
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore::cpu
