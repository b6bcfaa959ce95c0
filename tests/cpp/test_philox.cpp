#include "core/philox.h"

#include <gtest/gtest.h>

#include <array>

namespace frugalore {
namespace {

using Words = std::array<uint32_t, 4>;

Words philox(uint64_t key, uint64_t counter_low, uint32_t counter2, uint32_t counter3) {
  const PhiloxWords words = philox4x32(RandomStream{key, counter2, counter3}, counter_low);
  return {words.word[0], words.word[1], words.word[2], words.word[3]};
}

// The known answers that Random123 publishes for philox4x32-10.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox(0, 0, 0, 0), (Words{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  const uint64_t ones = 0xffffffffffffffffu;
  EXPECT_EQ(philox(ones, ones, 0xffffffffu, 0xffffffffu),
            (Words{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(philox(0x299f31d0a4093822u, 0x85a308d3243f6a88u, 0x13198a2eu, 0x03707344u),
            (Words{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

TEST(Philox, AnElementHasOneWordWhereverItIsComputed) {
  const RandomStream stream = random_stream(5, 7, 11, Purpose::sketch);
  const uint64_t first = (uint64_t{1} << 35) - 6;  // crosses the low word of index >> 2
  for (uint64_t i = first; i < first + 20; ++i) {
    EXPECT_EQ(random_word(stream, i), philox4x32(stream, i / 4).word[i % 4]);
  }
}

TEST(Philox, StreamsOfDifferentPurposeStepTensorAndSeedDiffer) {
  const auto word = [](uint64_t seed, uint32_t tensor, int64_t step, Purpose purpose) {
    return random_word(random_stream(seed, tensor, step, purpose), 0);
  };
  const uint32_t base = word(1, 2, 3, Purpose::weight);
  EXPECT_NE(base, word(1 + (uint64_t{1} << 32), 2, 3, Purpose::weight));
  EXPECT_NE(base, word(1, 3, 3, Purpose::weight));
  EXPECT_NE(base, word(1, 2, 4, Purpose::weight));
  EXPECT_NE(base, word(1, 2, 3, Purpose::exp_avg));
  // The step has 28 bits and cannot run into the purpose.
  EXPECT_EQ(random_stream(0, 0, (int64_t{1} << 28) + 3, Purpose::weight).step_and_purpose, 3u);
  EXPECT_EQ(random_stream(0, 0, 3, Purpose::sketch).step_and_purpose, 3u | 3u << 28);
}

}  // namespace
}  // namespace frugalore
