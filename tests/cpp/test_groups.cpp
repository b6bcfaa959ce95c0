#include "core/groups.h"

#include <gtest/gtest.h>

namespace frugalore {
namespace {

TEST(Groups, EveryElementIsInOneGroup) {
  for (const GroupLayout layout : {GroupLayout{1, 1, 1}, {3, 7, 2}, {2, 8, 8}, {4, 5, 64}, {5, 300, 256}}) {
    int64_t row = 0, column = 0;
    for (int64_t g = 0; g < group_count(layout); ++g) {
      const GroupSpan span = group_span(layout, g);
      EXPECT_EQ(span.row, row);
      EXPECT_EQ(span.column, column);
      EXPECT_GT(span.length, 0);
      EXPECT_LE(span.length, layout.group_size);
      column += span.length;
      if (column == layout.columns) {
        column = 0;
        ++row;
      }
    }
    EXPECT_EQ(row, layout.rows);
    EXPECT_EQ(column, 0);
  }
}

TEST(Groups, NothingInAnEmptyMatrix) {
  EXPECT_EQ(group_count({0, 5, 2}), 0);
  EXPECT_EQ(group_count({5, 0, 2}), 0);
}

// Sizes whose products need more than 32 bits.
TEST(Groups, HugeMatrices) {
  const GroupLayout tall{int64_t{1} << 33, 3, 2};
  EXPECT_EQ(group_count(tall), int64_t{1} << 34);
  const GroupSpan last = group_span(tall, group_count(tall) - 1);
  EXPECT_EQ(last.row, (int64_t{1} << 33) - 1);
  EXPECT_EQ(last.column, 2);
  EXPECT_EQ(last.length, 1);

  const GroupLayout wide{3, (int64_t{1} << 40) + 1, 256};
  EXPECT_EQ(groups_per_row(wide), (int64_t{1} << 32) + 1);
  const GroupSpan second_row = group_span(wide, groups_per_row(wide));
  EXPECT_EQ(second_row.row, 1);
  EXPECT_EQ(second_row.column, 0);
  const GroupSpan tail = group_span(wide, group_count(wide) - 1);
  EXPECT_EQ(tail.row, 2);
  EXPECT_EQ(tail.column, int64_t{1} << 40);
  EXPECT_EQ(tail.length, 1);

  const GroupLayout model{70001, 70003, 256};  // 4.9e9 elements, 1.9e7 groups
  for (int64_t g = 0; g < group_count(model); g += 99991) {
    const GroupSpan span = group_span(model, g);
    EXPECT_EQ(span.row * groups_per_row(model) + span.column / 256, g);
  }
}

}  // namespace
}  // namespace frugalore
