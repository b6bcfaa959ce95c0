// How kernels are launched: the one place with <<<>>>, so that the same sources also compile as plain C++
// for the tests that run kernels as fibres on a CPU (tests/cuda_on_cpu).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#if defined(FRUGALORE_CUDA_ON_CPU)
#include "cuda_on_cpu/launch.h"
#endif

namespace frugalore::cuda {

constexpr int kWarpSize = 32;

struct LaunchShape {
  unsigned blocks;
  unsigned threads;
  size_t shared_bytes = 0;
};

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), LaunchShape shape, cudaStream_t stream,
                   const Arguments&... arguments) {
#if defined(FRUGALORE_CUDA_ON_CPU)
  cuda_on_cpu::launch([=] { kernel(static_cast<Parameters>(arguments)...); }, shape.blocks, shape.threads,
                      shape.shared_bytes);
  (void)stream;
  return cudaSuccess;
#else
  kernel<<<shape.blocks, shape.threads, shape.shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
#endif
}

// The block's dynamic shared memory as an array of T.
template <class T>
__device__ T* dynamic_shared() {
#if defined(FRUGALORE_CUDA_ON_CPU)
  return static_cast<T*>(cuda_on_cpu::dynamic_shared_memory());
#else
  extern __shared__ __align__(16) unsigned char frugalore_dynamic_shared[];
  return reinterpret_cast<T*>(frugalore_dynamic_shared);
#endif
}

// Blocks for `items` work items of which a block takes `per_block` at a time. Kernels loop with a grid
// stride, so the count is bounded: enough blocks to fill any card, few enough to launch quickly.
inline unsigned block_count(int64_t items, int64_t per_block) {
#if defined(FRUGALORE_CUDA_ON_CPU)
  const int64_t most = cuda_on_cpu::most_blocks();
#else
  constexpr int64_t most = 1 << 16;
#endif
  const int64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 1 ? 1 : (blocks < most ? blocks : most));
}

// Blocks that the current card runs at once, at `per_multiprocessor` each.
inline unsigned resident_blocks(int per_multiprocessor) {
#if defined(FRUGALORE_CUDA_ON_CPU)
  return static_cast<unsigned>(cuda_on_cpu::most_blocks()) * static_cast<unsigned>(per_multiprocessor);
#else
  int device = 0, multiprocessors = 0;
  const bool known =
      cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
  return static_cast<unsigned>(known && multiprocessors > 0 ? multiprocessors : 128) *
         static_cast<unsigned>(per_multiprocessor);
#endif
}

}  // namespace frugalore::cuda
