#include "core/selection.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

namespace frugalore {
namespace {

Selection randk(double density, int64_t period = 3) {
  Selection selection{};
  selection.kind = SelectionKind::randk;
  selection.fraction = static_cast<uint64_t>(density * 4294967296.0);
  selection.stream = random_stream(11, 2, period, Purpose::selection);
  return selection;
}

TEST(Selection, RanksOfATileAreABijection) {
  for (const int64_t columns : {1, 2, 3, 5, 31, 64, 129, 255, 256}) {
    for (int64_t row = 0; row < 20; ++row) {
      const RandkTile tile = randk_tile(randk(0.25), columns, row, 0);
      ASSERT_EQ(tile.length, columns);
      std::vector<int32_t> ranks, expected(columns);
      for (int32_t i = 0; i < tile.length; ++i) ranks.push_back(randk_rank(tile, i));
      std::sort(ranks.begin(), ranks.end());
      std::iota(expected.begin(), expected.end(), 0);
      EXPECT_EQ(ranks, expected) << columns;
    }
  }
}

TEST(Selection, TheMixHasAnInverse) {
  for (const int64_t columns : {1, 2, 3, 5, 31, 64, 129, 255, 256}) {
    for (int64_t row = 0; row < 20; ++row) {
      const RandkTile tile = randk_tile(randk(0.25), columns, row, 0);
      const RandkInverse inverse = randk_inverse(tile);
      for (uint32_t x = 0; x <= tile.mask; ++x) EXPECT_EQ(randk_unmix(tile, inverse, randk_mix(tile, x)), x);
    }
  }
}

TEST(Selection, TilesCutTheSlotsIntoRuns) {
  for (const double density : {0.0, 0.01, 0.3, 1.0}) {
    const Selection selection = randk(density);
    const int64_t rows = 4, columns = 700;
    int64_t slots = 0;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; column += kSelectionTile) {
        const RandkTile tile = randk_tile(selection, columns, row, column);
        EXPECT_EQ(tile.first_slot, slots);
        EXPECT_LE(tile.chosen, tile.length);
        EXPECT_NEAR(tile.chosen, density * tile.length, 1.0);
        slots += tile.chosen;
      }
    }
    EXPECT_EQ(slots, selected_count(selection, rows, columns));
  }
}

// floor(i fraction / 2^32) of numbers whose product has more than 64 bits.
TEST(Selection, CountsOfHugeMatricesAreExact) {
  const int64_t huge = (int64_t{1} << 62) + 12345;
  EXPECT_EQ(randk_before(huge, uint64_t{1} << 32), huge);
  EXPECT_EQ(randk_before(huge, uint64_t{1} << 31), huge / 2);
  EXPECT_EQ(randk_before(huge, 0), 0);
  EXPECT_EQ(randk_before((int64_t{1} << 40) + 7, 0xffffffffu), (int64_t{1} << 40) + 7 - 257);
}

// The digits of the threshold, beside a sort.
TEST(Selection, ThresholdIsTheWordOfItsRank) {
  std::mt19937 random(1);
  for (const uint32_t mask : {0xffffffffu, 0xff00ff00u, 0x3u, 0u}) {
    std::vector<uint32_t> words(1000);
    for (uint32_t& word : words) word = static_cast<uint32_t>(random()) & mask;
    std::vector<uint32_t> sorted = words;
    std::sort(sorted.begin(), sorted.end());
    for (const uint32_t k : {1u, 2u, 500u, 999u, 1000u}) {
      SelectThreshold threshold{0, k};
      for (int digit = 0; digit < kSelectDigits; ++digit) {
        uint32_t counts[kSelectBins] = {};
        for (const uint32_t word : words) {
          if (select_agrees(threshold, digit, word)) ++counts[select_digit(digit, word)];
        }
        select_refine(threshold, digit, counts);
      }
      EXPECT_EQ(threshold.word, sorted[k - 1]);
      const auto less = std::lower_bound(sorted.begin(), sorted.end(), threshold.word) - sorted.begin();
      EXPECT_EQ(threshold.ties, k - less);
      EXPECT_EQ(selected_before(threshold, static_cast<uint32_t>(less), 1000), k);
    }
  }
}

}  // namespace
}  // namespace frugalore
