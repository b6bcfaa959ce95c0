#include "core/gram.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace frugalore {
namespace {

// The definition: chunks in order, each summed column by column.
std::vector<double> expected(const std::vector<float>& x, int64_t rows, int64_t columns, int64_t stride) {
  std::vector<double> gram(rows * rows);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < rows; ++j) {
      double total = 0.0;
      for (int64_t begin = 0; begin < columns; begin += kGramChunk) {
        double sum = 0.0;
        for (int64_t p = begin; p < columns && p < begin + kGramChunk; ++p) {
          sum += double{x[i * stride + p]} * double{x[j * stride + p]};
        }
        total += sum;
      }
      gram[i * rows + j] = total;
    }
  }
  return gram;
}

TEST(Gram, EverySizeOnEveryInstructionSetIsTheDefinitionToTheBit) {
  const std::string before = cpu::isa_name(cpu::active_isa());
  const int64_t sizes[][2] = {{1, 1},    {2, 3},   {7, 300},  {24, 256},
                              {25, 257}, {50, 40}, {130, 20}, {250, 513}};
  for (const auto& size : sizes) {
    const int64_t rows = size[0], columns = size[1], stride = columns + 3;
    std::mt19937 random(1);
    std::normal_distribution<float> value;
    std::vector<float> x((rows - 1) * stride + columns);  // ends with the last element
    for (float& element : x) element = value(random);
    const std::vector<double> gram = expected(x, rows, columns, stride);
    for (const char* isa : {"baseline", "avx2", "avx512"}) {
      try {
        cpu::force_isa(isa);
      } catch (const std::invalid_argument&) {
        continue;
      }
      for (const int threads : {1, 3}) {
        cpu::set_thread_count(threads);
        std::vector<double> out(rows * rows, NAN);
        cpu::dispatch(GramJob{rows, columns, x.data(), stride, out.data(), nullptr});
        EXPECT_EQ(out, gram) << isa << ", " << rows << " x " << columns << ", threads " << threads;
      }
    }
  }
  cpu::set_thread_count(1);
  cpu::force_isa(before.c_str());
}

}  // namespace
}  // namespace frugalore
