#include "core/adamw8bit.h"

#include "bindings/adam_arguments.h"
#include "bindings/families.h"
#include "bindings/run.h"

namespace frugalore {
namespace {

// exp_avgs, exp_avg_absmaxs, exp_avg_sqs, exp_avg_sq_absmaxs
using MomentLists = std::tuple<TensorList, TensorList, TensorList, TensorList>;
using Moments = std::tuple<TensorRef, TensorRef, TensorRef, TensorRef>;

void adamw8bit_step(const TensorList& params, const TensorList& grads, const MomentLists& moments,
                    const TensorList& progress, const TensorList& beta_powers,
                    const std::vector<int64_t>& tensor_ids, const AdamHyperArguments& hyper,
                    const AdamWriteArguments& write) {
  const auto& [exp_avgs, exp_avg_absmaxs, exp_avg_sqs, exp_avg_sq_absmaxs] = moments;
  if (params.empty()) return;
  const AdamLists lists{params, grads, progress, beta_powers, tensor_ids};
  check_adam_lists(lists);
  check_length("exp_avgs", exp_avgs, params.size());
  check_length("exp_avg_absmaxs", exp_avg_absmaxs, params.size());
  check_length("exp_avg_sqs", exp_avg_sqs, params.size());
  check_length("exp_avg_sq_absmaxs", exp_avg_sq_absmaxs, params.size());
  std::vector<Adamw8bitTensor> tensors;
  tensors.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const int64_t count = params[i].numel(), blocks = ceil_div(count, kAdam8bitBlock);
    check_state("exp_avgs", exp_avgs, i, DType::u8, count, params[i]);
    check_state("exp_avg_absmaxs", exp_avg_absmaxs, i, DType::f32, blocks, params[i]);
    check_state("exp_avg_sqs", exp_avg_sqs, i, DType::u8, count, params[i]);
    check_state("exp_avg_sq_absmaxs", exp_avg_sq_absmaxs, i, DType::f32, blocks, params[i]);
    tensors.push_back(Adamw8bitTensor{params[i].data, grads[i].data, exp_avgs[i].as<uint8_t>(),
                                      exp_avg_absmaxs[i].as<float>(), exp_avg_sqs[i].as<uint8_t>(),
                                      exp_avg_sq_absmaxs[i].as<float>(), progress[i].as<int64_t>(),
                                      beta_powers[i].as<double>(), count,
                                      static_cast<uint32_t>(tensor_ids[i]), params[i].dtype, grads[i].dtype});
  }
  const Adamw8bitStepJob job{tensors.data(), static_cast<int64_t>(tensors.size()), checked_hyper(hyper),
                             checked_write(write, params[0])};
  check_adam_places(lists, write,
                    {{"exp_avgs", exp_avgs},
                     {"exp_avg_absmaxs", exp_avg_absmaxs},
                     {"exp_avg_sqs", exp_avg_sqs},
                     {"exp_avg_sq_absmaxs", exp_avg_sq_absmaxs}});
  run(params[0].device, job);
}

void adamw8bit_direction(const TensorRef& r, const Moments& moments, const TensorRef& progress,
                         const TensorRef& beta_powers, const AdamHyperArguments& hyper) {
  const auto& [exp_avg, exp_avg_absmax, exp_avg_sq, exp_avg_sq_absmax] = moments;
  check_direction(r, progress, beta_powers);
  const int64_t count = r.numel(), blocks = ceil_div(count, kAdam8bitBlock);
  check_vector("exp_avg", exp_avg, DType::u8, count, r);
  check_vector("exp_avg_absmax", exp_avg_absmax, DType::f32, blocks, r);
  check_vector("exp_avg_sq", exp_avg_sq, DType::u8, count, r);
  check_vector("exp_avg_sq_absmax", exp_avg_sq_absmax, DType::f32, blocks, r);
  check_apart({{"r", r, true},
               {"exp_avg", exp_avg, true},
               {"exp_avg_absmax", exp_avg_absmax, true},
               {"exp_avg_sq", exp_avg_sq, true},
               {"exp_avg_sq_absmax", exp_avg_sq_absmax, true},
               {"progress", progress, true},
               {"beta_powers", beta_powers, true}});
  run(r.device,
      Adamw8bitDirectionJob{r.data, r.dtype, count, exp_avg.as<uint8_t>(), exp_avg_absmax.as<float>(),
                            exp_avg_sq.as<uint8_t>(), exp_avg_sq_absmax.as<float>(), progress.as<int64_t>(),
                            beta_powers.as<double>(), checked_hyper(hyper)});
}

constexpr DynamicTables kTables = make_dynamic_tables();

// The 256 values of a map, in the order of the codes.
std::vector<float> dynamic_map_values(bool with_sign) {
  const float* values = with_sign ? kTables.signed_value : kTables.unsigned_value;
  return std::vector<float>(values, values + 256);
}

// The codes of values in [-1, 1] or [0, 1], as the kernels find them. Tensors on the CPU.
void dynamic_map_codes(const TensorRef& x, const TensorRef& codes, bool with_sign) {
  check_dtype("x", x, {DType::f32});
  check_contiguous("x", x);
  check_vector("codes", codes, DType::u8, x.numel(), x);
  if (x.device.cuda) throw pybind11::value_error("x: a tensor on cpu expected, got " + device_name(x.device));
  const float* from = x.as<const float>();
  auto* to = codes.as<uint8_t>();
  for (int64_t i = 0; i < x.numel(); ++i) {
    const int32_t cell = dynamic_cell(from[i]);
    to[i] = with_sign ? dynamic_signed_code(kTables.signed_cell[cell], from[i])
                      : dynamic_unsigned_code(kTables.unsigned_cell[cell], from[i]);
  }
}

}  // namespace

void bind_adamw8bit(pybind11::module_& m) {
  m.def("adamw8bit_step", &adamw8bit_step);
  m.def("adamw8bit_direction", &adamw8bit_direction);
  m.def("dynamic_map_values", &dynamic_map_values);
  m.def("dynamic_map_codes", &dynamic_map_codes);
}

}  // namespace frugalore
