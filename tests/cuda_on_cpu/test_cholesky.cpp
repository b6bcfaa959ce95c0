#include "core/cholesky.h"

#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

struct Gram {
  int64_t size;
  double shift;
  std::vector<double> gram, pivots, workspace;
  std::vector<float> inverse;

  // Of `rank` random rows' worth of directions.
  Gram(int64_t size_, int64_t rank, double shift_, double scale = 1.0)
      : size(size_),
        shift(shift_),
        gram(size_ * size_),
        pivots(size_, -7.0),
        workspace(cholesky_workspace(size_), std::numeric_limits<double>::quiet_NaN()),
        inverse(size_ * size_, -7.0f) {
    std::mt19937_64 random(2);
    std::normal_distribution<double> normal;
    std::vector<double> rows(size * rank);
    for (double& value : rows) value = scale * normal(random);
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t j = 0; j < size; ++j) {
        for (int64_t p = 0; p < rank; ++p) gram[i * size + j] += rows[i * rank + p] * rows[j * rank + p];
      }
    }
  }

  CholeskyInverseJob job() {
    return {size, gram.data(), shift, inverse.data(), pivots.data(), workspace.data()};
  }
};

double largest(const std::vector<float>& values) {
  double most = 0.0;
  for (const float value : values) most = std::max(most, std::abs(double{value}));
  return most;
}

// The sums differ in order: near the CPU's result, and the same bytes in every order of threads.
void expect_near_the_cpu(const Gram& matrix, double tolerance) {
  Gram cpu = matrix, first = matrix;
  cpu::dispatch(cpu.job());
  bool is_first = true;
  for (const Order& order : kOrders) {
    SCOPED_TRACE(order.name);
    cuda_on_cpu::set_thread_order(order.order, 17);
    cuda_on_cpu::set_most_blocks(order.most_blocks);
    Gram cuda = matrix;
    ASSERT_EQ(cuda::run(cuda.job(), nullptr), cudaSuccess);
    if (is_first) first = cuda;
    is_first = false;
    EXPECT_EQ(std::memcmp(cuda.inverse.data(), first.inverse.data(), 4 * cuda.inverse.size()), 0);
    EXPECT_EQ(std::memcmp(cuda.pivots.data(), first.pivots.data(), 8 * cuda.pivots.size()), 0);
  }
  const double most = largest(cpu.inverse);
  for (int64_t i = 0; i < matrix.size * matrix.size; ++i) {
    ASSERT_NEAR(first.inverse[i], cpu.inverse[i], tolerance * most) << i;
  }
  for (int64_t j = 0; j < matrix.size; ++j) {
    if (std::isnan(cpu.pivots[j])) {
      EXPECT_TRUE(std::isnan(first.pivots[j]));
    } else {
      EXPECT_NEAR(first.pivots[j], cpu.pivots[j], 1e-12 * matrix.gram[0] * matrix.size) << j;
    }
  }
}

TEST(Cholesky, NearTheCpu) {
  for (const int64_t size : {1, 31, 32, 33, 65, 97, 200}) {
    SCOPED_TRACE(size);
    expect_near_the_cpu(Gram(size, size + 40, 1e-12), 1e-6);
  }
  expect_near_the_cpu(Gram(70, 90, 0.0, 1e20), 1e-6);
  expect_near_the_cpu(Gram(70, 90, 1e-3, 1e-20), 1e-6);
}

TEST(Cholesky, SingularZeroAndNotFinite) {
  Gram singular(90, 5, 0.0);
  ASSERT_EQ(cuda::run(singular.job(), nullptr), cudaSuccess);
  EXPECT_LT(largest(singular.inverse), 1e9);
  for (const float value : singular.inverse) EXPECT_TRUE(std::isfinite(value));
  expect_near_the_cpu(Gram(90, 0, 1e-12), 0.0);
  Gram spoilt(90, 100, 1e-12);
  spoilt.gram[89 * 90 + 3] = std::numeric_limits<double>::quiet_NaN();
  expect_near_the_cpu(spoilt, 0.0);
  spoilt.gram[89 * 90 + 3] = std::numeric_limits<double>::infinity();
  expect_near_the_cpu(spoilt, 0.0);
}

}  // namespace
}  // namespace frugalore::test
