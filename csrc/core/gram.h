// The Gram matrix of the rows of X, X Xᵀ, in float64.
//
// The order of the sums is part of the definition: an element is the sum of its chunks of kGramChunk columns,
// one after the other, and a chunk is summed column by column, from zero. The product of two floats is exact
// in a double, so a fused multiply-add rounds as a product and a sum do. Hence every instruction set, thread
// count and device gives the same bits.
#pragma once

#include "core/groups.h"

namespace frugalore {

constexpr int64_t kGramChunk = 256;

struct GramJob {
  int64_t rows, columns;
  const float* x;      // row i begins at x + i row_stride; its elements are contiguous
  int64_t row_stride;  // any
  double* gram;        // [rows, rows], both triangles
  double* chunks;      // CUDA: gram_chunks of [rows, rows]; the CPU does not use it
};

// A card sums the chunks of a small matrix in parallel, since it has few tiles to share out. This many
// matrices of rows x rows are then kept until they are added; none for a large matrix.
inline int64_t gram_chunks(int64_t rows, int64_t columns) {
  constexpr int64_t kFewRows = 256;
  return rows <= kFewRows && columns > kGramChunk ? ceil_div(columns, kGramChunk) : 0;
}

}  // namespace frugalore
