#include "core/sketch.h"

#include "bindings/families.h"
#include "bindings/run.h"
#include "bindings/weight_step.h"

namespace frugalore {
namespace {

void fill_rademacher(const TensorRef& out, int64_t seed, int64_t tensor_id, int64_t period,
                     int64_t first_index) {
  check_float("out", out);
  check_contiguous("out", out);
  check_tensor_id(tensor_id);
  check_first_index(first_index, out.numel());
  if (out.numel() == 0) return;
  run(out.device, RademacherJob{out.data, out.dtype, out.numel(), first_index,
                                random_stream(static_cast<uint64_t>(seed), static_cast<uint32_t>(tensor_id),
                                              period, Purpose::sketch)});
}

}  // namespace

void bind_sketch(pybind11::module_& m) {
  m.def("rademacher", &fill_rademacher);
}

}  // namespace frugalore
