#include "core/residual.h"

#include <pybind11/stl.h>

#include <optional>

#include "bindings/families.h"
#include "bindings/run.h"

namespace frugalore {
namespace {

void check_panel(const char* name, const TensorRef& t, const TensorRef& update) {
  check_float(name, t);
  check_same_shape(name, t, "update", update);
  check_contiguous(name, t);
  check_same_device(name, t, "update", update);
}

ResidualRule checked_rule(const std::string& outside, bool has_factor) {
  const bool scaled = outside == "scaled";
  if (!scaled && outside != "sign" && outside != "sgd") {
    throw pybind11::value_error("outside: one of sign, sgd, scaled expected, got '" + outside + "'");
  }
  if (has_factor != scaled) {
    throw pybind11::value_error("factor: expected for outside 'scaled' and no other, got " +
                                std::string(has_factor ? "one" : "none") + " for '" + outside + "'");
  }
  return scaled ? ResidualRule::scaled : (outside == "sign" ? ResidualRule::sign : ResidualRule::sgd);
}

void residual_add(const TensorRef& update, const TensorRef& grad, const std::optional<TensorRef>& projected,
                  const std::optional<TensorRef>& factor, const std::string& outside, bool factor_of_rows,
                  double inside_scale, double outside_scale) {
  check_float("update", update);
  if (update.ndim != 2) {
    throw pybind11::value_error("update: a matrix expected, got shape " + shape_name(update));
  }
  check_contiguous("update", update);
  check_panel("grad", grad, update);
  ResidualJob job{update.data,    grad.data,       nullptr,         nullptr,
                  update.dtype,   grad.dtype,      DType::f32,      checked_rule(outside, factor.has_value()),
                  factor_of_rows, update.shape[0], update.shape[1], inside_scale,
                  outside_scale};
  std::vector<Place> places{{"update", update, true}, {"grad", grad, false}};
  if (projected) {
    check_panel("projected", *projected, update);
    check_dtype("projected", *projected, {DType::f32, update.dtype});
    job.projected = projected->data;
    job.projected_dtype = projected->dtype;
    places.push_back({"projected", *projected, false});
  }
  if (factor) {
    check_vector("factor", *factor, DType::f32, factor_of_rows ? job.rows : job.columns, update);
    job.factor = factor->as<float>();
    places.push_back({"factor", *factor, false});
  }
  check_finite("inside_scale", inside_scale);
  check_finite("outside_scale", outside_scale);
  check_apart(places);
  if (update.numel() == 0) return;
  run(update.device, job);
}

}  // namespace

void bind_residual(pybind11::module_& m) {
  m.def("residual_add", &residual_add);
}

}  // namespace frugalore
