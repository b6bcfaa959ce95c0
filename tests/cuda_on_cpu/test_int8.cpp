#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

const GroupLayout kLayouts[] = {{1, 1, 1},   {1, 2, 256},   {3, 5, 3}, {2, 31, 64},
                                {5, 67, 32}, {3, 300, 256}, {40, 9, 2}};

struct Groups {
  GroupLayout layout;
  DType dtype;
  Bytes x, codes, scale, zero;

  int64_t elements() const { return layout.rows * layout.columns; }
};

struct Quantize : Groups {
  Int8QuantizeJob job() { return {x.data(), dtype, codes.data(), at<float>(scale), zero.data(), layout}; }
  auto bytes() const { return std::tie(codes, scale, zero); }
};

struct Dequantize : Groups {
  Int8DequantizeJob job() { return {codes.data(), at<float>(scale), zero.data(), x.data(), dtype, layout}; }
  auto bytes() const { return std::tie(x); }
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

TEST(Int8, Quantize) {
  for (const GroupLayout& layout : kLayouts) {
    for (const DType dtype : kFloats) expect_same_bytes(quantize_case(layout, dtype, 1.0f));
    for (const float size : {1e-6f, 1e4f}) expect_same_bytes(quantize_case(layout, DType::f32, size));
  }
}

TEST(Int8, QuantizeNonFinite) {
  for (const float bad : kNonFinite) {
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
      c.x = Bytes(static_cast<size_t>(c.elements() * size_of(dtype)), 0xa5);
      c.codes = random_bytes(c.elements(), 256, 2);
      c.scale = random_floats(DType::f32, group_count(layout), 1.0f, 3);
      c.zero = random_bytes(group_count(layout), 256, 4);
      expect_same_bytes(c);
    }
  }
}

}  // namespace
}  // namespace frugalore::test
