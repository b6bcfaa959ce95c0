#include <limits>

#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

const GroupLayout kLayouts[] = {{1, 1, 1},   {1, 3, 2},     {3, 5, 4},  {2, 31, 64},
                                {5, 67, 33}, {3, 300, 256}, {40, 9, 3}, {2, 64, 32}};

struct Matrix {
  GroupLayout layout;
  DType dtype;
  Bytes x, codes, scale, zero;

  int64_t elements() const { return layout.rows * layout.columns; }
};

struct Quantize : Matrix {
  Int8QuantizeJob job() { return {x.data(), dtype, codes.data(), at<float>(scale), zero.data(), layout}; }
  auto bytes() const { return std::tie(codes, scale, zero); }
};

struct Dequantize : Matrix {
  Int8DequantizeJob job() { return {codes.data(), at<float>(scale), zero.data(), x.data(), dtype, layout}; }
  auto bytes() const { return std::tie(x); }
};

struct Update : Matrix {  // x is the update
  double lr = 1e-3;
  int64_t progress[3] = {7, 0, 1};
  double weight_decay = 0.0;
  bool decay_after = false, stochastic = true;
  int64_t first_index = 0;

  Int8UpdateJob job() {
    return {codes.data(),
            at<float>(scale),
            zero.data(),
            x.data(),
            dtype,
            layout,
            WeightStep{&lr, progress, -1.0, weight_decay, decay_after, stochastic, 5, 3, first_index}};
  }
  auto bytes() const { return std::tie(codes, scale, zero); }
};

Quantize quantize_case(const GroupLayout& layout, DType dtype, float size) {
  Quantize c;
  c.layout = layout;
  c.dtype = dtype;
  c.x = random_floats(dtype, c.elements(), size, 1);
  c.codes = unwritten<uint8_t>(c.elements());
  c.scale = unwritten<float>(group_count(layout));
  c.zero = unwritten<uint8_t>(group_count(layout));
  return c;
}

Update update_case(const GroupLayout& layout, DType dtype) {
  Quantize weight = quantize_case(layout, DType::f32, 0.02f);
  cpu::dispatch(weight.job());
  Update c;
  static_cast<Matrix&>(c) = weight;
  c.dtype = dtype;
  c.x = random_floats(dtype, c.elements(), 1.0f, 2);
  return c;
}

TEST(Int8, Quantize) {
  for (const GroupLayout& layout : kLayouts) {
    for (const DType dtype : kFloats) {
      for (const float size : {1.0f, 1e-6f, 1e4f}) expect_same_bytes(quantize_case(layout, dtype, size));
    }
  }
}

TEST(Int8, QuantizeNonFinite) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const DType dtype : kFloats) {
      Quantize c = quantize_case({3, 300, 64}, dtype, 1.0f);
      for (const int64_t i : {int64_t{0}, int64_t{299}, int64_t{500}}) store(c.x, dtype, i, bad);
      expect_same_bytes(c);
    }
  }
}

TEST(Int8, Dequantize) {
  for (const GroupLayout& layout : kLayouts) {
    for (const DType dtype : kFloats) {
      Dequantize c;
      c.layout = layout;
      c.dtype = dtype;
      c.x = Bytes(c.elements() * size_of(dtype), 0xa5);
      c.codes = random_bytes(c.elements(), 256, 2);
      c.scale = random_floats(DType::f32, group_count(layout), 1.0f, 3);
      c.zero = random_bytes(group_count(layout), 256, 4);
      expect_same_bytes(c);
    }
  }
}

TEST(Int8, Update) {
  for (const GroupLayout& layout : kLayouts) {
    for (const DType dtype : kFloats) {
      for (const double lr : {1e-2, 1e-5}) {
        for (const int64_t first_index : {int64_t{0}, int64_t{3}, (int64_t{1} << 35) + 1}) {
          Update c = update_case(layout, dtype);
          c.lr = lr;
          c.first_index = first_index;
          expect_same_bytes(c);
        }
      }
    }
  }
}

TEST(Int8, UpdateModes) {
  for (const bool decay_after : {false, true}) {
    for (const bool stochastic : {false, true}) {
      Update c = update_case({3, 300, 64}, DType::bf16);
      c.weight_decay = 10.0;
      c.decay_after = decay_after;
      c.stochastic = stochastic;
      expect_same_bytes(c);
    }
  }
}

TEST(Int8, UpdateOfOddValues) {
  Update c = update_case({3, 300, 64}, DType::f32);
  store(c.x, c.dtype, 5, std::numeric_limits<float>::quiet_NaN());
  store(c.x, c.dtype, 70, std::numeric_limits<float>::infinity());
  store(c.x, c.dtype, 140, 1e30f);
  store(c.x, c.dtype, 310, 1e10f);
  at<float>(c.scale)[9] = std::numeric_limits<float>::quiet_NaN();
  expect_same_bytes(c);
}

TEST(Int8, SkippedUpdateWritesNothing) {
  Update c = update_case({3, 300, 64}, DType::f32);
  c.progress[2] = 0;
  const Bytes before = c.codes;
  ASSERT_EQ(cuda::run(c.job(), nullptr), cudaSuccess);
  EXPECT_TRUE(c.codes == before);
  expect_same_bytes(c);
}

}  // namespace
}  // namespace frugalore::test
