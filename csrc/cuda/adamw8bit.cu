// AdamW with 8-bit moments (core/adamw8bit.h): one warp per quantisation block of 256, eight elements a
// lane, the maps in shared memory. Bytes per element with float32 parameters and gradients: step 16,
// direction 12 and 4 more to look at r first; 8/256 for the two absmax.
#include "core/adamw8bit.h"

#include "cuda/adam_step.h"
#include "cuda/kernels.h"

namespace frugalore::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kBlocksPerChunk = kAdamChunkOf<Adamw8bitTensor> / kAdam8bitBlock;
constexpr int kQuads = static_cast<int>(kAdam8bitBlock) / (4 * kWarpSize);  // quads of a lane
static_assert(kBlocksPerChunk * kWarpSize == kThreads, "a warp takes one quantisation block of a chunk");

// Thread blocks that fit a multiprocessor's registers without spills.
constexpr int kStepBlocks = 3, kDirectionBlocks = 4;

__device__ const DynamicTables kTables = make_dynamic_tables();

__device__ inline void copy_tables(DynamicTables& shared) {
  static_assert(sizeof(DynamicTables) % sizeof(uint32_t) == 0, "copied in words");
  const auto* from = reinterpret_cast<const uint32_t*>(&kTables);
  auto* to = reinterpret_cast<uint32_t*>(&shared);
  for (unsigned i = threadIdx.x; i < sizeof(DynamicTables) / sizeof(uint32_t); i += blockDim.x)
    to[i] = from[i];
  __syncthreads();
}

// The 8-bit state of one tensor.
struct State {
  uint8_t* exp_avg;
  float* exp_avg_absmax;
  uint8_t* exp_avg_sq;
  float* exp_avg_sq_absmax;
};

template <class Holder>
__device__ inline State state_of(const Holder& holder) {
  return State{holder.exp_avg, holder.exp_avg_absmax, holder.exp_avg_sq, holder.exp_avg_sq_absmax};
}

// A lane's elements of its quantisation block: quad q holds elements 128 q + 4 lane ... + 3, of which the
// first n[q] exist.
struct LaneMoments {
  Quad<float> m[kQuads], v[kQuads];
  int n[kQuads];
};

__device__ inline int64_t lane_offset(int quad) {
  return (static_cast<int64_t>(quad) * kWarpSize + lane_index()) * 4;
}

__device__ inline Quad<float> decode(const float* value, const uint8_t* codes, int n, float absmax) {
  const Quad<uint8_t> quad = load_quad(codes, n);
  Quad<float> x{};
  for (int j = 0; j < 4; ++j) x.at[j] = j < n ? value[quad.at[j]] * absmax : 0.0f;
  return x;
}

__device__ inline LaneMoments load_moments(const DynamicTables& tables, const State& state, int64_t block,
                                           int64_t count) {
  LaneMoments moments;
  const float absmax = state.exp_avg_absmax[block], absmax_sq = state.exp_avg_sq_absmax[block];
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int64_t first = block * kAdam8bitBlock + lane_offset(q), rest = count - first;
    moments.n[q] = quad_length(rest);
    moments.m[q] = decode(tables.signed_value, state.exp_avg + first, moments.n[q], absmax);
    moments.v[q] = decode(tables.unsigned_value, state.exp_avg_sq + first, moments.n[q], absmax_sq);
  }
  return moments;
}

// The absmax of the warp's block, from all lanes; magnitudes are ordered like their bits. Elements beyond
// the tensor's end do not count.
__device__ inline Adam8bitScale block_scale(const Quad<float> (&x)[kQuads], const int (&n)[kQuads]) {
  int32_t largest = 0;
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    for (int j = 0; j < 4; ++j) {
      const int32_t bits = j < n[q] ? bit_cast<int32_t>(x[q].at[j]) & 0x7fffffff : 0;
      largest = bits > largest ? bits : largest;
    }
  }
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const int32_t other = __shfl_xor_sync(kFullWarp, largest, offset);
    largest = other > largest ? other : largest;
  }
  return adam8bit_scale(bit_cast<float>(largest));
}

template <class Code>
__device__ inline void encode(const uint32_t* cells, const Quad<float>& x, int n, float inverse,
                              uint8_t* codes, Code code) {
  Quad<uint8_t> quad;
  for (int j = 0; j < 4; ++j) {
    const float scaled = x.at[j] * inverse;
    quad.at[j] = code(cells[dynamic_cell(scaled)], scaled);
  }
  store_quad(codes, quad, n);
}

__device__ inline void store_moments(const DynamicTables& tables, const State& state, int64_t block,
                                     const LaneMoments& moments) {
  const Adam8bitScale scale = block_scale(moments.m, moments.n);
  const Adam8bitScale scale_sq = block_scale(moments.v, moments.n);
  if (lane_index() == 0) {
    state.exp_avg_absmax[block] = scale.absmax;
    state.exp_avg_sq_absmax[block] = scale_sq.absmax;
  }
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int64_t first = block * kAdam8bitBlock + lane_offset(q);
    encode(tables.signed_cell, moments.m[q], moments.n[q], scale.inverse, state.exp_avg + first,
           [](uint32_t entry, float scaled) { return dynamic_signed_code(entry, scaled); });
    encode(tables.unsigned_cell, moments.v[q], moments.n[q], scale_sq.inverse, state.exp_avg_sq + first,
           [](uint32_t entry, float scaled) { return dynamic_unsigned_code(entry, scaled); });
  }
}

__global__ void __launch_bounds__(kThreads, kStepBlocks)
    adamw8bit_step_kernel(TensorBatch<Adamw8bitTensor> batch, AdamHyper hyper, AdamWrite write) {
  __shared__ DynamicTables tables;
  copy_tables(tables);
  for_chunks(
      batch, hyper, write, [&](const Adamw8bitTensor& tensor, const AdamStepContext& context, int64_t chunk) {
        const int64_t block = chunk * kBlocksPerChunk + threadIdx.x / kWarpSize;
        if (block * kAdam8bitBlock >= tensor.count) return;  // a whole warp
        const State state = state_of(tensor);
        LaneMoments moments = load_moments(tables, state, block, tensor.count);
        int skipped = 0;
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
          if (moments.n[q] == 0) continue;
          skipped += step_quad(tensor, context, write.stochastic, block * kAdam8bitBlock + lane_offset(q),
                               moments.n[q], moments.m[q], moments.v[q]);
        }
        store_moments(tables, state, block, moments);
        count_skipped(tensor.progress, skipped);
      });
}

template <class T>
__global__ void __launch_bounds__(kThreads, kDirectionBlocks)
    adamw8bit_direction_kernel(T* r, int64_t count, State state, const int64_t* progress,
                               const double* beta_powers, AdamHyper hyper) {
  if (progress[kProgressAppliedNow] == 0) {
    for (int64_t i = 4 * thread_in_grid(); i < count; i += 4 * threads_in_grid()) {
      zero_quad(r + i, static_cast<int>(count - i < 4 ? count - i : 4));
    }
    return;
  }
  __shared__ DynamicTables tables;
  __shared__ AdamScalars scalars;
  if (threadIdx.x == 0) scalars = adam_scalars(hyper, beta_powers);
  copy_tables(tables);
  const int64_t blocks = ceil_div(count, kAdam8bitBlock);
  for (int64_t block = warp_in_grid(); block < blocks; block += warps_in_grid()) {
    LaneMoments moments = load_moments(tables, state, block, count);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      if (moments.n[q] == 0) continue;
      direction_quad(scalars, r + block * kAdam8bitBlock + lane_offset(q), moments.n[q], moments.m[q],
                     moments.v[q]);
    }
    store_moments(tables, state, block, moments);
  }
}

// Every thread block copies the tables once, so there are only as many as run at the same time, and they
// loop.
LaunchShape looping_shape(int64_t chunks, int per_multiprocessor) {
  const unsigned blocks = block_count(chunks, 1), most = resident_blocks(per_multiprocessor);
  return LaunchShape{blocks < most ? blocks : most, kThreads};
}

}  // namespace

cudaError_t run(const Adamw8bitStepJob& job, cudaStream_t stream) {
  return for_batches(job.tensors, job.tensor_count, [&](const TensorBatch<Adamw8bitTensor>& batch) {
    const cudaError_t status =
        launch(advance_batch_kernel<Adamw8bitTensor>, LaunchShape{1, 32}, stream, batch, job.hyper);
    if (status != cudaSuccess) return status;
    return launch(adamw8bit_step_kernel, looping_shape(batch.first_chunk[batch.count], kStepBlocks), stream,
                  batch, job.hyper, job.write);
  });
}

cudaError_t run(const Adamw8bitDirectionJob& job, cudaStream_t stream) {
  const cudaError_t status = begin_direction(job, stream);
  if (status != cudaSuccess) return status;
  const State state{job.exp_avg, job.exp_avg_absmax, job.exp_avg_sq, job.exp_avg_sq_absmax};
  return visit_float(job.r_dtype, job.r, [&](auto* r) {
    using T = std::remove_pointer_t<decltype(r)>;
    return launch(adamw8bit_direction_kernel<T>,
                  looping_shape(ceil_div(job.count, kAdamChunkOf<Adamw8bitTensor>), kDirectionBlocks), stream,
                  r, job.count, state, job.progress, job.beta_powers, job.hyper);
  });
}

}  // namespace frugalore::cuda
