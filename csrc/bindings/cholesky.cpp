#include "core/cholesky.h"

#include "bindings/families.h"
#include "bindings/run.h"

namespace frugalore {
namespace {

namespace py = pybind11;

void cholesky_inverse(const TensorRef& gram, double shift, const TensorRef& inverse, const TensorRef& pivots,
                      const TensorRef& workspace) {
  check_dtype("gram", gram, {DType::f64});
  if (gram.ndim != 2 || gram.shape[0] != gram.shape[1]) {
    throw py::value_error("gram: a square matrix expected, got shape " + shape_name(gram));
  }
  const int64_t size = gram.shape[0];
  check_contiguous("gram", gram);
  check_not_negative("shift", shift);
  check_dtype("inverse", inverse, {DType::f32});
  check_shape("inverse", inverse, {size, size});
  check_contiguous("inverse", inverse);
  check_same_device("inverse", inverse, "gram", gram);
  check_vector("pivots", pivots, DType::f64, size, gram);
  check_vector("workspace", workspace, DType::f64, gram.device.cuda ? cholesky_workspace(size) : 0, gram);
  check_apart({{"gram", gram, false},
               {"inverse", inverse, true},
               {"pivots", pivots, true},
               {"workspace", workspace, true}});
  if (size == 0) return;
  run(gram.device, CholeskyInverseJob{size, gram.as<double>(), shift, inverse.as<float>(),
                                      pivots.as<double>(), workspace.as<double>()});
}

}  // namespace

void bind_cholesky(pybind11::module_& m) {
  m.def("cholesky_inverse", &cholesky_inverse);
  m.def("cholesky_workspace", &cholesky_workspace);
}

}  // namespace frugalore
