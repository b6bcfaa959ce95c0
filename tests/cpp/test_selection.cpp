#include "core/selection.h"

#include <gtest/gtest.h>

#include <vector>

namespace frugalore {
namespace {

Selection randk(uint64_t fraction) {
  Selection selection{};
  selection.kind = SelectionKind::randk;
  selection.fraction = fraction;
  selection.stream = random_stream(11, 7, 3, Purpose::selection);
  return selection;
}

TEST(Selection, RanksOfATileAreABijectionWithAnInverse) {
  for (int64_t columns = 1; columns <= kSelectionTile; ++columns) {
    const RandkTile tile = randk_tile(randk(uint64_t{1} << 30), columns, columns % 5, 0);
    const RandkInverse inverse = randk_inverse(tile);
    std::vector<bool> seen(static_cast<size_t>(columns));
    for (int32_t i = 0; i < tile.length; ++i) {
      const int32_t rank = randk_rank(tile, i);
      ASSERT_LT(rank, tile.length);
      EXPECT_FALSE(seen[static_cast<size_t>(rank)]);
      seen[static_cast<size_t>(rank)] = true;
    }
    for (uint32_t x = 0; x <= tile.mask; ++x) EXPECT_EQ(randk_unmix(tile, inverse, randk_mix(tile, x)), x);
  }
}

TEST(Selection, SlotsOfTheTilesOfAMatrixAreContiguous) {
  const int64_t rows = 3, columns = 700;
  for (const uint64_t fraction : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 30, uint64_t{1} << 32}) {
    const Selection selection = randk(fraction);
    int64_t slots = 0;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; column += kSelectionTile) {
        const RandkTile tile = randk_tile(selection, columns, row, column);
        EXPECT_EQ(tile.first_slot, slots);
        EXPECT_LE(tile.chosen, tile.length);
        slots += tile.chosen;
      }
    }
    EXPECT_EQ(slots, selected_count(selection, rows, columns));
  }
}

TEST(Selection, CountsOfHugeMatrices) {
  EXPECT_EQ(randk_before(int64_t{1} << 62, uint64_t{1} << 32), int64_t{1} << 62);
  EXPECT_EQ(randk_before(int64_t{1} << 62, uint64_t{1} << 31), int64_t{1} << 61);
  EXPECT_EQ(randk_before((int64_t{1} << 40) + 3, uint64_t{1} << 31), (int64_t{1} << 39) + 1);
}

}  // namespace
}  // namespace frugalore
