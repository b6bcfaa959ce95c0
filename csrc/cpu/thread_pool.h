// A small pool of threads. It is sized like torch's own, so that the library never runs more threads
// than the user allowed, and needs no second OpenMP runtime.
#pragma once

#include <cstdint>

namespace frugalore::cpu {

// Threads that parallel_for may use, this one included. Takes effect at the next call.
void set_thread_count(int count);
int thread_count();

using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);

// Calls function(context, begin, end) over [0, count) in contiguous ranges whose bounds are multiples of
// `grain`, one a thread. Results must not depend on the cut. A call from inside a range, or while
// another thread holds the pool, runs in the calling thread.
void parallel_ranges(int64_t count, int64_t grain, RangeFunction function, void* context);

// Body: void(int64_t begin, int64_t end). It must not throw.
template <class Body>
void parallel_for(int64_t count, int64_t grain, Body&& body) {
  struct Call {
    static void run(void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); }
  };
  parallel_ranges(count, grain, &Call::run, &body);
}

}  // namespace frugalore::cpu
