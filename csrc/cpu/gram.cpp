// The lower triangle is cut into square tiles, which the threads take one after the other. For each chunk of
// columns a tile converts its rows to double once, into packed strips (cpu/strips.h): those of its columns
// stay in L2, one strip of its rows at a time in L1. The upper triangle is a copy.
#include "core/gram.h"

#include <atomic>
#include <memory>

#include "cpu/kernels.h"
#include "cpu/strips.h"
#include "cpu/thread_pool.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {

constexpr int64_t kTileEdges[] = {240, 120, 48};  // multiples of every kStrip
constexpr int64_t kTilesPerThread = 3;
constexpr int64_t kWorthAThread = int64_t{1} << 19;  // multiply-adds
constexpr int64_t kMirrorBlock = 32;

struct Workspace {
  alignas(64) double right[kTileEdges[0] * kGramChunk];
  alignas(64) double left[kStrip * kGramChunk];
};

int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// Blocks of one triangle, its diagonal included.
int64_t triangle(int64_t blocks) {
  return blocks * (blocks + 1) / 2;
}

// The tile's edge changes no bit: small enough that there are tiles for every thread.
int64_t tile_edge(int64_t rows, int threads) {
  for (const int64_t edge : kTileEdges) {
    if (threads == 1 || triangle(ceil_div(rows, edge)) >= kTilesPerThread * threads) return edge;
  }
  return kTileEdges[2];
}

// Rows [first, first + count) of a chunk as doubles [depth][kStrip]; rows that are missing become zeros.
void pack(const GramJob& job, int64_t first, int64_t count, int64_t column, int64_t depth, double* strip) {
  const float* from = job.x + first * job.row_stride + column;
  const int64_t stride = job.row_stride;
  if (count < kStrip) {
    for (int64_t p = 0; p < depth; ++p) {
      for (int64_t i = 0; i < kStrip; ++i)
        strip[p * kStrip + i] = i < count ? double{from[i * stride + p]} : 0.0;
    }
    return;
  }
  for (int64_t p = 0; p < depth; ++p) {
#pragma GCC unroll 24
    for (int64_t i = 0; i < kStrip; ++i) strip[p * kStrip + i] = from[i * stride + p];
  }
}

// One strip of rows times one strip of columns, added to the Gram matrix (or written, for the first chunk).
void multiply_strips(const GramJob& job, const double* left, const double* right, int64_t depth, int64_t row,
                     int64_t column, bool add) {
  const bool whole_columns = column + kStrip <= job.rows;
  for (int64_t i = 0; i < kStrip && row + i < job.rows; i += kTileRows) {
    double* out = job.gram + (row + i) * job.rows + column;
    if (whole_columns && row + i + kTileRows <= job.rows) {
      multiply_tile(left + i, right, depth, [&](int r, int v, DoubleVector sum) {
        double* to = out + r * job.rows + v * kDoubleLanes;
        store_doubles(to, add ? load_doubles(to) + sum : sum);
      });
      continue;
    }
    double sums[kTileRows * kStrip];
    multiply_tile(left + i, right, depth, [&](int r, int v, DoubleVector sum) {
      store_doubles(sums + r * kStrip + v * kDoubleLanes, sum);
    });
    const int64_t rows = smaller(kTileRows, job.rows - row - i), columns = smaller(kStrip, job.rows - column);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        double* to = out + r * job.rows + c;
        *to = add ? *to + sums[r * kStrip + c] : sums[r * kStrip + c];
      }
    }
  }
}

// The tile of rows [row, row_end) and of columns from `column`; of one on the diagonal, strips that end above
// the diagonal are left out.
void compute_tile(const GramJob& job, int64_t row, int64_t row_end, int64_t column, int64_t column_end,
                  Workspace& space) {
  for (int64_t begin = 0; begin < job.columns; begin += kGramChunk) {
    const int64_t depth = smaller(kGramChunk, job.columns - begin);
    for (int64_t j = column; j < column_end; j += kStrip) {
      pack(job, j, smaller(kStrip, job.rows - j), begin, depth, space.right + (j - column) * depth);
    }
    for (int64_t i = row; i < row_end; i += kStrip) {
      const double* left = space.left;
      if (row == column) {
        left = space.right + (i - column) * depth;
      } else {
        pack(job, i, smaller(kStrip, job.rows - i), begin, depth, space.left);
      }
      for (int64_t j = column; j < column_end && j <= i; j += kStrip) {
        multiply_strips(job, left, space.right + (j - column) * depth, depth, i, j, begin > 0);
      }
    }
  }
}

void compute_tile(const GramJob& job, int64_t edge, int64_t index, Workspace& space) {
  int64_t row = 0;
  while (triangle(row + 1) <= index) ++row;
  const int64_t column = index - triangle(row);
  compute_tile(job, row * edge, smaller((row + 1) * edge, job.rows), column * edge,
               smaller((column + 1) * edge, job.rows), space);
}

// Copies the lower triangle's columns [begin, end) into the upper triangle's rows.
void mirror(const GramJob& job, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < job.rows; block += kMirrorBlock) {
    const int64_t block_end = smaller(block + kMirrorBlock, job.rows);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = block > i ? block : i + 1; j < block_end; ++j) {
        job.gram[i * job.rows + j] = job.gram[j * job.rows + i];
      }
    }
  }
}

}  // namespace
}  // namespace FRUGALORE_ISA_NAMESPACE

template <Isa isa>
void run(const GramJob& job) {
  if (job.columns == 0) {
    for (int64_t i = 0; i < job.rows * job.rows; ++i) job.gram[i] = 0.0;
    return;
  }
  const bool worth_threads = job.rows * job.rows * job.columns / 2 > kWorthAThread;
  const int threads = worth_threads ? thread_count() : 1;
  const int64_t edge = tile_edge(job.rows, threads), tiles = triangle(ceil_div(job.rows, edge));
  const std::unique_ptr<Workspace[]> spaces(new Workspace[static_cast<size_t>(smaller(threads, tiles))]);
  std::atomic<int64_t> next{0};
  parallel_for(smaller(threads, tiles), 1, [&](int64_t worker, int64_t) {
    for (int64_t tile = next++; tile < tiles; tile = next++) compute_tile(job, edge, tile, spaces[worker]);
  });
  parallel_for(job.rows, worth_threads ? kMirrorBlock : job.rows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kMirrorBlock) mirror(job, i, smaller(i + kMirrorBlock, end));
  });
}

template void run<kIsa>(const GramJob&);

}  // namespace frugalore::cpu
