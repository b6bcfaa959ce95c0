// run(device, job): one job, on the backend of its tensors' device, with the GIL released.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bindings/tensor_ref.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

#if FRUGALORE_WITH_CUDA
#include <cuda_runtime.h>

#include "cuda/kernels.h"
#endif

namespace frugalore {

// torch.get_num_threads(), so that torch.set_num_threads governs our pool too.
int torch_thread_count();

#if FRUGALORE_WITH_CUDA
inline void check_cuda(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int index) {
    check_cuda(cudaGetDevice(&previous_));
    if (previous_ != index) check_cuda(cudaSetDevice(index));
    changed_ = previous_ != index;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};
#endif

template <class Job>
void run_on_cpu(const Job& job) {
  cpu::set_thread_count(torch_thread_count());
  pybind11::gil_scoped_release release;
  cpu::dispatch(job);
}

template <class Job>
void run(const Device& device, const Job& job) {
  if (!device.cuda) return run_on_cpu(job);
#if FRUGALORE_WITH_CUDA
  const auto stream = static_cast<cudaStream_t>(current_cuda_stream(device));
  pybind11::gil_scoped_release release;
  const DeviceGuard guard(device.index);
  check_cuda(cuda::run(job, stream));
#else
  throw std::runtime_error(
      "this frugalore was built without CUDA kernels; build with FRUGALORE_CUDA=ON (and nvcc) to use " +
      device_name(device));
#endif
}

}  // namespace frugalore
