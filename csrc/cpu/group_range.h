// Minimum and maximum of a quantisation group, in lanes.
#pragma once

#include "core/floats.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {

struct GroupRange {
  float lo, hi;  // over the elements and 0
  bool finite;   // false: an element is NaN or infinite, and lo and hi mean nothing
};

// Sixteen independent lanes, so that the comparisons vectorise without reordering floats.
template <class T>
inline GroupRange group_range(const T* x, int64_t n) {
  constexpr int kLanes = 16;
  float low[kLanes] = {}, high[kLanes] = {};
  uint32_t exponent[kLanes] = {};
  const auto take = [&](int lane, float value) {
    const uint32_t bits = bit_cast<uint32_t>(value) & 0x7f800000u;
    low[lane] = value < low[lane] ? value : low[lane];
    high[lane] = value > high[lane] ? value : high[lane];
    exponent[lane] = bits > exponent[lane] ? bits : exponent[lane];
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) take(lane, to_float(x[i + lane]));
  }
  for (int lane = 0; i < n; ++i, ++lane) take(lane, to_float(x[i]));
  GroupRange range{0.0f, 0.0f, true};
  for (int lane = 0; lane < kLanes; ++lane) {
    range.lo = low[lane] < range.lo ? low[lane] : range.lo;
    range.hi = high[lane] > range.hi ? high[lane] : range.hi;
    range.finite = range.finite && exponent[lane] != 0x7f800000u;
  }
  return range;
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore::cpu
