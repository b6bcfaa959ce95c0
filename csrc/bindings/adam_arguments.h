// The arguments that the AdamW families share, and their checks.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <initializer_list>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/tensor_ref.h"
#include "core/adamw.h"

namespace frugalore {

using TensorList = std::vector<TensorRef>;

// beta1, beta2, eps, eps_raw
using AdamHyperArguments = std::tuple<double, double, double, bool>;
// lr, weight_decay, decay_after, stochastic, seed (any 64 bits)
using AdamWriteArguments = std::tuple<TensorRef, double, bool, bool, int64_t>;

inline void check_unit_interval(const char* name, double value) {
  if (value >= 0.0 && value < 1.0) return;
  throw pybind11::value_error(std::string(name) + ": a number in [0, 1) expected, got " + number_name(value));
}

inline AdamHyper checked_hyper(const AdamHyperArguments& arguments) {
  const auto& [beta1, beta2, eps, eps_raw] = arguments;
  check_unit_interval("beta1", beta1);
  check_unit_interval("beta2", beta2);
  check_not_negative("eps", eps);
  return AdamHyper{beta1, beta2, eps, eps_raw};
}

inline AdamWrite checked_write(const AdamWriteArguments& arguments, const TensorRef& like) {
  const auto& [lr, weight_decay, decay_after, stochastic, seed] = arguments;
  check_vector("lr", lr, DType::f64, 1, like);
  check_not_negative("weight_decay", weight_decay);
  return AdamWrite{lr.as<const double>(), weight_decay, decay_after, stochastic, static_cast<uint64_t>(seed)};
}

inline std::string element_name(const char* list, size_t i) {
  return std::string(list) + "[" + std::to_string(i) + "]";
}

template <class Value>
void check_length(const char* name, const std::vector<Value>& list, size_t length) {
  if (list.size() == length) return;
  throw pybind11::value_error(std::string(name) + ": " + std::to_string(length) +
                              " expected, one for each of params, got " + std::to_string(list.size()));
}

// A list of state vectors: dtype, length and device of list[i].
inline void check_state(const char* name, const TensorList& list, size_t i, DType dtype, int64_t numel,
                        const TensorRef& like) {
  check_vector(element_name(name, i).c_str(), list[i], dtype, numel, like);
}

// What every full-rank step takes for each parameter.
inline void check_step_lists(const TensorList& params, const TensorList& grads, const TensorList& progress,
                             const std::vector<int64_t>& tensor_ids) {
  const size_t length = params.size();
  check_length("grads", grads, length);
  check_length("progress", progress, length);
  check_length("tensor_ids", tensor_ids, length);
  for (size_t i = 0; i < length; ++i) {
    const TensorRef &param = params[i], &grad = grads[i];
    const std::string param_name = element_name("params", i), grad_name = element_name("grads", i);
    check_float(param_name.c_str(), param);
    check_contiguous(param_name.c_str(), param);
    check_same_device(param_name.c_str(), param, "params[0]", params[0]);
    check_float(grad_name.c_str(), grad);
    check_same_shape(grad_name.c_str(), grad, param_name.c_str(), param);
    check_contiguous(grad_name.c_str(), grad);
    check_same_device(grad_name.c_str(), grad, param_name.c_str(), param);
    check_state("progress", progress, i, DType::i64, kProgressLength, param);
    if (tensor_ids[i] < 0 || tensor_ids[i] > 0xffffffffLL) {
      throw pybind11::value_error(element_name("tensor_ids", i) + ": 0 to 4294967295 expected, got " +
                                  std::to_string(tensor_ids[i]));
    }
  }
}

// With the record of AdamW, but for the moments.
struct AdamLists {
  const TensorList &params, &grads, &progress, &beta_powers;
  const std::vector<int64_t>& tensor_ids;
};

inline void check_adam_lists(const AdamLists& lists) {
  check_length("beta_powers", lists.beta_powers, lists.params.size());
  check_step_lists(lists.params, lists.grads, lists.progress, lists.tensor_ids);
  for (size_t i = 0; i < lists.params.size(); ++i) {
    check_state("beta_powers", lists.beta_powers, i, DType::f64, 2, lists.params[i]);
  }
}

inline void add_places(std::vector<Place>& places, const char* name, const TensorList& list, bool written) {
  for (size_t i = 0; i < list.size(); ++i) {
    places.push_back(Place{name, list[i], written, static_cast<int64_t>(i)});
  }
}

// All tensors of a full-rank step: `moments` are its lists of moments with their names.
inline void check_adam_places(const AdamLists& lists, const AdamWriteArguments& write,
                              std::initializer_list<std::pair<const char*, const TensorList&>> moments) {
  std::vector<Place> places;
  places.reserve(lists.params.size() * (4 + moments.size()) + 1);
  add_places(places, "params", lists.params, true);
  add_places(places, "grads", lists.grads, false);
  for (const auto& [name, list] : moments) add_places(places, name, list, true);
  add_places(places, "progress", lists.progress, true);
  add_places(places, "beta_powers", lists.beta_powers, true);
  places.push_back(Place{"lr", std::get<0>(write), false});
  check_apart(places);
}

// r and the records of a direction, except for the moments.
inline void check_direction(const TensorRef& r, const TensorRef& progress, const TensorRef& beta_powers) {
  check_float("r", r);
  check_contiguous("r", r);
  check_vector("progress", progress, DType::i64, kProgressLength, r);
  check_vector("beta_powers", beta_powers, DType::f64, 2, r);
}

}  // namespace frugalore
