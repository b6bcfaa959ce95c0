// Packed INT4, asymmetric groups (the projection of Q-GaLore, arXiv 2407.08296, section 3.2).
//
// Codes: 0..15, two per byte, low nibble = even column; a row is ceil(columns / 2) bytes, and the last
// nibble of an odd row is 0. Per group a float scale s and a uint8 zero-point z:  x ~ (q - z) s.
//
//   lo = min(x, 0), hi = max(x, 0);  s = max(hi - lo, 1e-5) / 15;  z = clamp(-round(lo / s), 0, 15)
//   q = clamp(round(x / s) + z, 0, 15)
//
// The zero in lo and hi is ours: without it a group of one sign gets a zero-point that saturates.
// Groups with both signs agree with the published code. A group with a non-finite element gets scale
// NaN, so that it dequantises to NaN and nothing is hidden.
#pragma once

#include "core/floats.h"
#include "core/groups.h"
#include "core/rounding.h"

namespace frugalore {

struct Int4QuantizeJob {
  const void* x;  // [rows, columns] of x_dtype
  DType x_dtype;
  uint8_t* packed;     // [rows, ceil(columns / 2)]
  float* scale;        // [rows, groups]
  uint8_t* zero;       // [rows, groups]
  GroupLayout layout;  // group_size is even: a group starts on a byte
};

struct Int4DequantizeJob {
  const uint8_t* packed;
  const float* scale;
  const uint8_t* zero;
  void* x;  // [rows, columns] of x_dtype
  DType x_dtype;
  GroupLayout layout;
};

struct Int4PackJob {
  const uint8_t* codes;  // [rows, columns]; the upper four bits are ignored
  uint8_t* packed;       // [rows, ceil(columns / 2)]
  int64_t rows, columns;
};

struct Int4UnpackJob {
  const uint8_t* packed;
  uint8_t* codes;
  int64_t rows, columns;
};

inline namespace FRUGALORE_ISA_NAMESPACE {

// Scale and zero-point of one group; `levels` is the largest code (15 or 255).
struct AffineGroup {
  float scale;
  float zero;
};

FRUGALORE_HD AffineGroup affine_group(float lo, float hi, float levels) {
  const float range = hi - lo;
  const float scale = (range > 1e-5f ? range : 1e-5f) / levels;
  return AffineGroup{scale, clamp(-round_even(lo / scale), 0.0f, levels)};
}

FRUGALORE_HD uint8_t affine_code(float x, AffineGroup group, float levels) {
  return static_cast<uint8_t>(clamp(round_even(x / group.scale) + group.zero, 0.0f, levels));
}

FRUGALORE_HD uint8_t int4_pair(uint8_t even, uint8_t odd) {
  return static_cast<uint8_t>((even & 15u) | (odd << 4));
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
