#include "core/int8.h"

#include "bindings/families.h"
#include "bindings/run.h"
#include "bindings/weight_step.h"

namespace frugalore {
namespace {

// codes, scale and zero of one matrix.
void check_int8(const TensorRef& codes, const TensorRef& scale, const TensorRef& zero, int64_t group_size) {
  check_positive("group_size", group_size);
  check_dtype("codes", codes, {DType::u8});
  check_dtype("scale", scale, {DType::f32});
  check_dtype("zero", zero, {DType::u8});
  check_at_least_1d("codes", codes);
  const int64_t groups = ceil_div(codes.columns(), group_size);
  check_grouped("scale", scale, codes, groups);
  check_grouped("zero", zero, codes, groups);
  check_contiguous("codes", codes);
  check_contiguous("scale", scale);
  check_contiguous("zero", zero);
  check_same_device("scale", scale, "codes", codes);
  check_same_device("zero", zero, "codes", codes);
}

// A float matrix beside its codes.
void check_beside_codes(const char* name, const TensorRef& x, const TensorRef& codes) {
  check_float(name, x);
  check_same_shape(name, x, "codes", codes);
  check_contiguous(name, x);
  check_same_device(name, x, "codes", codes);
}

void int8_quantize(const TensorRef& x, const TensorRef& codes, const TensorRef& scale, const TensorRef& zero,
                   int64_t group_size) {
  check_beside_codes("x", x, codes);
  check_int8(codes, scale, zero, group_size);
  if (x.numel() == 0) return;
  run(x.device, Int8QuantizeJob{x.data, x.dtype, codes.as<uint8_t>(), scale.as<float>(), zero.as<uint8_t>(),
                                GroupLayout{x.rows(), x.columns(), group_size}});
}

void int8_dequantize(const TensorRef& codes, const TensorRef& scale, const TensorRef& zero,
                     const TensorRef& x, int64_t group_size) {
  check_int8(codes, scale, zero, group_size);
  check_beside_codes("x", x, codes);
  if (x.numel() == 0) return;
  run(x.device, Int8DequantizeJob{codes.as<uint8_t>(), scale.as<float>(), zero.as<uint8_t>(), x.data, x.dtype,
                                  GroupLayout{x.rows(), x.columns(), group_size}});
}

void int8_stochastic_update(const TensorRef& codes, const TensorRef& scale, const TensorRef& zero,
                            const TensorRef& update, const TensorRef& lr, const TensorRef& progress,
                            double alpha, double weight_decay, bool decay_after, int64_t seed,
                            int64_t tensor_id, int64_t first_index, int64_t group_size, bool stochastic) {
  check_int8(codes, scale, zero, group_size);
  check_beside_codes("update", update, codes);
  const WeightStep step = checked_weight_step(
      {lr, progress, alpha, weight_decay, decay_after, seed, tensor_id, first_index, stochastic}, codes);
  check_apart({{"codes", codes, true},
               {"scale", scale, true},
               {"zero", zero, true},
               {"update", update, false},
               {"lr", lr, false},
               {"progress", progress, false}});
  if (codes.numel() == 0) return;
  run(codes.device,
      Int8UpdateJob{codes.as<uint8_t>(), scale.as<float>(), zero.as<uint8_t>(), update.data, update.dtype,
                    GroupLayout{codes.rows(), codes.columns(), group_size}, step});
}

}  // namespace

void bind_int8(pybind11::module_& m) {
  m.def("int8_quantize", &int8_quantize);
  m.def("int8_dequantize", &int8_dequantize);
  m.def("int8_stochastic_update", &int8_stochastic_update);
}

}  // namespace frugalore
