// The Gram matrix (core/gram.h). A block computes a tile of kTile x kTile elements of the lower triangle,
// over all columns or, of a matrix with few tiles, over one chunk of them; a thread has kPerThread² elements
// of it, kLines apart. Rows are converted to double once, on their way into shared memory.
#include "core/gram.h"

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/warp.h"

namespace frugalore::cuda {
namespace {

constexpr int kTile = 64, kDepth = 16, kLines = 16, kPerThread = kTile / kLines;
constexpr unsigned kThreads = kLines * kLines;
constexpr int kPitch = kTile + 1;  // odd, so that the columns of a row lie in different banks

struct Tile {
  int64_t row, column;  // of its first element
};

__device__ inline Tile tile_of_triangle(int64_t index) {
  int64_t row = 0;
  for (; index > row; ++row) index -= row + 1;
  return {row * kTile, index * kTile};
}

// Columns [begin, begin + kDepth) of kTile rows, as doubles; what lies beyond `end` or below the matrix is
// zero.
__device__ inline void load_rows(const GramJob& job, int64_t row, int64_t begin, int64_t end,
                                 double (*to)[kPitch]) {
  const int column = static_cast<int>(threadIdx.x) % kDepth;
#pragma unroll
  for (int i = 0; i < kTile; i += kThreads / kDepth) {
    const int line = i + static_cast<int>(threadIdx.x) / kDepth;
    const bool there = row + line < job.rows && begin + column < end;
    to[column][line] = there ? double{job.x[(row + line) * job.row_stride + begin + column]} : 0.0;
  }
}

// Adds the chunk that starts at column `begin` to the thread's elements of the tile.
__device__ inline void add_chunk(const GramJob& job, Tile tile, int64_t begin, double (*left)[kPitch],
                                 double (*right)[kPitch], double (&total)[kPerThread][kPerThread]) {
  const int x = static_cast<int>(threadIdx.x) % kLines, y = static_cast<int>(threadIdx.x) / kLines;
  const int64_t end = begin + kGramChunk < job.columns ? begin + kGramChunk : job.columns;
  double sum[kPerThread][kPerThread] = {};
  for (int64_t at = begin; at < end; at += kDepth) {
    __syncthreads();
    load_rows(job, tile.row, at, end, left);
    load_rows(job, tile.column, at, end, right);
    __syncthreads();
#pragma unroll
    for (int p = 0; p < kDepth; ++p) {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) {
          sum[i][j] = fma(left[p][y + i * kLines], right[p][x + j * kLines], sum[i][j]);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) total[i][j] += sum[i][j];
  }
}

__global__ void __launch_bounds__(kThreads) gram_kernel(GramJob job, int64_t tiles, int64_t chunks) {
  __shared__ double left[kDepth][kPitch], right[kDepth][kPitch];
  const int x = static_cast<int>(threadIdx.x) % kLines, y = static_cast<int>(threadIdx.x) / kLines;
  const int64_t items = chunks > 0 ? tiles * chunks : tiles;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const Tile tile = tile_of_triangle(item % tiles);
    double total[kPerThread][kPerThread] = {};
    double* out = job.gram;
    if (chunks > 0) {
      out = job.chunks + item / tiles * job.rows * job.rows;
      add_chunk(job, tile, item / tiles * kGramChunk, left, right, total);
    } else {
      for (int64_t at = 0; at < job.columns; at += kGramChunk) add_chunk(job, tile, at, left, right, total);
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const int64_t row = tile.row + y + i * kLines, column = tile.column + x + j * kLines;
        if (row >= job.rows || column > row) continue;
        out[row * job.rows + column] = total[i][j];
        if (chunks == 0) out[column * job.rows + row] = total[i][j];
      }
    }
  }
}

__global__ void add_chunks_kernel(GramJob job, int64_t chunks) {
  const int64_t size = job.rows * job.rows;
  for (int64_t i = thread_in_grid(); i < size; i += threads_in_grid()) {
    const int64_t row = i / job.rows, column = i % job.rows;
    if (column > row) continue;
    double sum = 0.0;
    for (int64_t c = 0; c < chunks; ++c) sum += job.chunks[c * size + i];
    job.gram[i] = sum;
    job.gram[column * job.rows + row] = sum;
  }
}

}  // namespace

cudaError_t run(const GramJob& job, cudaStream_t stream) {
  const int64_t blocks = ceil_div(job.rows, kTile), tiles = blocks * (blocks + 1) / 2;
  const int64_t chunks = gram_chunks(job.rows, job.columns);
  const int64_t items = chunks > 0 ? tiles * chunks : tiles;
  const cudaError_t status =
      launch(gram_kernel, {block_count(items, 1), kThreads}, stream, job, tiles, chunks);
  if (status != cudaSuccess || chunks == 0) return status;
  return launch(add_chunks_kernel, {block_count(job.rows * job.rows, kThreads), kThreads}, stream, job,
                chunks);
}

}  // namespace frugalore::cuda
