// SGD with momentum and Lion (core/momentum.h). Bytes per element, float32: step 20, direction 16 and 4 more
// to look at r first.
#include "core/momentum.h"

#include "cuda/adam_step.h"
#include "cuda/kernels.h"

namespace frugalore::cuda {
namespace {

constexpr unsigned kThreads = 256;

// Kernels are templates over a bool, which ptxas's reports name legibly.
constexpr MomentumRule rule_of(bool is_lion) {
  return is_lion ? MomentumRule::lion : MomentumRule::sgdm;
}

// The scalars of one tensor within `step`, in shared memory.
struct MomentumContext {
  MomentumScalars scalars;
  AdamWriteScalars write;
  RandomStream stream;
};

__global__ void advance_momentum_batch_kernel(TensorBatch<MomentumTensor> batch) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < batch.count) advance_progress(batch.tensor[i].progress, true);
}

__global__ void advance_momentum_direction_kernel(int64_t* progress) {
  if (threadIdx.x == 0) advance_progress(progress, progress[kProgressAppliedNow] != -1);
}

template <bool kLion>
__global__ void momentum_step_kernel(TensorBatch<MomentumTensor> batch, MomentumHyper hyper,
                                     AdamWrite write) {
  for_chunks_of<MomentumContext>(
      batch,
      [&](const MomentumTensor& tensor) {
        return MomentumContext{momentum_scalars(hyper, tensor.progress), adam_write_scalars(write),
                               adam_random_stream(write, tensor.tensor_id, tensor.progress)};
      },
      [&](const MomentumTensor& tensor, const MomentumContext& context, int64_t chunk) {
        const int64_t begin = chunk * kAdamChunk;
        const int64_t end = begin + kAdamChunk < tensor.count ? begin + kAdamChunk : tensor.count;
        int skipped = 0;
        for (int64_t i = begin + 4 * threadIdx.x; i < end; i += 4 * blockDim.x) {
          const int n = static_cast<int>(end - i < 4 ? end - i : 4);
          Quad<float> m = load_quad(tensor.momentum + i, n);
          const Quad<float> g = load_floats(tensor.grad, tensor.grad_dtype, i, n);
          Quad<float> w = load_floats(tensor.param, tensor.param_dtype, i, n);
          for (int j = 0; j < 4; ++j) {
            const MomentumElement element =
                momentum_element<rule_of(kLion)>(context.scalars, context.write, w.at[j], g.at[j], m.at[j]);
            w.at[j] = element.w;
            m.at[j] = element.m;
            skipped += j < n ? element.skipped : 0;
          }
          store_params(tensor, context.stream, write.stochastic, i, w, n);
          store_quad(tensor.momentum + i, m, n);
        }
        count_skipped(tensor.progress, skipped);
      });
}

template <bool kLion, class T>
__global__ void momentum_direction_kernel(T* r, int64_t count, float* momentum, const int64_t* progress,
                                          MomentumHyper hyper) {
  const MomentumScalars scalars = momentum_scalars(hyper, progress);
  const bool applied = progress[kProgressAppliedNow] != 0;
  for (int64_t i = 4 * thread_in_grid(); i < count; i += 4 * threads_in_grid()) {
    const int n = static_cast<int>(count - i < 4 ? count - i : 4);
    if (!applied) {
      zero_quad(r + i, n);
      continue;
    }
    Quad<float> m = load_quad(momentum + i, n);
    const Quad<float> g = load_floats(r + i, n);
    Quad<T> direction;
    for (int j = 0; j < 4; ++j) {
      const float fresh = momentum_fresh(scalars, m.at[j], g.at[j]);
      direction.at[j] = from_float<T>(momentum_direction<rule_of(kLion)>(scalars, m.at[j], fresh, g.at[j]));
      m.at[j] = fresh;
    }
    store_quad(r + i, direction, n);
    store_quad(momentum + i, m, n);
  }
}

}  // namespace

cudaError_t run(const MomentumStepJob& job, cudaStream_t stream) {
  return for_batches(job.tensors, job.tensor_count, [&](const TensorBatch<MomentumTensor>& batch) {
    const cudaError_t status = launch(advance_momentum_batch_kernel, LaunchShape{1, 32}, stream, batch);
    if (status != cudaSuccess) return status;
    const LaunchShape shape{block_count(batch.first_chunk[batch.count], 1), kThreads};
    return job.hyper.rule == MomentumRule::lion
               ? launch(momentum_step_kernel<true>, shape, stream, batch, job.hyper, job.write)
               : launch(momentum_step_kernel<false>, shape, stream, batch, job.hyper, job.write);
  });
}

cudaError_t run(const MomentumDirectionJob& job, cudaStream_t stream) {
  cudaError_t status = check_direction(job, stream);
  if (status != cudaSuccess) return status;
  status = launch(advance_momentum_direction_kernel, LaunchShape{1, 32}, stream, job.progress);
  if (status != cudaSuccess) return status;
  const LaunchShape shape{block_count(job.count, kAdamChunk), kThreads};
  return visit_float(job.r_dtype, job.r, [&](auto* r) {
    using T = std::remove_pointer_t<decltype(r)>;
    return job.hyper.rule == MomentumRule::lion ? launch(momentum_direction_kernel<true, T>, shape, stream, r,
                                                         job.count, job.momentum, job.progress, job.hyper)
                                                : launch(momentum_direction_kernel<false, T>, shape, stream,
                                                         r, job.count, job.momentum, job.progress, job.hyper);
  });
}

}  // namespace frugalore::cuda
