// What the AdamW kernels share: batches of tensors that travel as a kernel parameter, the launch that
// advances their progress, and the write of the weights. No host round trip: kernels read lr, t and the
// bias corrections from device memory, and launches are ordered by the stream.
#pragma once

#include "core/adamw.h"
#include "core/adamw8bit.h"
#include "core/groups.h"
#include "core/visit.h"
#include "cuda/launch.h"
#include "cuda/quad.h"
#include "cuda/warp.h"

namespace frugalore::cuda {

constexpr int64_t kAdamChunk = 4096;  // elements that a block takes at a time, all of one tensor

// The same for one kind of tensor: with 8-bit moments, a quantisation block for each of eight warps.
template <class Tensor>
constexpr int64_t kAdamChunkOf = kAdamChunk;
template <>
constexpr int64_t kAdamChunkOf<Adamw8bitTensor> = 8 * kAdam8bitBlock;

// How many tensors of this size keep the parameters of a launch below 4 KiB; at most a warp of them.
constexpr int tensors_in_a_batch(size_t tensor_bytes) {
  const int most = static_cast<int>(3840 / (tensor_bytes + sizeof(int64_t)));
  return most < kWarpSize ? most : kWarpSize;
}

template <class Tensor>
struct TensorBatch {
  static constexpr int kMost = tensors_in_a_batch(sizeof(Tensor));
  Tensor tensor[kMost];
  int64_t first_chunk[kMost + 1];
  int count;
};

// Calls body(batch) for all tensors, a batch at a time, and stops at the first error.
template <class Tensor, class Body>
cudaError_t for_batches(const Tensor* tensors, int64_t tensor_count, Body&& body) {
  cudaError_t status = cudaSuccess;
  for (int64_t begin = 0; begin < tensor_count && status == cudaSuccess;) {
    TensorBatch<Tensor> batch{};
    for (; begin < tensor_count && batch.count < TensorBatch<Tensor>::kMost; ++begin, ++batch.count) {
      batch.tensor[batch.count] = tensors[begin];
      batch.first_chunk[batch.count + 1] =
          batch.first_chunk[batch.count] + ceil_div(tensors[begin].count, kAdamChunkOf<Tensor>);
    }
    status = body(batch);
  }
  return status;
}

template <class Tensor>
__global__ void advance_batch_kernel(TensorBatch<Tensor> batch, AdamHyper hyper) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= batch.count) return;
  advance_progress(batch.tensor[i].progress, batch.tensor[i].beta_powers, hyper.beta1, hyper.beta2, true);
}

// `direction`, first launch: marks the call as refused by -1 in the record's last word, which otherwise
// holds 0 or 1.
template <class T>
__global__ void check_direction_kernel(const T* r, int64_t count, int64_t* progress) {
  bool refused = false;
  for (int64_t i = 4 * thread_in_grid(); i < count; i += 4 * threads_in_grid()) {
    const Quad<float> g = load_floats(r + i, static_cast<int>(count - i < 4 ? count - i : 4));
    for (int j = 0; j < 4; ++j) refused = refused || !adam_direction_accepts(g.at[j]);
  }
  if (refused) {
    atomicExch(reinterpret_cast<unsigned long long*>(progress + kProgressAppliedNow), ~0ull);
  }
}

// Second launch, one thread: counts the call.
template <class Hyper>
__global__ void advance_direction_kernel(int64_t* progress, double* beta_powers, Hyper hyper) {
  if (threadIdx.x != 0) return;
  advance_progress(progress, beta_powers, hyper.beta1, hyper.beta2, progress[kProgressAppliedNow] != -1);
}

template <class Job>
cudaError_t check_direction(const Job& job, cudaStream_t stream) {
  return visit_float(job.r_dtype, job.r, [&](auto* r) {
    using T = std::remove_pointer_t<decltype(r)>;
    return launch(check_direction_kernel<T>, LaunchShape{block_count(job.count, kAdamChunk), 256}, stream, r,
                  job.count, job.progress);
  });
}

template <class Job>
cudaError_t begin_direction(const Job& job, cudaStream_t stream) {
  const cudaError_t status = check_direction(job, stream);
  if (status != cudaSuccess) return status;
  return launch(advance_direction_kernel<AdamHyper>, LaunchShape{1, 32}, stream, job.progress,
                job.beta_powers, job.hyper);
}

// The scalars of one tensor within `step`, in shared memory.
struct AdamStepContext {
  AdamScalars scalars;
  AdamWriteScalars write;
  RandomStream stream;
};

template <class Tensor>
__device__ inline AdamStepContext adam_step_context(const AdamHyper& hyper, const AdamWrite& write,
                                                    const Tensor& tensor) {
  return AdamStepContext{adam_scalars(hyper, tensor.beta_powers), adam_write_scalars(write),
                         adam_random_stream(write, tensor.tensor_id, tensor.progress)};
}

// Runs body(tensor, context, chunk of that tensor) over all chunks of a batch, where context =
// make_context(tensor) is in shared memory. The whole block calls it.
template <class Context, class Tensor, class MakeContext, class Body>
__device__ inline void for_chunks_of(const TensorBatch<Tensor>& batch, MakeContext&& make_context,
                                     Body&& body) {
  __shared__ Context context;
  const int64_t chunks = batch.first_chunk[batch.count];
  int slot = 0, prepared = -1;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    while (chunk >= batch.first_chunk[slot + 1]) ++slot;
    if (slot != prepared) {
      __syncthreads();
      if (threadIdx.x == 0) context = make_context(batch.tensor[slot]);
      __syncthreads();
      prepared = slot;
    }
    body(batch.tensor[slot], context, chunk - batch.first_chunk[slot]);
  }
}

template <class Tensor, class Body>
__device__ inline void for_chunks(const TensorBatch<Tensor>& batch, const AdamHyper& hyper,
                                  const AdamWrite& write, Body&& body) {
  for_chunks_of<AdamStepContext>(
      batch, [&](const Tensor& tensor) { return adam_step_context(hyper, write, tensor); }, body);
}

template <class T>
__device__ inline void store_weights(T* param, const Quad<float>& w, int n, const PhiloxWords& words,
                                     bool stochastic) {
  Quad<T> quad;
  for (int j = 0; j < 4; ++j) quad.at[j] = adam_weight<T>(w.at[j], words.word[j], stochastic);
  store_quad(param, quad, n);
}

// Stores the parameters index ... index+n-1 (index % 4 == 0) in their dtype.
template <class Tensor>
__device__ inline void store_params(const Tensor& tensor, const RandomStream& stream, bool stochastic,
                                    int64_t index, const Quad<float>& w, int n) {
  if (tensor.param_dtype == DType::f32) {
    store_quad(static_cast<float*>(tensor.param) + index, w, n);
    return;
  }
  PhiloxWords words{};
  if (stochastic) words = philox4x32(stream, static_cast<uint64_t>(index) >> 2);
  if (tensor.param_dtype == DType::bf16) {
    store_weights(static_cast<bf16*>(tensor.param) + index, w, n, words, stochastic);
  } else {
    store_weights(static_cast<f16*>(tensor.param) + index, w, n, words, stochastic);
  }
}

// Steps parameters index ... index+n-1 (index % 4 == 0); m and v become the fresh moments. Returns how
// many elements were skipped.
template <class Tensor>
__device__ inline int step_quad(const Tensor& tensor, const AdamStepContext& context, bool stochastic,
                                int64_t index, int n, Quad<float>& m, Quad<float>& v) {
  const Quad<float> g = load_floats(tensor.grad, tensor.grad_dtype, index, n);
  Quad<float> w = load_floats(tensor.param, tensor.param_dtype, index, n);
  int skipped = 0;
  for (int j = 0; j < 4; ++j) {
    const AdamElement element =
        adam_element(context.scalars, context.write, w.at[j], g.at[j], m.at[j], v.at[j]);
    w.at[j] = element.w;
    m.at[j] = element.m;
    v.at[j] = element.v;
    skipped += j < n ? element.skipped : 0;
  }
  store_params(tensor, context.stream, stochastic, index, w, n);
  return skipped;
}

template <class T>
__device__ inline void zero_quad(T* data, int n) {
  store_quad(data, Quad<T>{}, n);
}

// r becomes its direction; m and v become the fresh moments.
template <class T>
__device__ inline void direction_quad(const AdamScalars& scalars, T* r, int n, Quad<float>& m,
                                      Quad<float>& v) {
  const Quad<float> g = load_floats(r, n);
  Quad<T> direction;
  for (int j = 0; j < 4; ++j) {
    m.at[j] = adam_exp_avg(scalars, m.at[j], g.at[j]);
    v.at[j] = adam_exp_avg_sq(scalars, v.at[j], g.at[j]);
    direction.at[j] = from_float<T>(adam_direction(scalars, m.at[j], v.at[j]));
  }
  store_quad(r, direction, n);
}

__device__ inline void count_skipped(int64_t* progress, int skipped) {
  if (skipped == 0) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(progress + kProgressSkipped),
            static_cast<unsigned long long>(skipped));
}

}  // namespace frugalore::cuda
