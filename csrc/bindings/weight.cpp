#include "core/weight.h"

#include "bindings/families.h"
#include "bindings/run.h"
#include "bindings/weight_step.h"

namespace frugalore {
namespace {

void weight_update(const TensorRef& weight, const TensorRef& update, const TensorRef& lr,
                   const TensorRef& progress, double alpha, double weight_decay, bool decay_after,
                   int64_t seed, int64_t tensor_id, int64_t first_index, bool stochastic) {
  check_float("weight", weight);
  check_float("update", update);
  check_same_shape("update", update, "weight", weight);
  check_contiguous("weight", weight);
  check_contiguous("update", update);
  check_same_device("update", update, "weight", weight);
  const WeightStep step = checked_weight_step(
      {lr, progress, alpha, weight_decay, decay_after, seed, tensor_id, first_index, stochastic}, weight);
  check_apart({{"weight", weight, true},
               {"update", update, false},
               {"lr", lr, false},
               {"progress", progress, false}});
  if (weight.numel() == 0) return;
  run(weight.device,
      WeightUpdateJob{weight.data, weight.dtype, update.data, update.dtype, weight.numel(), step});
}

}  // namespace

void bind_weight(pybind11::module_& m) {
  m.def("weight_update", &weight_update);
}

}  // namespace frugalore
