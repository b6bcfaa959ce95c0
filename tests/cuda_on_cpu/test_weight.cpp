#include <limits>

#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

struct Update {
  DType weight_dtype, update_dtype;
  int64_t count;
  Bytes weight, update;
  double lr = 1e-3;
  int64_t progress[3] = {7, 0, 1};
  bool stochastic = true;
  int64_t first_index = 0;

  WeightUpdateJob job() {
    return {weight.data(), weight_dtype,
            update.data(), update_dtype,
            count,         WeightStep{&lr, progress, -0.25, 0.1, true, stochastic, 5, 3, first_index}};
  }
  auto bytes() const { return std::tie(weight); }
};

Update update_case(DType weight_dtype, DType update_dtype, int64_t count) {
  Update c;
  c.weight_dtype = weight_dtype;
  c.update_dtype = update_dtype;
  c.count = count;
  c.weight = random_floats(weight_dtype, count, 0.02f, 1);
  c.update = random_floats(update_dtype, count, 1.0f, 2);
  return c;
}

TEST(Weight, Update) {
  for (const DType weight_dtype : kFloats) {
    for (const DType update_dtype : kFloats) {
      for (const int64_t count : {1, 4, 7, 1030}) {
        for (const int64_t first_index : {int64_t{0}, int64_t{2}, (int64_t{1} << 35) + 1}) {
          Update c = update_case(weight_dtype, update_dtype, count);
          c.first_index = first_index;
          expect_same_bytes(c);
        }
      }
    }
  }
}

TEST(Weight, ToNearest) {
  for (const DType dtype : kFloats) {
    Update c = update_case(dtype, DType::f32, 130);
    c.stochastic = false;
    expect_same_bytes(c);
  }
}

TEST(Weight, OddValues) {
  for (const DType dtype : kFloats) {
    for (const bool stochastic : {false, true}) {
      Update c = update_case(dtype, DType::f32, 130);
      c.stochastic = stochastic;
      store(c.update, DType::f32, 5, std::numeric_limits<float>::quiet_NaN());
      store(c.update, DType::f32, 7, std::numeric_limits<float>::infinity());
      store(c.update, DType::f32, 9, 3e38f);
      store(c.weight, dtype, 11, 65504.0f);
      expect_same_bytes(c);
    }
  }
}

TEST(Weight, SkippedUpdateWritesNothing) {
  Update c = update_case(DType::bf16, DType::f32, 130);
  c.progress[2] = 0;
  const Bytes before = c.weight;
  ASSERT_EQ(cuda::run(c.job(), nullptr), cudaSuccess);
  EXPECT_TRUE(c.weight == before);
}

}  // namespace
}  // namespace frugalore::test
