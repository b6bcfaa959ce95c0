#include "core/gram.h"

#include "bindings/families.h"
#include "bindings/run.h"

namespace frugalore {
namespace {

namespace py = pybind11;

void gram(const TensorRef& rows, const TensorRef& out, const TensorRef& chunks) {
  check_dtype("rows", rows, {DType::f32});
  if (rows.ndim != 2) throw py::value_error("rows: a matrix expected, got shape " + shape_name(rows));
  const int64_t r = rows.shape[0], n = rows.shape[1];
  if (rows.strides != nullptr && rows.numel() > 0 && n > 1 && rows.strides[1] != 1) {
    throw py::value_error("rows: contiguous rows expected, got strides (" + std::to_string(rows.strides[0]) +
                          ", " + std::to_string(rows.strides[1]) + ") for shape " + shape_name(rows));
  }
  check_dtype("out", out, {DType::f64});
  check_shape("out", out, {r, r});
  check_contiguous("out", out);
  check_same_device("out", out, "rows", rows);
  check_vector("chunks", chunks, DType::f64, rows.device.cuda ? gram_chunks(r, n) * r * r : 0, rows);
  check_apart({{"rows", rows, false}, {"out", out, true}, {"chunks", chunks, true}});
  if (r == 0) return;
  const int64_t row_stride = rows.strides != nullptr ? rows.strides[0] : n;
  run(rows.device, GramJob{r, n, rows.as<float>(), row_stride, out.as<double>(), chunks.as<double>()});
}

}  // namespace

void bind_gram(pybind11::module_& m) {
  m.def("gram", &gram);
  m.def("gram_chunks", &gram_chunks);
}

}  // namespace frugalore
