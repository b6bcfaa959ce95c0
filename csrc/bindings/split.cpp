#include "core/split.h"

#include "bindings/adam_arguments.h"
#include "bindings/families.h"
#include "bindings/run.h"
#include "bindings/selection_arguments.h"

namespace frugalore {
namespace {

// rule and outside (as in SplitRule and OutsideRule), inside_scale, outside_scale
using SplitArguments = std::tuple<int64_t, int64_t, double, double>;
// beta1, beta2, eps, eps_raw of adamw; beta1, beta2 of lion and momentum, dampening of sgdm, with nesterov
using SplitHyperArguments = std::tuple<double, double, double, bool, bool>;

int64_t checked_choice(const char* name, int64_t value) {
  if (value >= 0 && value <= 2) return value;
  throw pybind11::value_error(std::string(name) + ": 0 to 2 expected, got " + std::to_string(value));
}

SplitHyper checked_split_hyper(const SplitArguments& split, const SplitHyperArguments& numbers) {
  const auto& [rule, outside, inside_scale, outside_scale] = split;
  const auto& [first, second, eps, eps_raw, nesterov] = numbers;
  SplitHyper hyper{};
  hyper.rule = static_cast<SplitRule>(checked_choice("rule", rule));
  hyper.outside = static_cast<OutsideRule>(checked_choice("outside", outside));
  check_finite("inside_scale", inside_scale);
  check_finite("outside_scale", outside_scale);
  hyper.inside_scale = inside_scale;
  hyper.outside_scale = outside_scale;
  if (hyper.rule == SplitRule::adamw) {
    hyper.adam = checked_hyper(AdamHyperArguments{first, second, eps, eps_raw});
    return hyper;
  }
  const bool is_lion = hyper.rule == SplitRule::lion;
  check_unit_interval(is_lion ? "beta1" : "momentum", first);
  check_unit_interval(is_lion ? "beta2" : "dampening", second);
  hyper.momentum = MomentumHyper{is_lion ? MomentumRule::lion : MomentumRule::sgdm, first, second, nesterov};
  return hyper;
}

// A tensor as a matrix: its first dimension by all others; a vector is one row.
int64_t matrix_rows(const TensorRef& t) {
  return t.ndim < 2 ? 1 : t.shape[0];
}

int64_t matrix_columns(const TensorRef& t) {
  int64_t columns = 1;
  for (int i = t.ndim < 2 ? 0 : 1; i < t.ndim; ++i) columns *= t.shape[i];
  return columns;
}

void add_lines(std::vector<Place>& places, const char* name, const std::optional<TensorRef>& lines,
               size_t i) {
  if (lines) places.push_back(Place{name, *lines, false, static_cast<int64_t>(i)});
}

// moments: exp_avgs and exp_avg_sqs of adamw, the momenta of sgdm and lion and nothing. beta_powers: of
// adamw.
void split_step(const TensorList& params, const TensorList& grads,
                const std::vector<SelectionArguments>& selections,
                const std::tuple<TensorList, TensorList>& moments, const TensorList& progress,
                const TensorList& beta_powers, const std::vector<int64_t>& tensor_ids,
                const std::vector<bool>& fresh, const SplitArguments& split,
                const SplitHyperArguments& numbers, const AdamWriteArguments& write_arguments) {
  const auto& [firsts, seconds] = moments;
  if (params.empty()) return;
  const size_t length = params.size();
  const SplitHyper hyper = checked_split_hyper(split, numbers);
  const AdamWrite write = checked_write(write_arguments, params[0]);
  const bool is_adamw = hyper.rule == SplitRule::adamw;
  const char *first_name = is_adamw ? "exp_avgs" : "momenta", *second_name = "exp_avg_sqs";
  check_step_lists(params, grads, progress, tensor_ids);
  check_length("selections", selections, length);
  check_length("fresh", fresh, length);
  check_length(first_name, firsts, length);
  if (is_adamw) {
    check_length(second_name, seconds, length);
    check_length("beta_powers", beta_powers, length);
  }
  std::vector<SplitTensor> tensors;
  tensors.reserve(length);
  for (size_t i = 0; i < length; ++i) {
    const TensorRef& param = params[i];
    SplitTensor tensor{};
    tensor.rows = matrix_rows(param);
    tensor.columns = matrix_columns(param);
    tensor.selection =
        checked_selection(element_name("selections", i), selections[i], tensor.rows, tensor.columns, param);
    tensor.count = split_count(hyper, write, tensor.selection, tensor.rows, tensor.columns);
    const int64_t inside = selected_count(tensor.selection, tensor.rows, tensor.columns);
    check_state(first_name, firsts, i, DType::f32, inside, param);
    tensor.first = firsts[i].as<float>();
    if (is_adamw) {
      check_state(second_name, seconds, i, DType::f32, inside, param);
      check_state("beta_powers", beta_powers, i, DType::f64, 2, param);
      tensor.second = seconds[i].as<float>();
      tensor.beta_powers = beta_powers[i].as<double>();
    }
    tensor.param = param.data;
    tensor.grad = grads[i].data;
    tensor.progress = progress[i].as<int64_t>();
    tensor.tensor_id = static_cast<uint32_t>(tensor_ids[i]);
    tensor.param_dtype = param.dtype;
    tensor.grad_dtype = grads[i].dtype;
    tensor.fresh = fresh[i];
    tensors.push_back(tensor);
  }
  std::vector<Place> places;
  places.reserve(8 * length + 1);
  add_places(places, "params", params, true);
  add_places(places, "grads", grads, false);
  for (size_t i = 0; i < length; ++i) {
    add_lines(places, "selections.below", std::get<1>(selections[i]), i);
    add_lines(places, "selections.chosen", std::get<2>(selections[i]), i);
  }
  add_places(places, first_name, firsts, true);
  add_places(places, second_name, seconds, true);
  add_places(places, "progress", progress, true);
  add_places(places, "beta_powers", beta_powers, true);
  places.push_back(Place{"lr", std::get<0>(write_arguments), false});
  check_apart(places);
  run(params[0].device, SplitStepJob{tensors.data(), static_cast<int64_t>(length), hyper, write});
}

}  // namespace

void bind_split(pybind11::module_& m) {
  m.def("split_step", &split_step);
}

}  // namespace frugalore
