#include "core/momentum.h"

#include "bindings/adam_arguments.h"
#include "bindings/families.h"
#include "bindings/run.h"

namespace frugalore {
namespace {

// is_lion, momentum or beta1, dampening or beta2, nesterov
using MomentumHyperArguments = std::tuple<bool, double, double, bool>;

MomentumHyper checked_momentum_hyper(const MomentumHyperArguments& arguments) {
  const auto& [is_lion, first, second, nesterov] = arguments;
  check_unit_interval(is_lion ? "beta1" : "momentum", first);
  check_unit_interval(is_lion ? "beta2" : "dampening", second);
  return MomentumHyper{is_lion ? MomentumRule::lion : MomentumRule::sgdm, first, second, nesterov};
}

void take_step(const TensorList& params, const TensorList& grads, const TensorList& momenta,
               const TensorList& progress, const std::vector<int64_t>& tensor_ids,
               const MomentumHyperArguments& hyper, const AdamWriteArguments& write) {
  if (params.empty()) return;
  check_step_lists(params, grads, progress, tensor_ids);
  check_length("momenta", momenta, params.size());
  std::vector<MomentumTensor> tensors;
  tensors.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    check_state("momenta", momenta, i, DType::f32, params[i].numel(), params[i]);
    tensors.push_back(MomentumTensor{params[i].data, grads[i].data, momenta[i].as<float>(),
                                     progress[i].as<int64_t>(), params[i].numel(),
                                     static_cast<uint32_t>(tensor_ids[i]), params[i].dtype, grads[i].dtype});
  }
  const MomentumStepJob job{tensors.data(), static_cast<int64_t>(tensors.size()),
                            checked_momentum_hyper(hyper), checked_write(write, params[0])};
  std::vector<Place> places;
  places.reserve(4 * params.size() + 1);
  add_places(places, "params", params, true);
  add_places(places, "grads", grads, false);
  add_places(places, "momenta", momenta, true);
  add_places(places, "progress", progress, true);
  places.push_back(Place{"lr", std::get<0>(write), false});
  check_apart(places);
  run(params[0].device, job);
}

void take_direction(const TensorRef& r, const TensorRef& momentum, const TensorRef& progress,
                    const MomentumHyperArguments& hyper) {
  check_float("r", r);
  check_contiguous("r", r);
  check_vector("progress", progress, DType::i64, kProgressLength, r);
  check_vector("buffer", momentum, DType::f32, r.numel(), r);
  check_apart({{"r", r, true}, {"buffer", momentum, true}, {"progress", progress, true}});
  run(r.device, MomentumDirectionJob{r.data, r.dtype, r.numel(), momentum.as<float>(), progress.as<int64_t>(),
                                     checked_momentum_hyper(hyper)});
}

}  // namespace

void bind_momentum(pybind11::module_& m) {
  m.def("momentum_step", &take_step);
  m.def("momentum_direction", &take_direction);
}

}  // namespace frugalore
