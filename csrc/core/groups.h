// Quantisation groups: runs of `group_size` elements along the last dimension. Every row starts a new
// group and its last group may be short, so a row, a panel of rows and a row shard always hold whole
// groups. Scale and zero-point are [rows, groups_per_row], row-major.
#pragma once

#include "core/config.h"

namespace frugalore {

struct GroupLayout {
  int64_t rows;
  int64_t columns;
  int64_t group_size;
};

inline namespace FRUGALORE_ISA_NAMESPACE {

// a >= 0, b > 0.
FRUGALORE_HD int64_t ceil_div(int64_t a, int64_t b) {
  return a / b + (a % b != 0 ? 1 : 0);  // a + b - 1 could overflow
}

FRUGALORE_HD int64_t groups_per_row(const GroupLayout& layout) {
  return ceil_div(layout.columns, layout.group_size);
}

FRUGALORE_HD int64_t group_count(const GroupLayout& layout) {
  return layout.rows * groups_per_row(layout);
}

struct GroupSpan {
  int64_t row;
  int64_t column;  // of the first element, within the row
  int64_t length;  // group_size, or less at the end of a row
};

FRUGALORE_HD GroupSpan group_span(const GroupLayout& layout, int64_t group) {
  const int64_t per_row = groups_per_row(layout);
  const int64_t row = group / per_row;
  const int64_t column = (group - row * per_row) * layout.group_size;
  const int64_t rest = layout.columns - column;
  return GroupSpan{row, column, rest < layout.group_size ? rest : layout.group_size};
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
