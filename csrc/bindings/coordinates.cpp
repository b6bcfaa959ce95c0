#include "core/coordinates.h"

#include "bindings/families.h"
#include "bindings/run.h"
#include "bindings/selection_arguments.h"

namespace py = pybind11;

namespace frugalore {
namespace {

struct MatrixShape {
  int64_t rows, columns;
};

// A gradient of any dimensions as a matrix: the first one by the others; a vector is one row.
MatrixShape matrix_shape(const TensorRef& t) {
  MatrixShape shape{1, 1};
  for (int i = 0; i < t.ndim; ++i) (i == 0 && t.ndim > 1 ? shape.rows : shape.columns) *= t.shape[i];
  return shape;
}

// The shape of one state tensor: Selection.state_shape in Python.
void check_state_shape(const char* name, const TensorRef& t, const Selection& selection, int64_t rows,
                       int64_t columns) {
  switch (selection.kind) {
    case SelectionKind::all:
      return check_shape(name, t, {rows, columns});
    case SelectionKind::columns:
      return check_shape(name, t, {rows, selection.count});
    case SelectionKind::rows:
      return check_shape(name, t, {selection.count, columns});
    default:
      return check_shape(name, t, {selected_count(selection, rows, columns)});
  }
}

// `selection` holds below and chosen in the places 1 and 2.
void add_places(std::vector<Place>& places, const SelectionArguments& selection) {
  if (std::get<1>(selection)) places.push_back(Place{"selection.below", *std::get<1>(selection), false});
  if (std::get<2>(selection)) places.push_back(Place{"selection.chosen", *std::get<2>(selection), false});
}

void project(const TensorRef& grad, const TensorRef& r, const SelectionArguments& selection_arguments) {
  check_float("grad", grad);
  check_contiguous("grad", grad);
  const MatrixShape shape = matrix_shape(grad);
  const Selection selection =
      checked_selection("selection", selection_arguments, shape.rows, shape.columns, grad);
  check_dtype("r", r, {grad.dtype});
  check_state_shape("r", r, selection, shape.rows, shape.columns);
  check_contiguous("r", r);
  check_same_device("r", r, "grad", grad);
  std::vector<Place> places = {{"r", r, true}, {"grad", grad, false}};
  add_places(places, selection_arguments);
  check_apart(places);
  if (r.numel() == 0) return;
  run(grad.device,
      CoordinatesProjectJob{grad.data, r.data, grad.dtype, shape.rows, shape.columns, selection});
}

void check_panel(const TensorRef& out, int64_t first_row, int64_t rows) {
  check_dtype("out", out, {DType::f32});
  if (out.ndim != 2) throw py::value_error("out: a matrix expected, got shape " + shape_name(out));
  check_contiguous("out", out);
  if (rows < 0 || (out.columns() > 0 && rows > INT64_MAX / out.columns())) {
    throw py::value_error("rows: 0 to 2^63 - 1 elements in rows of " + std::to_string(out.columns()) +
                          " expected, got " + std::to_string(rows) + " rows");
  }
  if (first_row < 0 || first_row > rows - out.rows()) {
    throw py::value_error("first_row: 0 to " + std::to_string(rows - out.rows()) + " expected for " +
                          std::to_string(out.rows()) + " of " + std::to_string(rows) + " rows, got " +
                          std::to_string(first_row));
  }
}

void back(const TensorRef& out, const TensorRef& direction, const std::optional<TensorRef>& grad,
          const SelectionArguments& selection_arguments, int64_t first_row, int64_t rows, int64_t outside,
          double inside_scale, double outside_scale) {
  check_panel(out, first_row, rows);
  const int64_t columns = out.columns();
  const Selection selection = checked_selection("selection", selection_arguments, rows, columns, out);
  check_float("direction", direction);
  check_state_shape("direction", direction, selection, rows, columns);
  check_contiguous("direction", direction);
  check_same_device("direction", direction, "out", out);
  if (outside < 0 || outside > 2) {
    throw py::value_error("outside: a rule of 0 to 2 expected, got " + std::to_string(outside));
  }
  const auto rule = static_cast<OutsideRule>(outside);
  if (!grad && rule != OutsideRule::none) {
    throw py::value_error("grad: a tensor expected where the outside moves, got none");
  }
  std::vector<Place> places = {{"out", out, true}, {"direction", direction, false}};
  if (grad) {
    check_float("grad", *grad);
    check_same_shape("grad", *grad, "out", out);
    check_contiguous("grad", *grad);
    check_same_device("grad", *grad, "out", out);
    places.push_back(Place{"grad", *grad, false});
  }
  add_places(places, selection_arguments);
  check_finite("inside_scale", inside_scale);
  check_finite("outside_scale", outside_scale);
  check_apart(places);
  if (out.numel() == 0) return;
  run(out.device,
      CoordinatesBackJob{out.as<float>(), direction.data, grad ? grad->data : nullptr, direction.dtype,
                         grad ? grad->dtype : DType::f32, out.rows(), columns, first_row, selection, rule,
                         static_cast<float>(inside_scale), static_cast<float>(outside_scale)});
}

}  // namespace

void bind_coordinates(py::module_& m) {
  m.def("coordinates_project", &project);
  m.def("coordinates_back", &back);
}

}  // namespace frugalore
