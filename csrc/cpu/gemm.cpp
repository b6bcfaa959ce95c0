// The blocked product of Goto & van de Geijn (ACM TOMS 34, 2008) and of Van Zee & van de Geijn (ACM TOMS 41,
// 2015). A thread computes a range of rows or of columns of C, in blocks of k:
//
//   B block  [kDepth, kColumns]   packed into strips of kStripColumns columns, stays in L2
//   A block  [kBlockRows, kDepth] packed into strips of at most kStripRows rows; a strip stays in L1
//   tile     a strip of A times a strip of B, accumulated in registers, then added to C
//
// Each element of C is one chain of multiply-adds over a block of kDepth, and one sum over those blocks in
// order. It depends on the instruction set, but on neither the threads nor on where in C the element lies.
#include "core/gemm.h"

#include <memory>
#include <utility>

#include "core/groups.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {

// A tile of kStripRows x 2 vectors fills the registers: accumulators, two vectors of B and one element of A.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kStripRows = 14;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kStripRows = 6;
#else
constexpr int kLanes = 4, kStripRows = 6;
#endif
constexpr int kStripVectors = 2;
constexpr int kStripColumns = kStripVectors * kLanes;

constexpr int64_t kDepth = 256, kColumns = 256;
constexpr int64_t kBlockStrips = 8, kBlockRows = kBlockStrips * kStripRows;
constexpr int64_t kWorthAThread = int64_t{1} << 19;  // multiply-adds

constexpr int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

constexpr int64_t larger(int64_t a, int64_t b) {
  return a > b ? a : b;
}

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

FRUGALORE_HD Vector load(const float* x) {
  return *reinterpret_cast<const Vector*>(x);
}

FRUGALORE_HD void store(float* x, Vector v) {
  *reinterpret_cast<Vector*>(x) = v;
}

FRUGALORE_HD Vector multiply_add(float a, Vector b, Vector c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(_mm512_set1_ps(a), b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(_mm256_set1_ps(a), b, c);
#else
  return a * b + c;
#endif
}

// How a strip of A is packed. Whichever dimension is contiguous in A stays so: packing is a copy.
struct RowsOfA {  // [row][depth]; the step is odd in 16 bytes, so that rows lie in different sets and banks
                  // of L1
  static constexpr int64_t row_step = kDepth + 4, depth_step = 1;
  static constexpr int64_t strip = kStripRows * row_step;
};
struct ColumnsOfA {  // [depth][row]
  static constexpr int64_t row_step = 1, depth_step = kStripRows <= 8 ? 8 : 16;
  static constexpr int64_t strip = kDepth * depth_step;
};

// c = a b, or c += a b, for a packed strip of `rows` rows and one of `vectors` vectors.
template <class Layout, int rows, int vectors>
void tile(const float* a, const float* b, int64_t depth, float* c, int64_t c_row_stride, bool add) {
  Vector sum[rows][vectors] = {};
  for (int64_t p = 0; p < depth; ++p) {
    Vector right[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) right[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < rows; ++i) {
      const float left = a[i * Layout::row_step];
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[i][v] = multiply_add(left, right[v], sum[i][v]);
    }
    a += Layout::depth_step;
    b += vectors * kLanes;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      float* out = c + i * c_row_stride + v * kLanes;
      store(out, add ? load(out) + sum[i][v] : sum[i][v]);
    }
  }
}

using Tile = void (*)(const float*, const float*, int64_t, float*, int64_t, bool);

template <class Layout, int vectors, int... rows>
Tile tile_of(int count, std::integer_sequence<int, rows...>) {
  static constexpr Tile tiles[] = {&tile<Layout, rows + 1, vectors>...};
  return tiles[count - 1];
}

// The tile for a strip of `rows` rows.
template <class Layout>
Tile tile_of(int rows, int vectors) {
  constexpr auto each = std::make_integer_sequence<int, kStripRows>{};
  return vectors == 1 ? tile_of<Layout, 1>(rows, each) : tile_of<Layout, 2>(rows, each);
}

// The last strip of a block of B is one vector wide if that suffices.
int64_t strip_vectors(int64_t columns) {
  return columns <= kLanes ? 1 : kStripVectors;
}

// B block [depth, columns] into strips [depth][kStripColumns], the last one filled up with zeros to whole
// vectors. (Tiles compute these lanes too; they are not stored.)
void pack_b(const StridedMatrix& b, int64_t depth, int64_t columns, float* packed) {
  for (int64_t j = 0; j < columns; j += kStripColumns) {
    const int64_t n = smaller(columns - j, kStripColumns), width = strip_vectors(n) * kLanes;
    const float* from = b.data + j * b.column_stride;
    if (b.column_stride == 1 && n == kStripColumns) {
      for (int64_t p = 0; p < depth; ++p, from += b.row_stride, packed += width) {
        for (int v = 0; v < kStripVectors; ++v) store(packed + v * kLanes, load(from + v * kLanes));
      }
      continue;
    }
    for (int64_t p = 0; p < depth; ++p, from += b.row_stride, packed += width) {
      for (int64_t i = 0; i < n; ++i) packed[i] = from[i * b.column_stride];
      for (int64_t i = n; i < width; ++i) packed[i] = 0.0f;
    }
  }
}

void pack_strip(RowsOfA, const StridedMatrix& a, int64_t rows, int64_t, int64_t depth, float* packed) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* from = a.data + i * a.row_stride;
    float* to = packed + i * RowsOfA::row_step;
    for (int64_t p = 0; p < depth; ++p) to[p] = from[p];
  }
}

// `readable` rows of A follow the first of the strip: where they suffice a whole step is copied.
void pack_strip(ColumnsOfA, const StridedMatrix& a, int64_t rows, int64_t readable, int64_t depth,
                float* packed) {
  constexpr int64_t step = ColumnsOfA::depth_step;
  for (int64_t p = 0; p < depth; ++p) {
    const float* from = a.data + p * a.column_stride;
    float* to = packed + p * step;
    if (readable >= step) {
      for (int64_t i = 0; i < step; i += kLanes) store(to + i, load(from + i));
    } else {
      for (int64_t i = 0; i < rows; ++i) to[i] = from[i];
    }
  }
}

struct Workspace {
  alignas(64) float b[kDepth * kColumns];
  alignas(64) float a[kBlockStrips * larger(RowsOfA::strip, ColumnsOfA::strip)];
};

// A strip of A times all strips of B.
template <class Layout>
void multiply_strip(const float* a, int rows, const float* b, int64_t depth, int64_t columns, float* c,
                    int64_t c_row_stride, bool add) {
  for (int64_t j = 0; j < columns; j += kStripColumns) {
    const int64_t n = smaller(columns - j, kStripColumns), vectors = strip_vectors(n);
    const Tile run_tile = tile_of<Layout>(rows, static_cast<int>(vectors));
    if (n == vectors * kLanes) {
      run_tile(a, b, depth, c + j, c_row_stride, add);
    } else {
      float whole[kStripRows * kStripColumns];
      run_tile(a, b, depth, whole, kStripColumns, false);
      for (int64_t i = 0; i < rows; ++i) {
        float* out = c + i * c_row_stride + j;
        const float* sum = whole + i * kStripColumns;
        for (int64_t v = 0; v < n; ++v) out[v] = add ? out[v] + sum[v] : sum[v];
      }
    }
    b += depth * vectors * kLanes;
  }
}

// All rows of A times a packed block of B. Blocks of rows are cut into strips of nearly equal height, so that
// no row is computed in vain.
template <class Layout>
void multiply_rows(const StridedMatrix& a, int64_t m, int64_t depth, int64_t columns, float* c,
                   int64_t c_row_stride, bool add, Workspace& space) {
  for (int64_t first = 0; first < m; first += kBlockRows) {
    const int64_t rows = smaller(kBlockRows, m - first), strips = ceil_div(rows, int64_t{kStripRows});
    const auto bound = [&](int64_t strip) { return first + strip * rows / strips; };
    for (int64_t s = 0; s < strips; ++s) {
      const StridedMatrix strip{a.data + bound(s) * a.row_stride, a.row_stride, a.column_stride};
      pack_strip(Layout{}, strip, bound(s + 1) - bound(s), m - bound(s), depth, space.a + s * Layout::strip);
    }
    for (int64_t s = 0; s < strips; ++s) {
      multiply_strip<Layout>(space.a + s * Layout::strip, static_cast<int>(bound(s + 1) - bound(s)), space.b,
                             depth, columns, c + bound(s) * c_row_stride, c_row_stride, add);
    }
  }
}

StridedMatrix part(const StridedMatrix& x, int64_t row, int64_t column) {
  return {x.data + row * x.row_stride + column * x.column_stride, x.row_stride, x.column_stride};
}

void clear(const GemmJob& job) {
  for (int64_t i = 0; i < job.m; ++i) {
    for (int64_t j = 0; j < job.n; ++j) job.c[i * job.c_row_stride + j] = 0.0f;
  }
}

void multiply(const GemmJob& job, Workspace& space) {
  for (int64_t j = 0; j < job.n; j += kColumns) {
    const int64_t columns = smaller(kColumns, job.n - j);
    for (int64_t p = 0; p < job.k; p += kDepth) {
      const int64_t depth = smaller(kDepth, job.k - p);
      pack_b(part(job.b, p, j), depth, columns, space.b);
      const StridedMatrix a = part(job.a, 0, p);
      if (a.column_stride == 1) {
        multiply_rows<RowsOfA>(a, job.m, depth, columns, job.c + j, job.c_row_stride, p > 0, space);
      } else {
        multiply_rows<ColumnsOfA>(a, job.m, depth, columns, job.c + j, job.c_row_stride, p > 0, space);
      }
    }
  }
}

}  // namespace
}  // namespace FRUGALORE_ISA_NAMESPACE

template <Isa isa>
void run(const GemmJob& job) {
  if (job.m == 0 || job.n == 0) return;
  if (job.k == 0) return clear(job);
  // Every thread packs all of the operand that is not split, so that is the smaller one. There are no more
  // ranges than threads, and each has a workspace of its own.
  const bool by_rows = job.m >= job.n;
  const int64_t count = by_rows ? job.m : job.n, unit = by_rows ? 1 : kStripColumns;
  const int64_t work = (by_rows ? job.n : job.m) * job.k;
  int64_t grain = ceil_div(count, int64_t{thread_count()});
  grain = ceil_div(larger(grain, kWorthAThread / work), unit) * unit;
  const std::unique_ptr<Workspace[]> spaces(new Workspace[static_cast<size_t>(ceil_div(count, grain))]);
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    GemmJob range = job;
    if (by_rows) {
      range.m = end - begin;
      range.a = part(job.a, begin, 0);
      range.c += begin * job.c_row_stride;
    } else {
      range.n = end - begin;
      range.b = part(job.b, 0, begin);
      range.c += begin;
    }
    multiply(range, spaces[begin / grain]);
  });
}

template void run<kIsa>(const GemmJob&);

}  // namespace frugalore::cpu
