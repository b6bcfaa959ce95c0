#include "core/gram.h"

#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

struct Rows {
  int64_t rows, columns, row_stride;
  Bytes x, gram, chunks;

  Rows(int64_t rows_, int64_t columns_, int64_t gap)
      : rows(rows_),
        columns(columns_),
        row_stride(columns_ + gap),
        x(random_floats(DType::f32, rows_ > 0 ? (rows_ - 1) * (columns_ + gap) + columns_ : 0, 1.0f, 3)),
        gram(unwritten<double>(rows_ * rows_)),
        chunks(unwritten<double>(gram_chunks(rows_, columns_) * rows_ * rows_)) {}

  GramJob job() { return {rows, columns, at<float>(x), row_stride, at<double>(gram), at<double>(chunks)}; }
  auto bytes() const { return std::tie(gram); }
};

TEST(Gram, SameBytesAsTheCpu) {
  expect_same_bytes(Rows(1, 1, 0));
  expect_same_bytes(Rows(5, 0, 0));
  expect_same_bytes(Rows(3, 17, 2));
  expect_same_bytes(Rows(64, 256, 0));
  expect_same_bytes(Rows(65, 257, 3));
  expect_same_bytes(Rows(130, 530, 0));
  expect_same_bytes(Rows(270, 300, 1));  // too many rows for a sum of chunks
}

}  // namespace
}  // namespace frugalore::test
