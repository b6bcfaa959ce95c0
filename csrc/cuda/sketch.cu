// Random signs (core/sketch.h). A thread writes a quad of elements. Bytes per element: one write.
#include "core/sketch.h"

#include "core/groups.h"
#include "core/visit.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/random_quads.h"
#include "cuda/warp.h"

namespace frugalore::cuda {
namespace {

constexpr unsigned kThreads = 256;

template <class T>
__global__ void rademacher_kernel(RandomStream stream, T* out, int64_t count, uint64_t first) {
  const bool aligned = quads_are_aligned(out, first);
  const int64_t quads = quads_in_run(first, count);
  for (int64_t i = thread_in_grid(); i < quads; i += threads_in_grid()) {
    const RunQuad quad = quad_of_run(first, count, i);
    const PhiloxWords words = philox4x32(stream, quad.quad);
    Quad<T> signs;
#pragma unroll
    for (int j = 0; j < 4; ++j) signs.at[j] = from_float<T>(rademacher(words.word[j]));
    store_quad(out, quad, aligned, signs);
  }
}

}  // namespace

cudaError_t run(const RademacherJob& job, cudaStream_t stream) {
  const LaunchShape shape{block_count(ceil_div(job.count + 3, 4), kThreads), kThreads};
  return visit_float(job.dtype, job.out, [&](auto* out) {
    using T = std::remove_pointer_t<decltype(out)>;
    return launch(rademacher_kernel<T>, shape, stream, job.stream, out, job.count,
                  static_cast<uint64_t>(job.first_index));
  });
}

}  // namespace frugalore::cuda
