// Products of packed strips in float64, the inner loop of `gram` and `cholesky`.
//
// A strip holds kStrip rows of a matrix, packed [depth][kStrip]. It serves as the right operand of a product
// A Bᵀ, kStripVectors vectors for each step of the depth, and kTileRows of its rows serve as the left one,
// whose elements are broadcast. The tile of kTileRows x kStrip sums stays in registers.
#pragma once

#include "core/config.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {

// kTileRows kStripVectors sums, the vectors of B and an element of A fill the registers.
#if defined(__AVX512F__)
constexpr int kDoubleLanes = 8, kTileRows = 8;
#elif defined(__AVX2__)
constexpr int kDoubleLanes = 4, kTileRows = 4;
#else
constexpr int kDoubleLanes = 2, kTileRows = 3;
#endif
constexpr int kStripVectors = 3;
constexpr int kStrip = kStripVectors * kDoubleLanes;
static_assert(kStrip % kTileRows == 0, "a strip is cut into whole tiles");

typedef double DoubleVector
    __attribute__((vector_size(kDoubleLanes * sizeof(double)), aligned(sizeof(double)), may_alias));

FRUGALORE_HD DoubleVector load_doubles(const double* x) {
  return *reinterpret_cast<const DoubleVector*>(x);
}

FRUGALORE_HD void store_doubles(double* x, DoubleVector v) {
  *reinterpret_cast<DoubleVector*>(x) = v;
}

// a b + c, rounded once where the instruction set can.
FRUGALORE_HD DoubleVector multiply_add(double a, DoubleVector b, DoubleVector c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(_mm512_set1_pd(a), b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(_mm256_set1_pd(a), b, c);
#else
  return a * b + c;
#endif
}

// The sums over the depth for kTileRows rows of the strip at `a` (which points to the first of them) and all
// of the strip at `b`; store(row, vector, sum) gets each.
template <class Store>
inline __attribute__((always_inline)) void multiply_tile(const double* a, const double* b, int64_t depth,
                                                         Store&& store) {
  DoubleVector sum[kTileRows][kStripVectors] = {};
  for (int64_t p = 0; p < depth; ++p) {
    DoubleVector right[kStripVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kStripVectors; ++v) right[v] = load_doubles(b + v * kDoubleLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const double left = a[i];
#pragma GCC unroll 3
      for (int v = 0; v < kStripVectors; ++v) sum[i][v] = multiply_add(left, right[v], sum[i][v]);
    }
    a += kStrip;
    b += kStrip;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < kStripVectors; ++v) store(i, v, sum[i][v]);
  }
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore::cpu
