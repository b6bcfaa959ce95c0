// The choice of columns or rows (core/selection.h), made by one block: it is made once a period for as many
// indices as a layer has columns. Words are drawn anew in each pass, so nothing but counts is stored.
#include "core/selection.h"

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/quad.h"
#include "cuda/warp.h"

namespace frugalore::cuda {
namespace {

constexpr unsigned kThreads = 1024;
constexpr int kWarps = kThreads / kWarpSize;

// The words of four indices, of which the first n are there.
struct WordQuad {
  PhiloxWords words;
  int n;
};

__device__ inline WordQuad load_words(const SelectJob& job, int64_t quad) {
  return WordQuad{philox4x32(job.stream, static_cast<uint64_t>(quad)), quad_length(job.count - 4 * quad)};
}

// Adds the words that agree with the digits which are known to the counts of their next digit.
__device__ inline void count_digits(const SelectJob& job, const SelectThreshold& known, int digit,
                                    uint32_t* counts) {
  const int64_t quads = ceil_div(job.count, 4);
  for (int64_t quad = threadIdx.x; quad < quads; quad += kThreads) {
    const WordQuad w = load_words(job, quad);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j < w.n && select_agrees(known, digit, w.words.word[j])) {
        atomicAdd(&counts[select_digit(digit, w.words.word[j])], 1u);
      }
    }
  }
}

// Two counts in one word, which hold those of a round of the block: of the words below the threshold, and of
// those equal to it.
__device__ inline uint32_t pack_counts(const SelectThreshold& threshold, const WordQuad& w) {
  uint32_t packed = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint32_t word = w.words.word[j];
    if (j < w.n) packed += word < threshold.word ? 1u : (word == threshold.word ? 1u << 16 : 0u);
  }
  return packed;
}

struct BlockSum {
  uint32_t before, all;  // of the threads before this one, of all threads
};

// All threads of the block call it.
__device__ inline BlockSum block_prefix_sum(uint32_t value, uint32_t* of_warp) {
  const int lane = lane_index(), warp = static_cast<int>(threadIdx.x) / kWarpSize;
  uint32_t through = value;  // the sum of the warp up to this lane
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const uint32_t other = __shfl_up_sync(kFullWarp, through, offset);
    if (lane >= offset) through += other;
  }
  if (lane == kWarpSize - 1) of_warp[warp] = through;
  __syncthreads();
  BlockSum sum{through - value, 0};
  for (int i = 0; i < kWarps; ++i) {
    if (i == warp) sum.before += sum.all;
    sum.all += of_warp[i];
  }
  __syncthreads();  // of_warp is written again
  return sum;
}

__global__ void __launch_bounds__(kThreads) select_kernel(SelectJob job) {
  __shared__ uint32_t counts[kSelectBins], of_warp[kWarps];
  __shared__ SelectThreshold threshold;
  if (threadIdx.x == 0) threshold = SelectThreshold{0, static_cast<uint32_t>(job.chosen_count)};
  for (int digit = 0; digit < kSelectDigits; ++digit) {
    for (int i = static_cast<int>(threadIdx.x); i < kSelectBins; i += kThreads) counts[i] = 0;
    __syncthreads();
    count_digits(job, threshold, digit, counts);
    __syncthreads();
    if (threadIdx.x == 0) select_refine(threshold, digit, counts);
    __syncthreads();
  }
  const SelectThreshold edge = threshold;
  uint32_t less = 0, equal = 0;  // before the round
  const int64_t quads = ceil_div(job.count, 4);
  for (int64_t first = 0; first < quads; first += kThreads) {
    const int64_t quad = first + threadIdx.x;
    const WordQuad w = load_words(job, quad);
    const BlockSum sum = block_prefix_sum(pack_counts(edge, w), of_warp);
    uint32_t own_less = less + (sum.before & 0xffffu), own_equal = equal + (sum.before >> 16);
    Quad<int32_t> below;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t word = w.words.word[j], before = selected_before(edge, own_less, own_equal);
      below.at[j] = static_cast<int32_t>(before);
      own_less += word < edge.word ? 1 : 0;
      own_equal += word == edge.word ? 1 : 0;
      if (j < w.n && selected_before(edge, own_less, own_equal) > before) {
        job.chosen[before] = static_cast<int32_t>(4 * quad + j);
      }
    }
    store_quad(job.below + 4 * quad, below, w.n);
    less += sum.all & 0xffffu;
    equal += sum.all >> 16;
  }
  if (threadIdx.x == 0) job.below[job.count] = static_cast<int32_t>(job.chosen_count);
}

}  // namespace

cudaError_t run(const SelectJob& job, cudaStream_t stream) {
  return launch(select_kernel, LaunchShape{1, kThreads}, stream, job);
}

}  // namespace frugalore::cuda
