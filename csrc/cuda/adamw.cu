// AdamW (core/adamw.h). Bytes per element, float32: step 28, direction 24 and 4 more to look at r first.
#include "core/adamw.h"

#include "cuda/adam_step.h"
#include "cuda/kernels.h"

namespace frugalore::cuda {
namespace {

constexpr unsigned kThreads = 256;

__global__ void adamw_step_kernel(TensorBatch<AdamwTensor> batch, AdamHyper hyper, AdamWrite write) {
  for_chunks(batch, hyper, write,
             [&](const AdamwTensor& tensor, const AdamStepContext& context, int64_t chunk) {
               const int64_t begin = chunk * kAdamChunk;
               const int64_t end = begin + kAdamChunk < tensor.count ? begin + kAdamChunk : tensor.count;
               int skipped = 0;
               for (int64_t i = begin + 4 * threadIdx.x; i < end; i += 4 * blockDim.x) {
                 const int n = static_cast<int>(end - i < 4 ? end - i : 4);
                 Quad<float> m = load_quad(tensor.exp_avg + i, n), v = load_quad(tensor.exp_avg_sq + i, n);
                 skipped += step_quad(tensor, context, write.stochastic, i, n, m, v);
                 store_quad(tensor.exp_avg + i, m, n);
                 store_quad(tensor.exp_avg_sq + i, v, n);
               }
               count_skipped(tensor.progress, skipped);
             });
}

template <class T>
__global__ void adamw_direction_kernel(T* r, int64_t count, float* exp_avg, float* exp_avg_sq,
                                       const int64_t* progress, const double* beta_powers, AdamHyper hyper) {
  __shared__ AdamScalars scalars;
  if (threadIdx.x == 0) scalars = adam_scalars(hyper, beta_powers);
  __syncthreads();
  const bool applied = progress[kProgressAppliedNow] != 0;
  for (int64_t i = 4 * thread_in_grid(); i < count; i += 4 * threads_in_grid()) {
    const int n = static_cast<int>(count - i < 4 ? count - i : 4);
    if (!applied) {
      zero_quad(r + i, n);
      continue;
    }
    Quad<float> m = load_quad(exp_avg + i, n), v = load_quad(exp_avg_sq + i, n);
    direction_quad(scalars, r + i, n, m, v);
    store_quad(exp_avg + i, m, n);
    store_quad(exp_avg_sq + i, v, n);
  }
}

}  // namespace

cudaError_t run(const AdamwStepJob& job, cudaStream_t stream) {
  return for_batches(job.tensors, job.tensor_count, [&](const TensorBatch<AdamwTensor>& batch) {
    const cudaError_t status =
        launch(advance_batch_kernel<AdamwTensor>, LaunchShape{1, 32}, stream, batch, job.hyper);
    if (status != cudaSuccess) return status;
    const LaunchShape shape{block_count(batch.first_chunk[batch.count], 1), kThreads};
    return launch(adamw_step_kernel, shape, stream, batch, job.hyper, job.write);
  });
}

cudaError_t run(const AdamwDirectionJob& job, cudaStream_t stream) {
  const cudaError_t status = begin_direction(job, stream);
  if (status != cudaSuccess) return status;
  const LaunchShape shape{block_count(job.count, kAdamChunk), kThreads};
  return visit_float(job.r_dtype, job.r, [&](auto* r) {
    using T = std::remove_pointer_t<decltype(r)>;
    return launch(adamw_direction_kernel<T>, shape, stream, r, job.count, job.exp_avg, job.exp_avg_sq,
                  job.progress, job.beta_powers, job.hyper);
  });
}

}  // namespace frugalore::cuda
