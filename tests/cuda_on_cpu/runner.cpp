#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda_on_cpu/launch.h"
#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx{0, 0, 0}, blockIdx{0, 0, 0}, blockDim{1, 1, 1}, gridDim{1, 1, 1};

namespace cuda_on_cpu {
namespace {

constexpr unsigned char kGarbage = 0xff;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kMostShared = 227 * 1024;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

ThreadOrder thread_order = ThreadOrder::ascending;
uint64_t order_seed = 0;
int64_t block_limit = 1 << 16;

// A stack with an inaccessible page below it.
class Stack {
 public:
  Stack() : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    memory_ = mmap(nullptr, page_ + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory_, page_, PROT_NONE);
  }
  ~Stack() {
    if (memory_ != nullptr) munmap(memory_, page_ + kStackBytes);
  }
  Stack(Stack&& other) noexcept : page_(other.page_), memory_(std::exchange(other.memory_, nullptr)) {}
  Stack& operator=(Stack&&) = delete;
  char* bottom() const { return static_cast<char*>(memory_) + page_; }

 private:
  size_t page_;
  void* memory_;
};

// The stacks of a block, kept from launch to launch.
std::vector<Stack>& stacks(unsigned count) {
  static std::vector<Stack> all;
  while (all.size() < count) all.emplace_back();
  return all;
}

enum class State { ready, at_warp, at_block, done };

struct Fibre {
  ucontext_t context{};
  char* stack = nullptr;
  void* fake_stack = nullptr;  // AddressSanitizer's
  State state = State::ready;
  Site site{"", "", 0};
  unsigned mask = 0;
  uint64_t value = 0;
  WarpValues received{};
};

std::string describe(Site site) {
  return std::string(site.operation) + " (" + site.file + ":" + std::to_string(site.line) + ")";
}

bool same(Site a, Site b) {
  return a.line == b.line && std::strcmp(a.operation, b.operation) == 0 && std::strcmp(a.file, b.file) == 0;
}

// One block while it runs.
class Block {
 public:
  Block(const std::function<void()>& body, unsigned threads, std::mt19937_64& random)
      : body_(body), random_(random), fibres_(threads) {
    auto& all = stacks(threads);
    for (unsigned i = 0; i < threads; ++i) start(fibres_[i], all[i].bottom());
  }

  void run() {
    do {
      if (thread_order == ThreadOrder::random) {
        run_interleaved();
      } else {
        run_warp_by_warp();
      }
    } while (release_block());
  }

  // Called by a fibre: waits until the scheduler lets it go on.
  Fibre& wait(State state, Site site, unsigned mask, uint64_t value) {
    Fibre& fibre = *running_;
    fibre.state = state;
    fibre.site = site;
    fibre.mask = mask;
    fibre.value = value;
    to_scheduler(fibre, false);
    return fibre;
  }

  unsigned running_lane() const { return static_cast<unsigned>(running_ - fibres_.data()) % kWarp; }

  static Block* current;

 private:
  void start(Fibre& fibre, char* stack) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack, kStackBytes);  // frames of a launch that was given up
#endif
    fibre.stack = stack;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = stack;
    fibre.context.uc_stack.ss_size = kStackBytes;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, &Block::enter, 0);
  }

  static void enter() { current->main(); }

  void main() {
    finish_switch(nullptr, true);
    Fibre& fibre = *running_;
    try {
      body_();
    } catch (...) {
      error_ = std::current_exception();
    }
    fibre.state = State::done;
    to_scheduler(fibre, true);
  }

  void resume(unsigned thread) {
    Fibre& fibre = fibres_[thread];
    running_ = &fibre;
    threadIdx.x = thread;
    void* fake_stack = nullptr;
    start_switch(&fake_stack, fibre.stack, kStackBytes);
    swapcontext(&scheduler_, &fibre.context);
    finish_switch(fake_stack, false);
    running_ = nullptr;
    if (error_) std::rethrow_exception(error_);
  }

  void to_scheduler(Fibre& fibre, bool for_good) {
    start_switch(for_good ? nullptr : &fibre.fake_stack, scheduler_stack_, scheduler_stack_bytes_);
    swapcontext(&fibre.context, &scheduler_);
    finish_switch(fibre.fake_stack, true);
  }

#if defined(__SANITIZE_ADDRESS__)
  void start_switch(void** fake_stack, const void* bottom, size_t bytes) {
    __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
  }
  void finish_switch(void* fake_stack, bool in_fibre) {
    __sanitizer_finish_switch_fiber(fake_stack, in_fibre ? &scheduler_stack_ : nullptr,
                                    in_fibre ? &scheduler_stack_bytes_ : nullptr);
  }
#else
  void start_switch(void**, const void*, size_t) {}
  void finish_switch(void*, bool) {}
#endif

  unsigned threads() const { return static_cast<unsigned>(fibres_.size()); }
  unsigned warps() const { return (threads() + kWarp - 1) / kWarp; }

  void run_warp_by_warp() {
    const bool up = thread_order == ThreadOrder::ascending;
    for (unsigned i = 0; i < warps(); ++i) {
      const unsigned warp = up ? i : warps() - 1 - i;
      const unsigned begin = warp * kWarp, lanes = std::min(kWarp, threads() - begin);
      do {
        for (unsigned j = 0; j < lanes; ++j) {
          const unsigned thread = begin + (up ? j : lanes - 1 - j);
          if (fibres_[thread].state == State::ready) resume(thread);
        }
      } while (release_warp(warp));
    }
  }

  void run_interleaved() {
    std::vector<unsigned> ready;
    const auto collect = [&] {
      ready.clear();
      for (unsigned i = 0; i < threads(); ++i) {
        if (fibres_[i].state == State::ready) ready.push_back(i);
      }
      std::shuffle(ready.begin(), ready.end(), random_);
    };
    bool released = true;
    while (released) {
      for (collect(); !ready.empty(); collect()) {
        // Only some of them, so that warps drift apart.
        const size_t count = 1 + random_() % ready.size();
        for (size_t i = 0; i < count; ++i) resume(ready[i]);
        release_warp(static_cast<unsigned>(random_() % warps()));
      }
      released = false;
      for (unsigned warp = 0; warp < warps(); ++warp) released = release_warp(warp) || released;
    }
  }

  // Completes the collectives of a warp for which every lane of the mask has arrived.
  bool release_warp(unsigned warp) {
    bool any = false;
    const unsigned begin = warp * kWarp, lanes = std::min(kWarp, threads() - begin);
    for (unsigned lane = 0; lane < lanes; ++lane) {
      const Fibre& first = fibres_[begin + lane];
      if (first.state != State::at_warp || !arrived(begin, lanes, first)) continue;
      WarpValues values;
      std::memset(&values, kGarbage, sizeof values);
      const unsigned mask = first.mask;
      for (unsigned other = 0; other < lanes; ++other) {
        if ((mask >> other & 1u) != 0) values.lane[other] = fibres_[begin + other].value;
      }
      for (unsigned other = 0; other < lanes; ++other) {
        if ((mask >> other & 1u) == 0) continue;
        fibres_[begin + other].received = values;
        fibres_[begin + other].state = State::ready;
      }
      any = true;
    }
    return any;
  }

  bool arrived(unsigned begin, unsigned lanes, const Fibre& first) const {
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      if ((first.mask >> lane & 1u) == 0) continue;
      if (lane >= lanes) return false;
      const Fibre& fibre = fibres_[begin + lane];
      if (fibre.state != State::at_warp || fibre.mask != first.mask || !same(fibre.site, first.site))
        return false;
    }
    return true;
  }

  // No thread can run. False: all are done. Otherwise they must all wait at one barrier, which opens.
  bool release_block() {
    const Site site = fibres_[0].site;
    const auto all = [&](State state) {
      return std::all_of(fibres_.begin(), fibres_.end(), [&](const Fibre& f) { return f.state == state; });
    };
    if (all(State::done)) return false;
    if (!all(State::at_block) ||
        !std::all_of(fibres_.begin(), fibres_.end(), [&](const Fibre& f) { return same(f.site, site); })) {
      throw KernelError(stall());
    }
    uint64_t count = 0;
    for (const Fibre& fibre : fibres_) count += fibre.value;
    for (Fibre& fibre : fibres_) {
      fibre.received.lane[0] = count;
      fibre.state = State::ready;
    }
    return true;
  }

  // Runs of threads that are in the same place.
  std::string stall() const {
    std::string text = "block " + std::to_string(blockIdx.x) + " cannot go on:";
    std::string last;
    for (unsigned i = 0; i < threads(); ++i) {
      const Fibre& fibre = fibres_[i];
      const std::string place =
          fibre.state == State::done ? std::string("done") : "at " + describe(fibre.site);
      if (place != last) text += "\n  from thread " + std::to_string(i) + ": " + place;
      last = place;
    }
    return text;
  }

  const std::function<void()>& body_;
  std::mt19937_64& random_;
  std::vector<Fibre> fibres_;
  Fibre* running_ = nullptr;
  std::exception_ptr error_;
  ucontext_t scheduler_{};
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
};

Block* Block::current = nullptr;

// The thread-local variables of this program, the kernels' __shared__ ones among them (cuda_runtime.h):
// filled with garbage before each block, and put back after the launch.
class StaticShared {
 public:
  StaticShared() {
    dl_iterate_phdr(&StaticShared::find, this);
    if (data_ != nullptr) saved_.assign(data_, data_ + bytes_);
  }
  ~StaticShared() {
    if (data_ != nullptr) std::memcpy(data_, saved_.data(), bytes_);
  }
  void fill() {
    if (data_ != nullptr) std::memset(data_, kGarbage, bytes_);
  }

 private:
  // The program itself comes first.
  static int find(dl_phdr_info* info, size_t, void* self) {
    auto* shared = static_cast<StaticShared*>(self);
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
      shared->data_ = static_cast<unsigned char*>(info->dlpi_tls_data);
      shared->bytes_ = info->dlpi_phdr[i].p_memsz;
    }
    return 1;
  }

  unsigned char* data_ = nullptr;
  size_t bytes_ = 0;
  std::vector<unsigned char> saved_;
};

std::unique_ptr<unsigned char[]> dynamic_shared;

std::vector<unsigned> block_order(unsigned blocks, std::mt19937_64& random) {
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  if (thread_order == ThreadOrder::descending) std::reverse(order.begin(), order.end());
  if (thread_order == ThreadOrder::random) std::shuffle(order.begin(), order.end(), random);
  return order;
}

Block& current_block(Site site) {
  if (Block::current == nullptr) throw KernelError("outside of a kernel: " + describe(site));
  return *Block::current;
}

}  // namespace

void set_thread_order(ThreadOrder order, uint64_t seed) {
  thread_order = order;
  order_seed = seed;
}

void set_most_blocks(int64_t count) {
  block_limit = count;
}

int64_t most_blocks() {
  return block_limit;
}

void launch(const std::function<void()>& body, unsigned blocks, unsigned threads, size_t shared_bytes) {
  if (blocks == 0 || threads == 0 || threads > kMostThreads || shared_bytes > kMostShared) {
    throw KernelError("no card takes a launch of " + std::to_string(blocks) + " blocks of " +
                      std::to_string(threads) + " threads with " + std::to_string(shared_bytes) +
                      " bytes of shared memory");
  }
  struct EndOfLaunch {
    ~EndOfLaunch() {
      Block::current = nullptr;
      dynamic_shared.reset();
    }
  } end_of_launch;
  std::mt19937_64 random(order_seed);
  StaticShared static_shared;
  gridDim = dim3{blocks, 1, 1};
  blockDim = dim3{threads, 1, 1};
  for (const unsigned index : block_order(blocks, random)) {
    blockIdx = dim3{index, 0, 0};
    dynamic_shared.reset(new unsigned char[shared_bytes]);
    std::memset(dynamic_shared.get(), kGarbage, shared_bytes);
    static_shared.fill();
    Block block(body, threads, random);
    Block::current = &block;
    block.run();
  }
}

void* dynamic_shared_memory() {
  return dynamic_shared.get();
}

WarpValues warp_exchange(Site site, unsigned mask, uint64_t value) {
  Block& block = current_block(site);
  if ((mask >> block.running_lane() & 1u) == 0) fail(site, "the mask does not name the calling lane");
  return block.wait(State::at_warp, site, mask, value).received;
}

unsigned block_exchange(Site site, bool predicate) {
  Fibre& fibre = current_block(site).wait(State::at_block, site, 0, predicate ? 1 : 0);
  return static_cast<unsigned>(fibre.received.lane[0]);
}

void fail(Site site, const char* what) {
  throw KernelError(describe(site) + ": " + what + ", thread " + std::to_string(threadIdx.x) + " of block " +
                    std::to_string(blockIdx.x));
}

}  // namespace cuda_on_cpu
