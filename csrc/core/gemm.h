// C = A B in float32, for operands with strides, so that a transpose needs no copy.
#pragma once

#include "core/config.h"

namespace frugalore {

// Element (i, j) lies at data[i row_stride + j column_stride]. One of the strides is 1.
struct StridedMatrix {
  const float* data;
  int64_t row_stride;
  int64_t column_stride;
};

struct GemmJob {
  int64_t m, n, k;
  StridedMatrix a;  // [m, k]
  StridedMatrix b;  // [k, n]
  float* c;         // [m, n], overwritten; its rows are contiguous and c_row_stride apart
  int64_t c_row_stride;
};

}  // namespace frugalore
