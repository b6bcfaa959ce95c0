// The arguments that every op which writes a weight shares (WeightStep in core/int8.h).
#pragma once

#include "bindings/tensor_ref.h"
#include "core/int8.h"

namespace frugalore {

// As they come from Python; the seed is any 64 bits.
struct WeightStepArguments {
  const TensorRef& lr;
  const TensorRef& progress;
  double alpha, weight_decay;
  bool decay_after;
  int64_t seed, tensor_id, first_index;
  bool stochastic;
};

void check_tensor_id(int64_t tensor_id);
void check_first_index(int64_t first_index, int64_t count);

// Checks the arguments of a step that writes `weight`.
WeightStep checked_weight_step(const WeightStepArguments& arguments, const TensorRef& weight);

}  // namespace frugalore
