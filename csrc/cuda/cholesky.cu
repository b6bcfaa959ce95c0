// The algorithm of core/cholesky.h in blocks of 32 columns, two launches a block: `solve_kernel` factors the
// diagonal block, in every thread block anew, and does step 2; `update_kernel` does step 3. What they pass on
// is one matrix [32, size], whose column t is M[K, t] or L[t, K]ᵀ. The kind of the matrix stays on the
// device: the steps always run, and the last launch writes the identity where it is wanted.
#include "core/cholesky.h"

#include "core/groups.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/warp.h"

namespace frugalore::cuda {
namespace {

constexpr int kBlock = static_cast<int>(kCudaCholeskyBlock);
constexpr unsigned kThreads = 256, kSolveThreads = 64;
constexpr int kTile = 64, kLines = 16, kPerThread = kTile / kLines;

struct Workspace {
  double* header;  // trace, shift, kind
  double* flags;   // of each block of copy_kernel: 1 if it saw an element that is not finite
  double* w;       // [size, size]
  double* solved;  // [kBlock, size]
};

Workspace workspace_of(const CholeskyInverseJob& job) {
  double* flags = job.workspace + kCholeskyHeader;
  double* w = flags + kCholeskyFlags;
  return {job.workspace, flags, w, w + job.size * job.size};
}

__device__ inline GramScale read_scale(const double* header) {
  return {header[0], header[1], static_cast<GramKind>(static_cast<int>(header[2]))};
}

__global__ void copy_kernel(CholeskyInverseJob job, Workspace space) {
  const int64_t count = job.size * job.size;
  bool finite = true;
  for (int64_t i = thread_in_grid(); i < count; i += threads_in_grid()) {
    if (i % job.size > i / job.size) continue;
    finite = finite && is_finite(job.gram[i]);
    space.w[i] = job.gram[i];
  }
  const bool all_finite = __syncthreads_and(finite ? 1 : 0) != 0;
  if (threadIdx.x == 0) space.flags[blockIdx.x] = all_finite ? 0.0 : 1.0;
}

// One block: the trace, in a fixed order, and the flags.
__global__ void scale_kernel(CholeskyInverseJob job, Workspace space, int64_t flags) {
  __shared__ double sums[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0.0;
  for (int64_t i = thread; i < job.size; i += kThreads) sum += job.gram[i * (job.size + 1)];
  sums[thread] = sum;
  const bool finite = __syncthreads_and(thread >= flags || space.flags[thread] == 0.0 ? 1 : 0) != 0;
  if (thread != 0) return;
  double trace = 0.0;
  for (unsigned i = 0; i < kThreads; ++i) trace += sums[i];
  const GramScale scale = gram_scale(trace, job.shift, finite);
  space.header[0] = scale.trace;
  space.header[1] = scale.shift;
  space.header[2] = static_cast<int>(scale.kind);
}

struct Factor {
  double block[kBlock][kBlock + 1];  // the Schur complement; its diagonal stays as it was before each pivot
  double l[kBlock][kBlock + 1];      // below the diagonal, zeros elsewhere
  double inverse_root[kBlock], kept_inverse_root[kBlock];
};

// Step 1, by all threads of a block.
__device__ inline void factor_block(const CholeskyInverseJob& job, const Workspace& space, int64_t first,
                                    int count, Factor& factor) {
  const GramScale scale = read_scale(space.header);
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  for (int e = thread; e < kBlock * kBlock; e += threads) {
    const int i = e / kBlock, j = e % kBlock;
    factor.block[i][j] = j <= i && i < count ? space.w[(first + i) * job.size + first + j] : 0.0;
    factor.l[i][j] = 0.0;
  }
  __syncthreads();
  for (int j = 0; j < count; ++j) {
    if (thread < kBlock) {
      const Pivot pivot =
          pivot_of(factor.block[j][j], job.gram[(first + j) * (job.size + 1)], scale, job.size);
      const double inverse = 1.0 / pivot.root, kept = pivot.kept ? inverse : 0.0;
      if (thread > j) factor.l[thread][j] = factor.block[thread][j] * kept;
      if (thread == j) {
        factor.inverse_root[j] = inverse;
        factor.kept_inverse_root[j] = kept;
      }
    }
    __syncthreads();
    for (int e = thread; e < kBlock * kBlock; e += threads) {
      const int i = e / kBlock, q = e % kBlock;
      if (q <= j || q > i) continue;
      factor.block[i][q] = fma(-factor.l[i][j], factor.l[q][j], factor.block[i][q]);
    }
    __syncthreads();
  }
}

// Column t of M[K, :] for t <= K, row t of L[:, K] for t > K: a thread each. Its elements lie in shared
// memory: in registers they and the compiler's early loads of L would spill.
__global__ void __launch_bounds__(kSolveThreads)
    solve_kernel(CholeskyInverseJob job, Workspace space, int64_t first) {
  __shared__ Factor factor;
  __shared__ double solved[kBlock][kSolveThreads];
  const int count = static_cast<int>(job.size - first < kBlock ? job.size - first : kBlock);
  const int thread = static_cast<int>(threadIdx.x);
  factor_block(job, space, first, count, factor);
  if (blockIdx.x == 0 && thread < count) job.pivots[first + thread] = factor.block[thread][thread];
  for (int64_t t = thread_in_grid(); t < job.size; t += threads_in_grid()) {
    const bool below = t >= first + count, inside = t >= first && !below;
    const double* inverse_root = below ? factor.kept_inverse_root : factor.inverse_root;
    const double* from = below ? space.w + t * job.size + first : space.w + first * job.size + t;
    const int64_t step = below ? 1 : job.size;
    for (int p = 0; p < count; ++p) {
      double x = inside ? (t == first + p ? 1.0 : 0.0) : from[p * step];
#pragma unroll 8
      for (int q = 0; q < p; ++q) x = fma(-factor.l[p][q], solved[q][thread], x);
      x *= inverse_root[p];
      solved[p][thread] = x;
      space.solved[p * job.size + t] = x;
      job.inverse[(first + p) * job.size + t] = below ? 0.0f : finite_float(x);
    }
  }
}

// Step 3 for whole blocks of columns: tiles of the rows from `next` = first + kBlock.
__global__ void __launch_bounds__(kThreads)
    update_kernel(CholeskyInverseJob job, Workspace space, int64_t first) {
  __shared__ double left[kBlock][kTile], right[kBlock][kTile];
  const int x = static_cast<int>(threadIdx.x) % kLines, y = static_cast<int>(threadIdx.x) / kLines;
  const int64_t next = first + kBlock, size = job.size;
  const int64_t columns = ceil_div(size, kTile), items = ceil_div(size - next, kTile) * columns;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t row = next + item / columns * kTile, column = item % columns * kTile;
    if (column >= row + kTile) continue;  // above the diagonal
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < kBlock * kTile; e += static_cast<int>(kThreads)) {
      const int p = e / kTile, i = e % kTile;
      left[p][i] = row + i < size ? space.solved[p * size + row + i] : 0.0;
      right[p][i] = column + i < size ? space.solved[p * size + column + i] : 0.0;
    }
    __syncthreads();
    double sum[kPerThread][kPerThread] = {};
#pragma unroll 8
    for (int p = 0; p < kBlock; ++p) {
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
        for (int j = 0; j < kPerThread; ++j) {
          sum[i][j] = fma(left[p][y + i * kLines], right[p][x + j * kLines], sum[i][j]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const int64_t to_row = row + y + i * kLines, to_column = column + x + j * kLines;
        if (to_row >= size || to_column > to_row) continue;
        double* to = space.w + to_row * size + to_column;
        const bool starts = to_column >= first && to_column < next;
        *to = starts ? -sum[i][j] : *to - sum[i][j];
      }
    }
  }
}

__global__ void identity_kernel(CholeskyInverseJob job, Workspace space) {
  const GramScale scale = read_scale(space.header);
  if (scale.kind == GramKind::usable) return;
  const int64_t count = job.size * job.size;
  for (int64_t i = thread_in_grid(); i < count; i += threads_in_grid()) {
    const bool diagonal = i / job.size == i % job.size;
    job.inverse[i] = diagonal ? 1.0f : 0.0f;
    if (!diagonal) continue;
    job.pivots[i / job.size] =
        scale.kind == GramKind::not_finite ? bit_cast<double>(uint64_t{0x7ff8000000000000u}) : job.gram[i];
  }
}

}  // namespace

cudaError_t run(const CholeskyInverseJob& job, cudaStream_t stream) {
  const Workspace space = workspace_of(job);
  const unsigned wanted = block_count(job.size * job.size, kThreads);
  const unsigned blocks = wanted < kCholeskyFlags ? wanted : static_cast<unsigned>(kCholeskyFlags);
  cudaError_t status = launch(copy_kernel, {blocks, kThreads}, stream, job, space);
  if (status != cudaSuccess) return status;
  status = launch(scale_kernel, {1, kThreads}, stream, job, space, static_cast<int64_t>(blocks));
  for (int64_t first = 0; first < job.size && status == cudaSuccess; first += kBlock) {
    status = launch(solve_kernel, {block_count(job.size, kSolveThreads), kSolveThreads}, stream, job, space,
                    first);
    if (status != cudaSuccess || first + kBlock >= job.size) break;
    const int64_t tiles = ceil_div(job.size - first - kBlock, kTile) * ceil_div(job.size, kTile);
    status = launch(update_kernel, {block_count(tiles, 1), kThreads}, stream, job, space, first);
  }
  if (status != cudaSuccess) return status;
  return launch(identity_kernel, {blocks, kThreads}, stream, job, space);
}

}  // namespace frugalore::cuda
