#include "bindings/weight_step.h"

#include <string>

#include "core/progress.h"

namespace py = pybind11;

namespace frugalore {

void check_tensor_id(int64_t tensor_id) {
  if (tensor_id >= 0 && tensor_id <= INT64_C(0xffffffff)) return;
  throw py::value_error("tensor_id: an integer from 0 to 2^32 - 1 expected, got " +
                        std::to_string(tensor_id));
}

void check_first_index(int64_t first_index, int64_t count) {
  if (first_index < 0) {
    throw py::value_error("first_index: zero or more expected, got " + std::to_string(first_index));
  }
  if (first_index > INT64_MAX - count) {
    throw py::value_error("first_index: at most 2^63 - 1 - " + std::to_string(count) +
                          " expected for as many elements, got " + std::to_string(first_index));
  }
}

WeightStep checked_weight_step(const WeightStepArguments& arguments, const TensorRef& weight) {
  check_vector("lr", arguments.lr, DType::f64, 1, weight);
  check_vector("progress", arguments.progress, DType::i64, kProgressLength, weight);
  check_tensor_id(arguments.tensor_id);
  check_first_index(arguments.first_index, weight.numel());
  check_finite("alpha", arguments.alpha);
  check_not_negative("weight_decay", arguments.weight_decay);
  WeightStep step;
  step.lr = arguments.lr.as<double>();
  step.progress = arguments.progress.as<int64_t>();
  step.alpha = arguments.alpha;
  step.weight_decay = arguments.weight_decay;
  step.decay_after = arguments.decay_after;
  step.stochastic = arguments.stochastic;
  step.seed = static_cast<uint64_t>(arguments.seed);
  step.tensor_id = static_cast<uint32_t>(arguments.tensor_id);
  step.first_index = arguments.first_index;
  return step;
}

}  // namespace frugalore
