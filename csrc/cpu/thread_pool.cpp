#include "cpu/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace frugalore::cpu {
namespace {

// The workers wait for a new `generation`; worker i then takes range i + 1 of the published work, and
// the caller takes range 0. Workers beyond the number of ranges are not waited for.
class ThreadPool {
 public:
  // The system may refuse threads (a limit on processes or memory): then the pool is a smaller one.
  explicit ThreadPool(int workers) : wanted_(workers + 1) {
    threads_.reserve(static_cast<size_t>(workers));
    try {
      for (int i = 0; i < workers; ++i) threads_.emplace_back([this, i] { work(i + 1); });
    } catch (const std::system_error&) {
    }
  }

  ~ThreadPool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  int wanted() const { return wanted_; }
  int size() const { return static_cast<int>(threads_.size()) + 1; }

  void run(int64_t count, int64_t step, RangeFunction function, void* context) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      count_ = count;
      step_ = step;
      function_ = function;
      context_ = context;
      parts_ = static_cast<int>((count + step - 1) / step);
      pending_ = parts_ - 1;
      ++generation_;
    }
    wake_.notify_all();
    take(0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
  }

 private:
  void take(int part) {
    const int64_t begin = std::min(count_, part * step_);
    const int64_t end = std::min(count_, begin + step_);
    if (begin < end) function_(context_, begin, end);
  }

  void work(int part) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) return;
      seen = generation_;
      if (part >= parts_) continue;  // nobody waits for this worker
      lock.unlock();
      take(part);
      lock.lock();
      if (--pending_ == 0) done_.notify_one();
    }
  }

  const int wanted_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  bool stopping_ = false;
  uint64_t generation_ = 0;
  int parts_ = 0, pending_ = 0;
  int64_t count_ = 0, step_ = 0;
  RangeFunction function_ = nullptr;
  void* context_ = nullptr;
};

std::atomic<int> wanted_threads{1};
std::mutex pool_mutex;  // held by whoever runs work on the pool
ThreadPool* pool = nullptr;
thread_local bool inside_range = false;

// A forked child has the pool's memory but none of its threads: forget it (never join) and start over.
void after_fork_in_child() {
  pool = nullptr;
  new (&pool_mutex) std::mutex;
  inside_range = false;
}

void register_fork_handler() {
  static const int registered = pthread_atfork(nullptr, nullptr, &after_fork_in_child);
  (void)registered;
}

struct Ranges {
  RangeFunction function;
  void* context;
};

void run_marked(void* ranges, int64_t begin, int64_t end) {
  const auto* call = static_cast<Ranges*>(ranges);
  const bool outer = inside_range;
  inside_range = true;
  call->function(call->context, begin, end);
  inside_range = outer;
}

}  // namespace

void set_thread_count(int count) {
  wanted_threads.store(std::max(1, count), std::memory_order_relaxed);
}

int thread_count() {
  return wanted_threads.load(std::memory_order_relaxed);
}

void parallel_ranges(int64_t count, int64_t grain, RangeFunction function, void* context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const int threads = thread_count();
  std::unique_lock<std::mutex> lock(pool_mutex, std::defer_lock);
  if (threads == 1 || count <= grain || inside_range || !lock.try_lock()) {
    function(context, 0, count);
    return;
  }
  register_fork_handler();
  if (pool != nullptr && pool->wanted() != threads) {
    delete pool;
    pool = nullptr;
  }
  if (pool == nullptr) pool = new ThreadPool(threads - 1);
  const int64_t grains = (count + grain - 1) / grain;
  const int64_t step = (grains + pool->size() - 1) / pool->size() * grain;
  Ranges ranges{function, context};
  pool->run(count, step, &run_marked, &ranges);
}

}  // namespace frugalore::cpu
