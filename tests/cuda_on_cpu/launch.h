// Runs CUDA kernels that were compiled as plain C++: blocks in turn, the threads of a block as fibres.
//
// A thread runs until it reaches a collective (barrier, shuffle, vote) or its end; collectives complete when
// every thread they name has arrived at the same one. Between collectives any order of threads is legal, so
// a kernel is run in several orders, and one whose bytes depend on the order has a race.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>

namespace cuda_on_cpu {

// ascending and descending let each thread, warp and block run as far ahead of its successors as the
// collectives allow; random interleaves all warps of a block.
enum class ThreadOrder { ascending, descending, random };

// The order of the following launches. `seed` matters to `random` alone.
void set_thread_order(ThreadOrder order, uint64_t seed = 0);

// The most blocks that csrc/cuda/launch.h asks for. Small sizes would never make a block go around its grid
// stride loop; two blocks do, and must give the same bytes.
void set_most_blocks(int64_t count);
int64_t most_blocks();

// What a kernel must not do: threads that leave others waiting, collectives that do not match, a shuffle from
// a lane that does not take part, a launch outside the limits of a card.
class KernelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Runs `body` once per thread of a grid of `blocks` x `threads`. Shared memory starts as bytes of 0xff in
// every block; the dynamic part is a heap allocation of its own of exactly `shared_bytes` bytes.
void launch(const std::function<void()>& body, unsigned blocks, unsigned threads, size_t shared_bytes);

void* dynamic_shared_memory();

// ---- what the intrinsics of cuda_runtime.h are made of
// ------------------------------------------------------

constexpr unsigned kWarp = 32;

// Where a thread waits. Threads meet only at the same operation of the same line.
struct Site {
  const char* operation;
  const char* file;
  int line;
};

// The values that the lanes of a warp brought to a collective.
struct WarpValues {
  uint64_t lane[kWarp];
};

WarpValues warp_exchange(Site site, unsigned mask, uint64_t value);

// Waits for the whole block; the number of threads that brought `predicate`.
unsigned block_exchange(Site site, bool predicate);

[[noreturn]] void fail(Site site, const char* what);

}  // namespace cuda_on_cpu
