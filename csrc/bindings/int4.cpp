#include "core/int4.h"

#include "bindings/families.h"
#include "bindings/run.h"

namespace frugalore {
namespace {

int64_t checked_groups(int64_t columns, int64_t group_size) {
  check_positive("group_size", group_size);
  if (group_size % 2 != 0) {
    throw pybind11::value_error("group_size: an even number expected (two codes share a byte), got " +
                                std::to_string(group_size));
  }
  return ceil_div(columns, group_size);
}

// The three tensors of a packed matrix, against the float matrix x [.., columns].
void check_packed(const TensorRef& packed, const TensorRef& scale, const TensorRef& zero, const TensorRef& x,
                  int64_t groups) {
  check_dtype("packed", packed, {DType::u8});
  check_dtype("scale", scale, {DType::f32});
  check_dtype("zero", zero, {DType::u8});
  check_grouped("packed", packed, x, ceil_div(x.columns(), 2));
  check_grouped("scale", scale, x, groups);
  check_grouped("zero", zero, x, groups);
  check_contiguous("packed", packed);
  check_contiguous("scale", scale);
  check_contiguous("zero", zero);
  check_same_device("packed", packed, "x", x);
  check_same_device("scale", scale, "x", x);
  check_same_device("zero", zero, "x", x);
}

void int4_quantize(const TensorRef& x, const TensorRef& packed, const TensorRef& scale, const TensorRef& zero,
                   int64_t group_size) {
  check_float("x", x);
  check_at_least_1d("x", x);
  check_contiguous("x", x);
  check_packed(packed, scale, zero, x, checked_groups(x.columns(), group_size));
  if (x.numel() == 0) return;
  run(x.device, Int4QuantizeJob{x.data, x.dtype, packed.as<uint8_t>(), scale.as<float>(), zero.as<uint8_t>(),
                                GroupLayout{x.rows(), x.columns(), group_size}});
}

void int4_dequantize(const TensorRef& packed, const TensorRef& scale, const TensorRef& zero,
                     const TensorRef& x, int64_t group_size) {
  check_float("x", x);
  check_at_least_1d("x", x);
  check_contiguous("x", x);
  check_packed(packed, scale, zero, x, checked_groups(x.columns(), group_size));
  if (x.numel() == 0) return;
  run(x.device, Int4DequantizeJob{packed.as<uint8_t>(), scale.as<float>(), zero.as<uint8_t>(), x.data,
                                  x.dtype, GroupLayout{x.rows(), x.columns(), group_size}});
}

// codes [.., columns] and packed [.., ceil(columns / 2)].
void check_codes(const TensorRef& codes, const TensorRef& packed) {
  check_dtype("codes", codes, {DType::u8});
  check_dtype("packed", packed, {DType::u8});
  check_at_least_1d("codes", codes);
  check_grouped("packed", packed, codes, ceil_div(codes.columns(), 2));
  check_contiguous("codes", codes);
  check_contiguous("packed", packed);
  check_same_device("packed", packed, "codes", codes);
}

void int4_pack(const TensorRef& codes, const TensorRef& packed) {
  check_codes(codes, packed);
  if (codes.numel() == 0) return;
  run(codes.device, Int4PackJob{codes.as<uint8_t>(), packed.as<uint8_t>(), codes.rows(), codes.columns()});
}

void int4_unpack(const TensorRef& packed, const TensorRef& codes) {
  check_codes(codes, packed);
  if (codes.numel() == 0) return;
  run(codes.device, Int4UnpackJob{packed.as<uint8_t>(), codes.as<uint8_t>(), codes.rows(), codes.columns()});
}

}  // namespace

void bind_int4(pybind11::module_& m) {
  m.def("int4_quantize", &int4_quantize);
  m.def("int4_dequantize", &int4_dequantize);
  m.def("int4_pack", &int4_pack);
  m.def("int4_unpack", &int4_unpack);
}

}  // namespace frugalore
