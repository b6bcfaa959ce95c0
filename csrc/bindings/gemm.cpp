#include "core/gemm.h"

#include "bindings/families.h"
#include "bindings/run.h"

namespace frugalore {
namespace {

namespace py = pybind11;

void check_matrix(const char* name, const TensorRef& t) {
  check_dtype(name, t, {DType::f32});
  if (t.device.cuda) {
    throw py::value_error(std::string(name) + ": a tensor on cpu expected, got " + device_name(t.device));
  }
  if (t.ndim != 2)
    throw py::value_error(std::string(name) + ": a matrix expected, got shape " + shape_name(t));
}

[[noreturn]] void refuse_strides(const char* name, const char* expected, const TensorRef& t) {
  throw py::value_error(std::string(name) + ": " + expected + " expected, got strides (" +
                        std::to_string(t.strides[0]) + ", " + std::to_string(t.strides[1]) + ") for shape " +
                        shape_name(t));
}

// The stride of a dimension of at most one element is never used, and torch's is arbitrary: it becomes 1.
int64_t stride(const TensorRef& t, int dimension) {
  if (t.shape[dimension] <= 1) return 1;
  return t.strides != nullptr ? t.strides[dimension] : dimension == 0 ? t.shape[1] : 1;
}

StridedMatrix operand(const char* name, const TensorRef& t) {
  const StridedMatrix matrix{t.as<float>(), stride(t, 0), stride(t, 1)};
  if (t.numel() > 0 && matrix.row_stride != 1 && matrix.column_stride != 1) {
    refuse_strides(name, "contiguous rows or columns", t);
  }
  return matrix;
}

void gemm(const TensorRef& a, const TensorRef& b, const TensorRef& out) {
  check_matrix("a", a);
  check_matrix("b", b);
  check_matrix("out", out);
  const int64_t m = a.shape[0], k = a.shape[1], n = b.shape[1];
  check_shape("b", b, {k, n});
  check_shape("out", out, {m, n});
  const StridedMatrix left = operand("a", a), right = operand("b", b);
  if (out.numel() > 0 && (stride(out, 1) != 1 || (m > 1 && stride(out, 0) < n))) {
    refuse_strides("out", "contiguous rows that do not overlap", out);
  }
  check_apart({{"a", a, false}, {"b", b, false}, {"out", out, true}});
  if (out.numel() == 0) return;
  run_on_cpu(GemmJob{m, n, k, left, right, out.as<float>(), stride(out, 0)});
}

}  // namespace

void bind_gemm(pybind11::module_& m) {
  m.def("gemm", &gemm);
}

}  // namespace frugalore
