// The inverse Cholesky factor of a shifted Gram matrix: M = L⁻¹ where L Lᵀ = G + d I, d = shift trace(G). The
// rows of M X are orthonormal if G = X Xᵀ; the shift keeps the factorisation going where X is numerically
// rank deficient, and two more passes remove what it left (shifted Cholesky-QR: Fukaya, Kannan, Nakatsukasa,
// Yamamoto & Yanagisawa, SIAM J. Sci. Comput. 42(1), 2020).
//
// Both backends work in float64 on blocks of B columns, in place in the lower triangle W of G. For block k,
// with rows and columns K:
//
//   1. factor W[K, K] = L[K, K] L[K, K]ᵀ
//   2. columns j <= K:  M[K, j] = L[K, K]⁻¹ W[K, j], W[K, K] standing for I        rows of the inverse are
//   final
//      rows    i >  K:  L[i, K] = W[i, K] L[K, K]⁻ᵀ
//   3. rows    i >  K:  W[i, j] -= L[i, K] M[K, j] for j <= K, W[i, K] being zero before
//                       W[i, j] -= L[i, K] L[j, K]ᵀ for K < j <= i
//
// By substitution, not by an inverse of L[K, K]: the latter loses digits where a pivot is small.
#pragma once

#include <cmath>

#include "core/floats.h"

namespace frugalore {

struct CholeskyInverseJob {
  int64_t size;
  const double* gram;  // [size, size]; the lower triangle is read
  double shift;
  float* inverse;     // [size, size], zeros above the diagonal
  double* pivots;     // [size]
  double* workspace;  // CUDA: cholesky_workspace doubles; the CPU does not use it
};

constexpr int64_t kCudaCholeskyBlock = 32, kCholeskyHeader = 4, kCholeskyFlags = 256;

// The CUDA kernels' header, flags, W, and M[K, j] and L[i, K]ᵀ of the block that is worked on.
inline int64_t cholesky_workspace(int64_t size) {
  return kCholeskyHeader + kCholeskyFlags + size * size + kCudaCholeskyBlock * size;
}

inline namespace FRUGALORE_ISA_NAMESPACE {

FRUGALORE_HD bool is_finite(double x) {
  return (bit_cast<uint64_t>(x) & 0x7ff0000000000000u) != 0x7ff0000000000000u;
}

// What becomes of a matrix: `identity` if its trace is not positive (the Gram matrix of zeros), `not_finite`
// (also the identity, with pivots NaN) if an element, the trace or the shift is not.
enum class GramKind { usable, identity, not_finite };

struct GramScale {
  double trace, shift;  // the shift is what is added to the diagonal
  GramKind kind;
};

FRUGALORE_HD GramScale gram_scale(double trace, double shift, bool finite) {
  const double added = shift * trace;
  if (!finite || !is_finite(trace) || !is_finite(added)) return {trace, added, GramKind::not_finite};
  return {trace, added, trace > 0.0 ? GramKind::usable : GramKind::identity};
}

struct Pivot {
  double root;  // L's diagonal element
  bool kept;    // otherwise the column below it is zero
};

// `schur`: the diagonal of the Schur complement before the shift. `own`: the row's diagonal element of G. The
// pivot's rounding error is about size 2^-52 own, so a pivot that is not above it cannot be told from zero.
// It becomes this bound (2^-104 of the trace more, for rows of zeros), and its column is cut off, lest noise
// grow.
FRUGALORE_HD Pivot pivot_of(double schur, double own, const GramScale& scale, int64_t size) {
  constexpr double kEpsilon = 0x1p-52;
  const double noise =
      kEpsilon * ((own > 0.0 ? own : 0.0) * static_cast<double>(size) + kEpsilon * scale.trace);
  const double pivot = schur + scale.shift;
  const bool kept = pivot > noise;
  return {sqrt(kept ? pivot : noise), kept};
}

// Rounds to float; what is too large becomes the largest float, and NaN zero. No element of the inverse is
// either, unless the matrix is not positive semidefinite at all.
FRUGALORE_HD float finite_float(double x) {
  constexpr double kLargest = 3.4028234663852886e38;
  const double low = x < -kLargest ? -kLargest : x;
  const double both = low > kLargest ? kLargest : low;
  return both == both ? static_cast<float>(both) : 0.0f;
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
