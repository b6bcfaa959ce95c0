#include "cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

namespace frugalore::cpu {
namespace {

class ThreadPool : public testing::Test {
 protected:
  void TearDown() override { set_thread_count(1); }
};

// How often each index was visited.
std::vector<int> visits(int64_t count, int64_t grain) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) seen[static_cast<size_t>(i)].fetch_add(1);
  });
  return std::vector<int>(seen.begin(), seen.end());
}

TEST_F(ThreadPool, CoversEveryIndexOnce) {
  for (const int threads : {1, 2, 3, 8, 2}) {
    set_thread_count(threads);
    EXPECT_EQ(thread_count(), threads);
    for (const int64_t count : {0, 1, 2, 7, 64, 65, 1000}) {
      for (const int64_t grain : {0, 1, 3, 64, 5000}) {
        EXPECT_EQ(visits(count, grain), std::vector<int>(static_cast<size_t>(count), 1));
      }
    }
  }
}

TEST_F(ThreadPool, RangesBeginOnAGrainAndUseTheThreads) {
  set_thread_count(4);
  std::atomic<int> ranges{0};
  std::atomic<bool> aligned{true};
  parallel_for(1001, 16, [&](int64_t begin, int64_t end) {
    ranges.fetch_add(1);
    if (begin % 16 != 0 || (end % 16 != 0 && end != 1001)) aligned = false;
  });
  EXPECT_EQ(ranges.load(), 4);
  EXPECT_TRUE(aligned);
}

TEST_F(ThreadPool, AtLeastOneThread) {
  set_thread_count(-3);
  EXPECT_EQ(thread_count(), 1);
}

TEST_F(ThreadPool, NestedCallsRunWhereTheyAre) {
  set_thread_count(4);
  std::atomic<int64_t> sum{0};
  std::atomic<bool> same_thread{true};
  parallel_for(8, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto outer = std::this_thread::get_id();
      parallel_for(100, 1, [&](int64_t inner_begin, int64_t inner_end) {
        if (std::this_thread::get_id() != outer) same_thread = false;
        for (int64_t j = inner_begin; j < inner_end; ++j) sum.fetch_add(j);
      });
    }
  });
  EXPECT_EQ(sum.load(), 8 * 4950);
  EXPECT_TRUE(same_thread);
}

TEST_F(ThreadPool, ConcurrentCallers) {
  set_thread_count(3);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        if (visits(200, 8) != std::vector<int>(200, 1)) wrong.fetch_add(1);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST_F(ThreadPool, AForkedChildHasAPoolOfItsOwn) {
  set_thread_count(3);
  ASSERT_EQ(visits(100, 1), std::vector<int>(100, 1));
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(20);  // a deadlock ends too
    _exit(visits(100, 1) == std::vector<int>(100, 1) ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(visits(100, 1), std::vector<int>(100, 1));
}

}  // namespace
}  // namespace frugalore::cpu
