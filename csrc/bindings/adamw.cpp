#include "core/adamw.h"

#include "bindings/adam_arguments.h"
#include "bindings/families.h"
#include "bindings/run.h"

namespace frugalore {
namespace {

// moments: exp_avgs, exp_avg_sqs.
void adamw_step(const TensorList& params, const TensorList& grads,
                const std::tuple<TensorList, TensorList>& moments, const TensorList& progress,
                const TensorList& beta_powers, const std::vector<int64_t>& tensor_ids,
                const AdamHyperArguments& hyper, const AdamWriteArguments& write) {
  const auto& [exp_avgs, exp_avg_sqs] = moments;
  if (params.empty()) return;
  const AdamLists lists{params, grads, progress, beta_powers, tensor_ids};
  check_adam_lists(lists);
  check_length("exp_avgs", exp_avgs, params.size());
  check_length("exp_avg_sqs", exp_avg_sqs, params.size());
  std::vector<AdamwTensor> tensors;
  tensors.reserve(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const int64_t count = params[i].numel();
    check_state("exp_avgs", exp_avgs, i, DType::f32, count, params[i]);
    check_state("exp_avg_sqs", exp_avg_sqs, i, DType::f32, count, params[i]);
    tensors.push_back(AdamwTensor{params[i].data, grads[i].data, exp_avgs[i].as<float>(),
                                  exp_avg_sqs[i].as<float>(), progress[i].as<int64_t>(),
                                  beta_powers[i].as<double>(), count, static_cast<uint32_t>(tensor_ids[i]),
                                  params[i].dtype, grads[i].dtype});
  }
  const AdamwStepJob job{tensors.data(), static_cast<int64_t>(tensors.size()), checked_hyper(hyper),
                         checked_write(write, params[0])};
  check_adam_places(lists, write, {{"exp_avgs", exp_avgs}, {"exp_avg_sqs", exp_avg_sqs}});
  run(params[0].device, job);
}

void adamw_direction(const TensorRef& r, const TensorRef& exp_avg, const TensorRef& exp_avg_sq,
                     const TensorRef& progress, const TensorRef& beta_powers,
                     const AdamHyperArguments& hyper) {
  check_direction(r, progress, beta_powers);
  check_vector("exp_avg", exp_avg, DType::f32, r.numel(), r);
  check_vector("exp_avg_sq", exp_avg_sq, DType::f32, r.numel(), r);
  check_apart({{"r", r, true},
               {"exp_avg", exp_avg, true},
               {"exp_avg_sq", exp_avg_sq, true},
               {"progress", progress, true},
               {"beta_powers", beta_powers, true}});
  run(r.device, AdamwDirectionJob{r.data, r.dtype, r.numel(), exp_avg.as<float>(), exp_avg_sq.as<float>(),
                                  progress.as<int64_t>(), beta_powers.as<double>(), checked_hyper(hyper)});
}

}  // namespace

void bind_adamw(pybind11::module_& m) {
  m.def("adamw_step", &adamw_step);
  m.def("adamw_direction", &adamw_direction);
}

}  // namespace frugalore
