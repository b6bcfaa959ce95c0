#include "core/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace frugalore {
namespace {

// A matrix in memory that ends with its last element, so that the sanitizer sees a read or write beyond it.
class Matrix {
 public:
  // `gap` elements lie between rows, or between columns if `by_columns`.
  Matrix(int64_t rows, int64_t columns, bool by_columns, int64_t gap)
      : row_stride_(by_columns ? 1 : columns + gap),
        column_stride_(by_columns ? rows + gap : 1),
        data_(rows > 0 && columns > 0 ? (rows - 1) * row_stride_ + (columns - 1) * column_stride_ + 1 : 0) {}

  float& at(int64_t i, int64_t j) { return data_[i * row_stride_ + j * column_stride_]; }
  StridedMatrix view() const { return {data_.data(), row_stride_, column_stride_}; }
  float* data() { return data_.data(); }
  int64_t row_stride() const { return row_stride_; }

 private:
  int64_t row_stride_, column_stride_;
  std::vector<float> data_;
};

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const char* name : {"baseline", "avx2", "avx512"}) {
    try {
      cpu::force_isa(name);
      names.push_back(name);
    } catch (const std::invalid_argument&) {
    }
  }
  return names;
}

void check(int64_t m, int64_t k, int64_t n, bool a_columns, bool b_columns) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> value(-1.0f, 1.0f);
  Matrix a(m, k, a_columns, 3), b(k, n, b_columns, 2), c(m, n, false, 5);
  for (int64_t p = 0; p < k; ++p) {
    for (int64_t i = 0; i < m; ++i) a.at(i, p) = value(random);
    for (int64_t j = 0; j < n; ++j) b.at(p, j) = value(random);
  }
  cpu::dispatch(GemmJob{m, n, k, a.view(), b.view(), c.data(), c.row_stride()});
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0.0;
      for (int64_t p = 0; p < k; ++p) sum += static_cast<double>(a.at(i, p)) * b.at(p, j);
      ASSERT_NEAR(c.at(i, j), sum, 1e-6 * std::sqrt(static_cast<double>(k + 1))) << i << ", " << j;
    }
  }
}

TEST(Gemm, EverySizeAndLayoutStaysInItsMemory) {
  const int64_t sizes[][3] = {{1, 1, 1},    {3, 2, 5},    {13, 40, 17},  {14, 256, 32}, {15, 257, 33},
                              {113, 31, 7}, {6, 300, 65}, {40, 20, 259}, {5, 0, 4},     {0, 3, 4}};
  const std::string before = cpu::isa_name(cpu::active_isa());
  for (const std::string& isa : isas()) {
    cpu::force_isa(isa.c_str());
    for (const auto& size : sizes) {
      for (const bool a_columns : {false, true}) {
        for (const bool b_columns : {false, true}) {
          SCOPED_TRACE(isa + " " + std::to_string(size[0]) + "x" + std::to_string(size[1]) + "x" +
                       std::to_string(size[2]));
          check(size[0], size[1], size[2], a_columns, b_columns);
        }
      }
    }
  }
  cpu::force_isa(before.c_str());
}

TEST(Gemm, ThreadsShareTheRowsOrTheColumns) {
  cpu::set_thread_count(3);
  check(900, 80, 33, false, false);
  check(33, 80, 900, true, true);
  check(130, 0, 12, false, false);
  cpu::set_thread_count(1);
}

}  // namespace
}  // namespace frugalore
