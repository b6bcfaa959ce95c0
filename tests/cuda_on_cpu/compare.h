// One job on the CPU backend and on the fibres, from the same bytes to the same bytes.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "core/floats.h"
#include "cpu/kernels.h"
#include "cuda/kernels.h"
#include "cuda_on_cpu/launch.h"

namespace frugalore::test {

// A tensor of exactly its size, so that the sanitizer sees a kernel that leaves it.
using Bytes = std::vector<unsigned char>;

template <class T>
Bytes zeros(int64_t count) {
  return Bytes(static_cast<size_t>(count) * sizeof(T));
}

// What outputs hold before a kernel runs, so that an element that only one backend writes shows.
template <class T>
Bytes unwritten(int64_t count) {
  return Bytes(static_cast<size_t>(count) * sizeof(T), 0xa5);
}

template <class T>
T* at(Bytes& bytes) {
  return reinterpret_cast<T*>(bytes.data());
}

inline int64_t size_of(DType dtype) {
  return dtype == DType::f32 ? 4 : 2;
}

inline const char* name_of(DType dtype) {
  return dtype == DType::f32 ? "float32" : (dtype == DType::bf16 ? "bfloat16" : "float16");
}

inline void store(Bytes& tensor, DType dtype, int64_t i, float value) {
  if (dtype == DType::f32) at<float>(tensor)[i] = value;
  if (dtype == DType::bf16) at<bf16>(tensor)[i] = from_float<bf16>(value);
  if (dtype == DType::f16) at<f16>(tensor)[i] = from_float<f16>(value);
}

constexpr float kNonFinite[] = {std::numeric_limits<float>::infinity(),
                                -std::numeric_limits<float>::infinity(),
                                std::numeric_limits<float>::quiet_NaN()};

constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16};

// Normal values of the given size, with some exact zeros.
inline Bytes random_floats(DType dtype, int64_t count, float size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, size);
  Bytes tensor(static_cast<size_t>(count * size_of(dtype)));
  for (int64_t i = 0; i < count; ++i) store(tensor, dtype, i, random() % 16 == 0 ? 0.0f : normal(random));
  return tensor;
}

inline Bytes random_bytes(int64_t count, unsigned below, uint64_t seed) {
  std::mt19937_64 random(seed);
  Bytes tensor(static_cast<size_t>(count));
  for (unsigned char& byte : tensor) byte = static_cast<unsigned char>(random() % below);
  return tensor;
}

struct Order {
  const char* name;
  cuda_on_cpu::ThreadOrder order;
  int64_t most_blocks;
};
constexpr Order kOrders[] = {{"ascending", cuda_on_cpu::ThreadOrder::ascending, 1 << 16},
                             {"descending, one block", cuda_on_cpu::ThreadOrder::descending, 1},
                             {"random, two blocks", cuda_on_cpu::ThreadOrder::random, 2}};

// `Tensors` is copyable, has job(), which points into the object, and bytes(), everything that the job may
// have written.
template <class Tensors>
void expect_same_bytes(const Tensors& tensors) {
  Tensors cpu = tensors;
  cpu::dispatch(cpu.job());
  for (const Order& order : kOrders) {
    SCOPED_TRACE(order.name);
    cuda_on_cpu::set_thread_order(order.order, 17);
    cuda_on_cpu::set_most_blocks(order.most_blocks);
    Tensors cuda = tensors;
    ASSERT_EQ(cuda::run(cuda.job(), nullptr), cudaSuccess);
    EXPECT_TRUE(cuda.bytes() == cpu.bytes());
  }
}

}  // namespace frugalore::test
