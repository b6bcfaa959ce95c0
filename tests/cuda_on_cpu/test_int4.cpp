#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

const GroupLayout kLayouts[] = {{1, 1, 2},   {1, 2, 2},     {3, 5, 4}, {2, 31, 64},
                                {5, 67, 32}, {3, 300, 256}, {40, 9, 2}};

struct Packed {
  GroupLayout layout;
  DType dtype;
  Bytes x, packed, scale, zero;

  int64_t elements() const { return layout.rows * layout.columns; }
  int64_t row_bytes() const { return ceil_div(layout.columns, 2); }
};

struct Quantize : Packed {
  Int4QuantizeJob job() { return {x.data(), dtype, packed.data(), at<float>(scale), zero.data(), layout}; }
  auto bytes() const { return std::tie(packed, scale, zero); }
};

struct Dequantize : Packed {
  Int4DequantizeJob job() { return {packed.data(), at<float>(scale), zero.data(), x.data(), dtype, layout}; }
  auto bytes() const { return std::tie(x); }
};

Quantize quantize_case(const GroupLayout& layout, DType dtype, float size) {
  Quantize c;
  c.layout = layout;
  c.dtype = dtype;
  c.x = random_floats(dtype, c.elements(), size, 1);
  c.packed = unwritten<uint8_t>(layout.rows * c.row_bytes());
  c.scale = unwritten<float>(group_count(layout));
  c.zero = unwritten<uint8_t>(group_count(layout));
  return c;
}

TEST(Int4, Quantize) {
  for (const GroupLayout& layout : kLayouts) {
    for (const DType dtype : kFloats) expect_same_bytes(quantize_case(layout, dtype, 1.0f));
    for (const float size : {1e-6f, 1e4f}) expect_same_bytes(quantize_case(layout, DType::f32, size));
  }
}

TEST(Int4, QuantizeNonFinite) {
  for (const float bad : kNonFinite) {
    for (const DType dtype : kFloats) {
      Quantize c = quantize_case({3, 300, 64}, dtype, 1.0f);
      for (const int64_t i : {int64_t{0}, int64_t{299}, int64_t{500}}) store(c.x, dtype, i, bad);
      expect_same_bytes(c);
    }
  }
}

TEST(Int4, Dequantize) {
  for (const GroupLayout& layout : kLayouts) {
    for (const DType dtype : kFloats) {
      Dequantize c;
      c.layout = layout;
      c.dtype = dtype;
      c.x = Bytes(c.elements() * size_of(dtype), 0xa5);
      c.packed = random_bytes(layout.rows * c.row_bytes(), 256, 2);
      c.scale = random_floats(DType::f32, group_count(layout), 1.0f, 3);
      c.zero = random_bytes(group_count(layout), 16, 4);
      expect_same_bytes(c);
    }
  }
}

struct Codes {
  int64_t rows, columns;
  Bytes codes, packed;
};

struct Pack : Codes {
  Int4PackJob job() { return {codes.data(), packed.data(), rows, columns}; }
  auto bytes() const { return std::tie(packed); }
};

struct Unpack : Codes {
  Int4UnpackJob job() { return {packed.data(), codes.data(), rows, columns}; }
  auto bytes() const { return std::tie(codes); }
};

TEST(Int4, PackAndUnpack) {
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 1}, {7, 2}, {5, 33}, {2, 600}}) {
    const int64_t codes = rows * columns, packed = rows * ceil_div(columns, 2);
    expect_same_bytes(Pack{{rows, columns, random_bytes(codes, 256, 5), unwritten<uint8_t>(packed)}});
    expect_same_bytes(Unpack{{rows, columns, unwritten<uint8_t>(codes), random_bytes(packed, 256, 6)}});
  }
}

}  // namespace
}  // namespace frugalore::test
