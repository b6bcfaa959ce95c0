#include "core/cholesky.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace frugalore {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(Cholesky, FiniteFloat) {
  EXPECT_EQ(finite_float(1.0 / 3.0), 1.0f / 3.0f);
  EXPECT_EQ(finite_float(1e300), std::numeric_limits<float>::max());
  EXPECT_EQ(finite_float(-kInfinity), -std::numeric_limits<float>::max());
  EXPECT_EQ(finite_float(kInfinity - kInfinity), 0.0f);
}

TEST(Cholesky, Pivots) {
  const GramScale scale = gram_scale(4.0, 0.25, true);
  EXPECT_EQ(scale.shift, 1.0);
  EXPECT_EQ(pivot_of(3.0, 3.0, scale, 10).root, 2.0);
  EXPECT_TRUE(pivot_of(3.0, 3.0, scale, 10).kept);
  EXPECT_FALSE(pivot_of(-1.0, 3.0, scale, 10).kept);
  EXPECT_GT(pivot_of(-1.0, 0.0, scale, 10).root, 0.0);
  EXPECT_EQ(gram_scale(0.0, 0.25, true).kind, GramKind::identity);
  EXPECT_EQ(gram_scale(1.0, 0.25, false).kind, GramKind::not_finite);
  EXPECT_EQ(gram_scale(1e300, 1e300, true).kind, GramKind::not_finite);
}

// M G Mᵀ = I for G = X Xᵀ, at the sizes of strips and blocks.
TEST(Cholesky, EverySizeOnEveryInstructionSet) {
  const std::string before = cpu::isa_name(cpu::active_isa());
  for (const int64_t size : {1, 5, 24, 47, 48, 49, 100, 145}) {
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    std::vector<double> gram(size * size), x(size * 2 * size);
    for (double& value : x) value = normal(random);
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j) {
        for (int64_t p = 0; p < 2 * size; ++p)
          gram[i * size + j] += x[i * 2 * size + p] * x[j * 2 * size + p];
      }
    }
    for (const char* isa : {"baseline", "avx2", "avx512"}) {
      try {
        cpu::force_isa(isa);
      } catch (const std::invalid_argument&) {
        continue;
      }
      SCOPED_TRACE(std::string(isa) + " " + std::to_string(size));
      cpu::set_thread_count(3);
      std::vector<float> m(size * size, 7.0f);
      std::vector<double> pivots(size);
      cpu::dispatch(CholeskyInverseJob{size, gram.data(), 0.0, m.data(), pivots.data(), nullptr});
      for (int64_t i = 0; i < size; ++i) {
        std::vector<double> row(size);
        for (int64_t j = 0; j < size; ++j) {
          for (int64_t p = 0; p < size; ++p) row[j] += m[i * size + p] * gram[p * size + j];
        }
        for (int64_t j = 0; j < size; ++j) {
          double sum = 0.0;
          for (int64_t p = 0; p < size; ++p) sum += row[p] * m[j * size + p];
          ASSERT_NEAR(sum, i == j ? 1.0 : 0.0, 1e-4) << i << ", " << j;
        }
      }
    }
  }
  cpu::set_thread_count(1);
  cpu::force_isa(before.c_str());
}

}  // namespace
}  // namespace frugalore
