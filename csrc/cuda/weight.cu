// The update of a float weight (core/weight.h). A thread takes a quad of elements, which share a Philox
// counter. Bytes per element: weight read and written, update read (6 for bfloat16).
#include "core/weight.h"

#include "core/visit.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/random_quads.h"
#include "cuda/warp.h"

namespace frugalore::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kQuadsPerBlock = 4 * kThreads;  // several a thread, since a block begins by waiting for lr

template <class W, class U, bool kStochastic>
__global__ void weight_update_kernel(WeightStep step, W* weight, const U* update, int64_t count) {
  __shared__ WeightStepScalars scalars;
  if (threadIdx.x == 0) scalars = weight_step_scalars(step);
  __syncthreads();
  if (!scalars.applied) return;
  const uint64_t first = static_cast<uint64_t>(step.first_index);
  const bool weight_aligned = quads_are_aligned(weight, first);
  const bool update_aligned = quads_are_aligned(update, first);
  const int64_t quads = quads_in_run(first, count);
  for (int64_t i = thread_in_grid(); i < quads; i += threads_in_grid()) {
    const RunQuad quad = quad_of_run(first, count, i);
    Quad<W> w = {};
    Quad<U> u = {};
    load_quad(weight, quad, weight_aligned, w);
    load_quad(update, quad, update_aligned, u);
    PhiloxWords words = {};
    if (kStochastic) words = philox4x32(scalars.stream, quad.quad);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      w.at[j] = updated_weight<kStochastic>(w.at[j], to_float(u.at[j]), words.word[j], scalars.keep,
                                            scalars.coefficient);
    }
    store_quad(weight, quad, weight_aligned, w);
  }
}

}  // namespace

cudaError_t run(const WeightUpdateJob& job, cudaStream_t stream) {
  const LaunchShape shape{block_count(ceil_div(job.count + 3, 4), kQuadsPerBlock), kThreads};
  return visit_float(job.weight_dtype, job.weight, [&](auto* weight) {
    using W = std::remove_pointer_t<decltype(weight)>;
    return visit_float(job.update_dtype, job.update, [&](const auto* update) {
      using U = std::remove_const_t<std::remove_pointer_t<decltype(update)>>;
      const bool stochastic = job.step.stochastic && sizeof(W) == 2;
      return stochastic ? launch(weight_update_kernel<W, U, true>, shape, stream, job.step, weight, update,
                                 job.count)
                        : launch(weight_update_kernel<W, U, false>, shape, stream, job.step, weight, update,
                                 job.count);
    });
  });
}

}  // namespace frugalore::cuda
