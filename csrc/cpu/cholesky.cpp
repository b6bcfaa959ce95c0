// The algorithm of core/cholesky.h. Steps 2 and 3 work on packed strips (cpu/strips.h): strip s holds, for
// the block of columns K, M[K, j] or L[j, K]ᵀ for the columns j of strip s, so that step 3 is products of
// strips. W is padded with zeros to whole strips. Threads share out strips in step 2 and tiles in step 3;
// neither changes the order of a sum.
#include "core/cholesky.h"

#include <limits>
#include <memory>

#include "cpu/kernels.h"
#include "cpu/strips.h"
#include "cpu/thread_pool.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlock = 48;  // columns; a multiple of every kStrip
static_assert(kBlock % kStrip == 0, "a block is whole strips");
constexpr int64_t kStripGrain = 8, kTileGrain = 16;  // worth a thread

// The factor of a diagonal block, as substitution wants it.
struct Factor {
  double minus_l[kBlock][kBlock];  // below the diagonal
  double inverse_root[kBlock];
  double kept_inverse_root[kBlock];  // zero where the column is cut off
};

struct Matrix {
  int64_t size, strips, stride;      // stride = strips kStrip
  std::unique_ptr<double[]> w;       // [stride, stride]
  std::unique_ptr<double[]> packed;  // [strips, kBlock, kStrip]

  explicit Matrix(int64_t size_)
      : size(size_),
        strips((size_ + kStrip - 1) / kStrip),
        stride(strips * kStrip),
        w(new double[static_cast<size_t>(stride * stride)]()),
        packed(new double[static_cast<size_t>(strips * kBlock * kStrip)]()) {}

  double* row(int64_t i) const { return w.get() + i * stride; }
  double* strip(int64_t s) const { return packed.get() + s * kBlock * kStrip; }
};

// Copies the lower triangle. False if an element is not finite.
bool copy_lower(const CholeskyInverseJob& job, const Matrix& matrix) {
  uint64_t bad = 0;
  for (int64_t i = 0; i < job.size; ++i) {
    const double* from = job.gram + i * job.size;
    double* to = matrix.row(i);
    for (int64_t j = 0; j <= i; ++j) {
      bad |= is_finite(from[j]) ? 0 : 1;
      to[j] = from[j];
    }
  }
  return bad == 0;
}

void write_identity(const CholeskyInverseJob& job, GramKind kind) {
  for (int64_t i = 0; i < job.size; ++i) {
    job.pivots[i] = kind == GramKind::not_finite ? std::numeric_limits<double>::quiet_NaN()
                                                 : job.gram[i * (job.size + 1)];
    for (int64_t j = 0; j < job.size; ++j) job.inverse[i * job.size + j] = i == j ? 1.0f : 0.0f;
  }
}

void factor_block(const CholeskyInverseJob& job, const GramScale& scale, const Matrix& matrix, int64_t first,
                  int64_t count, Factor& factor) {
  double block[kBlock][kBlock], column[kBlock];
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j <= i; ++j) block[i][j] = matrix.row(first + i)[first + j];
  }
  for (int64_t j = 0; j < count; ++j) {
    const Pivot pivot = pivot_of(block[j][j], job.gram[(first + j) * (job.size + 1)], scale, job.size);
    job.pivots[first + j] = block[j][j];
    factor.inverse_root[j] = 1.0 / pivot.root;
    factor.kept_inverse_root[j] = pivot.kept ? 1.0 / pivot.root : 0.0;
    for (int64_t i = j + 1; i < count; ++i) {
      column[i] = block[i][j] * factor.kept_inverse_root[j];
      factor.minus_l[i][j] = -column[i];
    }
    for (int64_t i = j + 1; i < count; ++i) {
      for (int64_t q = j + 1; q <= i; ++q) block[i][q] -= column[i] * column[q];
    }
  }
}

// strip = L[K, K]⁻¹ strip, row p divided by the root as `inverse_root` says.
void substitute(const Factor& factor, const double* inverse_root, int64_t count, double* strip) {
  for (int64_t p = 0; p < count; ++p) {
    DoubleVector sum[kStripVectors];
    for (int v = 0; v < kStripVectors; ++v) sum[v] = load_doubles(strip + p * kStrip + v * kDoubleLanes);
    for (int64_t q = 0; q < p; ++q) {
      const double* solved = strip + q * kStrip;
      for (int v = 0; v < kStripVectors; ++v) {
        sum[v] = multiply_add(factor.minus_l[p][q], load_doubles(solved + v * kDoubleLanes), sum[v]);
      }
    }
    for (int v = 0; v < kStripVectors; ++v) {
      store_doubles(strip + p * kStrip + v * kDoubleLanes, sum[v] * inverse_root[p]);
    }
  }
}

// Step 2 for one strip, and the rows of the inverse that it makes final.
void solve_strip(const CholeskyInverseJob& job, const Matrix& matrix, const Factor& factor, int64_t first,
                 int64_t count, int64_t s) {
  double* strip = matrix.strip(s);
  const int64_t column = s * kStrip, columns = job.size - column < kStrip ? job.size - column : kStrip;
  const bool below = column >= first + kBlock;
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t i = 0; i < kStrip; ++i) {
      double* to = strip + p * kStrip + i;
      if (below) {
        *to = matrix.row(column + i)[first + p];
      } else if (column >= first) {
        *to = column + i == first + p ? 1.0 : 0.0;
      } else {
        *to = matrix.row(first + p)[column + i];
      }
    }
  }
  substitute(factor, below ? factor.kept_inverse_root : factor.inverse_root, count, strip);
  for (int64_t p = 0; p < count; ++p) {
    float* out = job.inverse + (first + p) * job.size + column;
    for (int64_t i = 0; i < columns; ++i) out[i] = below ? 0.0f : finite_float(strip[p * kStrip + i]);
  }
}

// Step 3 for the rows of strip `i` and the columns of strip `j`.
void update_tile(const Matrix& matrix, int64_t first, int64_t i, int64_t j) {
  const bool starts = j * kStrip >= first && j * kStrip < first + kBlock;
  for (int64_t r = 0; r < kStrip; r += kTileRows) {
    double* out = matrix.row(i * kStrip + r) + j * kStrip;
    multiply_tile(matrix.strip(i) + r, matrix.strip(j), kBlock, [&](int row, int v, DoubleVector sum) {
      double* to = out + row * matrix.stride + v * kDoubleLanes;
      store_doubles(to, starts ? -sum : load_doubles(to) - sum);
    });
  }
}

// Tiles before row `i` of the lower triangle.
int64_t tiles_before(int64_t i) {
  return i * (i + 1) / 2;
}

void factor_and_invert(const CholeskyInverseJob& job, const GramScale& scale, const Matrix& matrix) {
  Factor factor;
  for (int64_t first = 0; first < job.size; first += kBlock) {
    const int64_t count = job.size - first < kBlock ? job.size - first : kBlock;
    factor_block(job, scale, matrix, first, count, factor);
    parallel_for(matrix.strips, kStripGrain, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) solve_strip(job, matrix, factor, first, count, s);
    });
    const int64_t after = (first + kBlock) / kStrip;
    if (after >= matrix.strips) return;
    const int64_t skipped = tiles_before(after), tiles = tiles_before(matrix.strips) - skipped;
    parallel_for(tiles, kTileGrain, [&](int64_t begin, int64_t end) {
      int64_t i = after;
      for (int64_t tile = skipped + begin; tile < skipped + end; ++tile) {
        while (tiles_before(i + 1) <= tile) ++i;
        update_tile(matrix, first, i, tile - tiles_before(i));
      }
    });
  }
}

}  // namespace
}  // namespace FRUGALORE_ISA_NAMESPACE

template <Isa isa>
void run(const CholeskyInverseJob& job) {
  const Matrix matrix(job.size);
  const bool finite = copy_lower(job, matrix);
  double trace = 0.0;
  for (int64_t i = 0; i < job.size; ++i) trace += matrix.row(i)[i];
  const GramScale scale = gram_scale(trace, job.shift, finite);
  if (scale.kind != GramKind::usable) return write_identity(job, scale.kind);
  factor_and_invert(job, scale, matrix);
}

template void run<kIsa>(const CholeskyInverseJob&);

}  // namespace frugalore::cpu
