#include "core/selection.h"

#include <algorithm>

#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

struct Choice {
  int64_t count, chosen_count;
  RandomStream stream;
  Bytes below, chosen;

  SelectJob job() { return {at<int32_t>(below), at<int32_t>(chosen), count, chosen_count, stream}; }
  auto bytes() const { return std::tie(below, chosen); }
};

Choice choice(int64_t count, int64_t chosen_count, int64_t period) {
  return {count, chosen_count, random_stream(5, 3, period, Purpose::selection), unwritten<int32_t>(count + 1),
          unwritten<int32_t>(chosen_count)};
}

TEST(Selection, Select) {
  for (const int64_t count : {0, 1, 3, 4, 7, 1024, 4096, 4099, 9001}) {
    for (const int64_t chosen : {int64_t{0}, count / 4, count / 2 + 1, count}) {
      if (chosen <= count) expect_same_bytes(choice(count, chosen, 7));
    }
  }
}

// The edge of the choice lies between, and behind, two equal words.
TEST(Selection, SelectOfEqualWords) {
  constexpr int64_t kCount = 200'000;
  const RandomStream stream = random_stream(5, 3, 7, Purpose::selection);
  std::vector<uint32_t> words(kCount);
  for (int64_t i = 0; i < kCount; ++i) words[i] = random_word(stream, static_cast<uint64_t>(i));
  std::sort(words.begin(), words.end());
  const auto twice = std::adjacent_find(words.begin(), words.end());
  ASSERT_NE(twice, words.end());
  for (const int64_t chosen : {1, 2}) expect_same_bytes(choice(kCount, twice - words.begin() + chosen, 7));
}

}  // namespace
}  // namespace frugalore::test
