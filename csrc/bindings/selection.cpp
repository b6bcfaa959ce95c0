#include "core/selection.h"

#include "bindings/families.h"
#include "bindings/run.h"
#include "bindings/weight_step.h"

namespace frugalore {
namespace {

void choose(const TensorRef& below, const TensorRef& chosen, int64_t seed, int64_t tensor_id,
            int64_t period) {
  check_vector("below", below, DType::i32, below.numel(), below);
  const int64_t count = below.numel() - 1;
  if (count < 0 || count > INT32_MAX - 1) {
    throw pybind11::value_error("below: 1 to 2^31 - 1 elements expected, got " +
                                std::to_string(below.numel()));
  }
  check_vector("chosen", chosen, DType::i32, chosen.numel(), below);
  if (chosen.numel() > count) {
    throw pybind11::value_error("chosen: at most " + std::to_string(count) + " elements expected, got " +
                                std::to_string(chosen.numel()));
  }
  check_tensor_id(tensor_id);
  if (period < 0) {
    throw pybind11::value_error("period: zero or more expected, got " + std::to_string(period));
  }
  check_apart({{"below", below, true}, {"chosen", chosen, true}});
  run(below.device, SelectJob{below.as<int32_t>(), chosen.as<int32_t>(), count, chosen.numel(),
                              random_stream(static_cast<uint64_t>(seed), static_cast<uint32_t>(tensor_id),
                                            period, Purpose::selection)});
}

}  // namespace

void bind_selection(pybind11::module_& m) {
  m.def("select", &choose);
}

}  // namespace frugalore
