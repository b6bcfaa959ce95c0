// The runner itself: that it computes what a card would, and that it catches what it is there to catch.
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda_on_cpu/launch.h"

namespace {

using cuda_on_cpu::KernelError;
using cuda_on_cpu::ThreadOrder;
using frugalore::cuda::LaunchShape;

constexpr unsigned kFull = 0xffffffffu;

struct Order {
  const char* name;
  ThreadOrder order;
  uint64_t seed;
};
constexpr Order kOrders[] = {{"ascending", ThreadOrder::ascending, 0},
                             {"descending", ThreadOrder::descending, 0},
                             {"random 1", ThreadOrder::random, 1},
                             {"random 2", ThreadOrder::random, 2}};

// The results of a kernel in every order.
template <class T, class... Parameters, class... Arguments>
std::vector<std::vector<T>> in_all_orders(void (*kernel)(T*, Parameters...), LaunchShape shape, size_t count,
                                          Arguments... arguments) {
  std::vector<std::vector<T>> results;
  for (const Order& order : kOrders) {
    cuda_on_cpu::set_thread_order(order.order, order.seed);
    results.emplace_back(count, T{});
    frugalore::cuda::launch(kernel, shape, nullptr, results.back().data(), arguments...);
  }
  return results;
}

template <class T>
bool all_agree(const std::vector<std::vector<T>>& results) {
  for (const auto& result : results) {
    if (result != results.front()) return false;
  }
  return true;
}

std::string error_of(void (*kernel)(int*), LaunchShape shape) {
  std::vector<int> out(shape.blocks * shape.threads);
  try {
    frugalore::cuda::launch(kernel, shape, nullptr, out.data());
  } catch (const KernelError& error) {
    return error.what();
  }
  return "";
}

// ---- what a card would compute
// --------------------------------------------------------------------------------

__global__ void write_own_index(int* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] += static_cast<int>(i + 1);
}

TEST(Runner, EveryThreadOfEveryBlockRunsOnce) {
  std::vector<int> expected(7 * 45);
  std::iota(expected.begin(), expected.end(), 1);
  for (const auto& result : in_all_orders(write_own_index, {7, 45}, expected.size()))
    EXPECT_EQ(result, expected);
}

// Reverses the block through shared memory of both kinds; the second barrier protects the reuse.
__global__ void reverse_twice(int* out) {
  __shared__ int fixed[256];
  int* dynamic = frugalore::cuda::dynamic_shared<int>();
  const unsigned i = threadIdx.x, n = blockDim.x;
  fixed[i] = static_cast<int>(i);
  __syncthreads();
  dynamic[i] = fixed[n - 1 - i] + 1000;
  __syncthreads();
  fixed[i] = dynamic[(i + 1) % n];
  __syncthreads();
  out[blockIdx.x * n + i] = fixed[(i + n - 1) % n];
}

TEST(Runner, BarriersOrderSharedMemory) {
  const auto results = in_all_orders(reverse_twice, {3, 100, 100 * sizeof(int)}, 300);
  for (const auto& result : results) {
    for (int i = 0; i < 300; ++i) EXPECT_EQ(result[i], 1000 + 99 - i % 100);
  }
}

template <class T>
__global__ void shuffles(T* out) {
  const T value = static_cast<T>(threadIdx.x) + static_cast<T>(0.5);
  out[threadIdx.x] = __shfl_xor_sync(kFull, value, 5);
  out[64 + threadIdx.x] = __shfl_up_sync(kFull, value, 3);
  out[128 + threadIdx.x] = __shfl_down_sync(kFull, value, 3, 8);
  out[192 + threadIdx.x] = __shfl_sync(kFull, value, 34);
}

template <class T>
void expect_shuffles() {
  for (const auto& result : in_all_orders(shuffles<T>, {1, 64}, 256)) {
    for (int i = 0; i < 64; ++i) {
      const int lane = i % 32, warp = i - lane;
      const auto value = [](int thread) { return static_cast<T>(thread) + static_cast<T>(0.5); };
      EXPECT_EQ(result[i], value(warp + (lane ^ 5)));
      EXPECT_EQ(result[64 + i], value(lane < 3 ? i : i - 3));
      EXPECT_EQ(result[128 + i], value(lane % 8 + 3 < 8 ? i + 3 : i));
      EXPECT_EQ(result[192 + i], value(warp + 2));
    }
  }
}

TEST(Runner, ShufflesMoveEveryTypeAndKeepTheirOwnAtTheEdges) {
  expect_shuffles<int>();
  expect_shuffles<unsigned>();
  expect_shuffles<float>();
  expect_shuffles<double>();
  expect_shuffles<unsigned long long>();
}

// Two halves of a warp, each with a mask of its own.
__global__ void half_warp_votes(int* out) {
  const unsigned mask = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  const unsigned ballot = __ballot_sync(mask, threadIdx.x % 3 == 0);
  out[threadIdx.x] = __popc(ballot) + 100 * __any_sync(mask, threadIdx.x == 20) + 1000 * __all_sync(mask, 1);
}

TEST(Runner, VotesCountTheLanesOfTheMask) {
  for (const auto& result : in_all_orders(half_warp_votes, {1, 32}, 32)) {
    for (int i = 0; i < 32; ++i) EXPECT_EQ(result[i], i < 16 ? 6 + 1000 : 5 + 100 + 1000);
  }
}

__global__ void block_votes(int* out) {
  out[threadIdx.x] = __syncthreads_count(threadIdx.x < 5) + 100 * __syncthreads_or(threadIdx.x == 69) +
                     1000 * __syncthreads_and(threadIdx.x < 69) + 10000 * __syncthreads_and(1);
}

TEST(Runner, BlockVotes) {
  for (const auto& result : in_all_orders(block_votes, {1, 70}, 70))
    EXPECT_EQ(result, std::vector<int>(70, 10105));
}

__global__ void atomics(unsigned* out) {
  atomicAdd(out, 2u);
  atomicMax(out + 1, threadIdx.x * (blockIdx.x + 1));
  atomicOr(out + 2, 1u << threadIdx.x % 32);
  __threadfence();
  if (atomicInc(out + 3, gridDim.x * blockDim.x - 1) == gridDim.x * blockDim.x - 1) out[4] = out[0];
}

TEST(Runner, AtomicsOfAllThreadsCount) {
  const std::vector<unsigned> expected{2 * 3 * 40, 39 * 3, 0xffffffffu, 0, 2 * 3 * 40};
  for (const auto& result : in_all_orders(atomics, {3, 40}, 5)) EXPECT_EQ(result, expected);
}

// ---- what it must catch
// -------------------------------------------------------------------------------------

__global__ void missing_block_barrier(int* out) {
  __shared__ int fixed[64];
  fixed[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = fixed[63 - threadIdx.x];
}

TEST(Caught, AMissingBlockBarrierDependsOnTheOrder) {
  EXPECT_FALSE(all_agree(in_all_orders(missing_block_barrier, {1, 64}, 64)));
}

__global__ void missing_warp_barrier(int* out) {
  int* dynamic = frugalore::cuda::dynamic_shared<int>();
  dynamic[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  dynamic[threadIdx.x ^ 1] += 1;
  out[threadIdx.x] = dynamic[threadIdx.x];
}

TEST(Caught, AMissingWarpBarrierDependsOnTheOrder) {
  EXPECT_FALSE(all_agree(in_all_orders(missing_warp_barrier, {1, 32, 32 * sizeof(int)}, 32)));
}

__global__ void blocks_race(int* out) {
  if (threadIdx.x == 0) *out = static_cast<int>(blockIdx.x);
}

TEST(Caught, ARaceOfBlocksDependsOnTheOrder) {
  EXPECT_FALSE(all_agree(in_all_orders(blocks_race, {8, 32}, 1)));
}

__global__ void reads_shared_memory_unwritten(unsigned* out) {
  __shared__ unsigned fixed[32];
  out[blockIdx.x * 64 + threadIdx.x] = fixed[threadIdx.x];
  out[blockIdx.x * 64 + 32 + threadIdx.x] = frugalore::cuda::dynamic_shared<unsigned>()[threadIdx.x];
  fixed[threadIdx.x] = 0;
  frugalore::cuda::dynamic_shared<unsigned>()[threadIdx.x] = 0;
}

TEST(Caught, SharedMemoryStartsAsGarbageInEveryBlock) {
  const auto results = in_all_orders(reads_shared_memory_unwritten, {2, 32, 32 * sizeof(unsigned)}, 128);
  for (const auto& result : results) EXPECT_EQ(result, std::vector<unsigned>(128, 0xffffffffu));
}

__global__ void barrier_in_a_branch(int* out) {
  if (threadIdx.x < 20) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void barriers_in_two_branches(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    out[threadIdx.x] = 1;
    __syncthreads();
  }
}

__global__ void shuffle_in_a_branch(int* out) {
  if (threadIdx.x != 7) out[threadIdx.x] = __shfl_xor_sync(kFull, 1, 1);
}

__global__ void shuffle_against_vote(int* out) {
  out[threadIdx.x] = threadIdx.x < 16 ? __shfl_xor_sync(kFull, 1, 1) : __any_sync(kFull, 1);
}

__global__ void shuffle_against_barrier(int* out) {
  if (threadIdx.x < 31) {
    out[threadIdx.x] = __shfl_xor_sync(kFull, 1, 1);
  } else {
    __syncthreads();
  }
}

__global__ void mask_without_the_caller(int* out) {
  out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 1);
}

__global__ void shuffle_from_outside_the_mask(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 16);
}

TEST(Caught, DivergentCollectivesAreReportedAndDoNotHang) {
  const LaunchShape shape{1, 64};
  for (const Order& order : kOrders) {
    SCOPED_TRACE(order.name);
    cuda_on_cpu::set_thread_order(order.order, order.seed);
    EXPECT_NE(error_of(barrier_in_a_branch, shape).find("from thread 20: done"), std::string::npos);
    EXPECT_NE(error_of(barriers_in_two_branches, shape).find("from thread 32: at __syncthreads"),
              std::string::npos);
    EXPECT_NE(error_of(shuffle_in_a_branch, shape).find("from thread 7: done"), std::string::npos);
    EXPECT_NE(error_of(shuffle_against_vote, shape).find("__shfl_xor_sync"), std::string::npos);
    EXPECT_NE(error_of(shuffle_against_barrier, shape).find("__syncthreads"), std::string::npos);
    EXPECT_NE(error_of(mask_without_the_caller, shape).find("calling lane"), std::string::npos);
    EXPECT_NE(error_of(shuffle_from_outside_the_mask, shape).find("not in the mask"), std::string::npos);
    EXPECT_EQ(error_of(write_own_index, shape), "");  // and the runner is as good as new
  }
}

TEST(Caught, LaunchesThatNoCardTakes) {
  EXPECT_NE(error_of(write_own_index, {0, 32}), "");
  EXPECT_NE(error_of(write_own_index, {1, 0}), "");
  EXPECT_NE(error_of(write_own_index, {1, 1025}), "");
  EXPECT_NE(error_of(write_own_index, {1, 32, 300 * 1024}), "");
}

#if defined(__SANITIZE_ADDRESS__)
__global__ void writes_past_its_output(int* out, int count) {
  const int i = static_cast<int>(threadIdx.x);
  if (i <= count) out[i] = 1;
}

__global__ void writes_past_dynamic_shared_memory(int* out) {
  frugalore::cuda::dynamic_shared<int>()[threadIdx.x] = 1;
  out[threadIdx.x] = 1;
}

__global__ void writes_past_static_shared_memory(int* out) {
  __shared__ int fixed[31];
  fixed[threadIdx.x] = 1;
  __syncwarp();
  out[threadIdx.x] = fixed[0];
}

TEST(CaughtDeathTest, OutOfBoundsWrites) {
  EXPECT_DEATH(in_all_orders(writes_past_its_output, {1, 64}, 40, 40), "heap-buffer-overflow");
  EXPECT_DEATH(in_all_orders(writes_past_dynamic_shared_memory, {1, 32, 31 * sizeof(int)}, 32),
               "heap-buffer-overflow");
  EXPECT_DEATH(in_all_orders(writes_past_static_shared_memory, {1, 32}, 32), "out of bounds");
  // The same launches within bounds live.
  in_all_orders(writes_past_its_output, {1, 64}, 41, 40);
  in_all_orders(writes_past_dynamic_shared_memory, {1, 32, 32 * sizeof(int)}, 32);
}
#endif

}  // namespace
