#include "core/coordinates.h"

#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

constexpr SelectionKind kKinds[] = {SelectionKind::none, SelectionKind::all, SelectionKind::columns,
                                    SelectionKind::rows, SelectionKind::randk};
constexpr OutsideRule kRules[] = {OutsideRule::none, OutsideRule::sign, OutsideRule::sgd};

// A selection and the memory that it points into.
struct Chosen {
  SelectionKind kind;
  double density;
  std::vector<int32_t> below, chosen;

  Selection selection() const {
    return {kind,
            below.data(),
            chosen.data(),
            static_cast<int64_t>(chosen.size()),
            static_cast<uint64_t>(density * 4294967296.0),
            random_stream(5, 3, 7, Purpose::selection)};
  }
};

// `share` of the lines, or of the elements, of a matrix.
Chosen choose(SelectionKind kind, int64_t rows, int64_t columns, double share) {
  Chosen result{kind, share, {0}, {}};
  const int64_t length = kind == SelectionKind::columns ? columns : rows;
  std::mt19937_64 random(rows + columns);
  for (int64_t i = 0; i < length; ++i) {
    if (static_cast<double>(random() % 1000) < 1000 * share) result.chosen.push_back(static_cast<int32_t>(i));
    result.below.push_back(static_cast<int32_t>(result.chosen.size()));
  }
  return result;
}

struct Project {
  int64_t rows, columns;
  DType dtype;
  Chosen chosen;
  Bytes grad, r;

  CoordinatesProjectJob job() { return {grad.data(), r.data(), dtype, rows, columns, chosen.selection()}; }
  auto bytes() const { return std::tie(r); }
};

Project project(SelectionKind kind, int64_t rows, int64_t columns, DType dtype, double share) {
  const Chosen chosen = choose(kind, rows, columns, share);
  const int64_t inside = selected_count(chosen.selection(), rows, columns);
  return {rows,
          columns,
          dtype,
          chosen,
          random_floats(dtype, rows * columns, 1.0f, 2),
          Bytes(static_cast<size_t>(inside * size_of(dtype)), 0xa5)};
}

TEST(Coordinates, Project) {
  for (const SelectionKind kind : kKinds) {
    for (const DType dtype : kFloats) {
      for (const auto& [rows, columns] : {std::pair{1, 1}, {3, 1}, {2, 7}, {5, 256}, {3, 300}, {2, 1028}}) {
        for (const double share : {0.0, 0.3, 1.0}) {
          expect_same_bytes(project(kind, rows, columns, dtype, share));
        }
      }
    }
  }
}

struct Back {
  int64_t rows, columns, first_row;
  DType direction_dtype, grad_dtype;
  OutsideRule outside;
  Chosen chosen;
  Bytes direction, grad, out;

  CoordinatesBackJob job() {
    return {at<float>(out), direction.data(), grad.data(),        direction_dtype, grad_dtype, rows,
            columns,        first_row,        chosen.selection(), outside,         0.7f,       -0.3f};
  }
  auto bytes() const { return std::tie(out); }
};

// A panel of `rows` rows, whose first one is `first_row` of a matrix that ends with it.
Back back(SelectionKind kind, int64_t rows, int64_t columns, int64_t first_row, DType direction_dtype,
          DType grad_dtype, OutsideRule outside, double share) {
  const int64_t all_rows = first_row + rows;
  const Chosen chosen = choose(kind, all_rows, columns, share);
  const int64_t inside = selected_count(chosen.selection(), all_rows, columns);
  return {rows,
          columns,
          first_row,
          direction_dtype,
          grad_dtype,
          outside,
          chosen,
          random_floats(direction_dtype, inside, 1.0f, 3),
          random_floats(grad_dtype, rows * columns, 1.0f, 2),
          unwritten<float>(rows * columns)};
}

TEST(Coordinates, BackOfEveryDtype) {
  for (const SelectionKind kind : kKinds) {
    for (const DType direction : kFloats) {
      for (const DType grad : kFloats) {
        for (const OutsideRule outside : kRules) {
          expect_same_bytes(back(kind, 3, 300, 2, direction, grad, outside, 0.3));
        }
      }
    }
  }
}

TEST(Coordinates, BackOfEveryShape) {
  for (const SelectionKind kind : kKinds) {
    for (const auto& [rows, columns] : {std::pair{1, 1}, {3, 1}, {2, 7}, {5, 256}, {9, 513}, {2, 1028}}) {
      for (const double share : {0.0, 0.25, 1.0}) {
        for (const int64_t first_row : {0, 4}) {
          expect_same_bytes(
              back(kind, rows, columns, first_row, DType::f32, DType::bf16, OutsideRule::sign, share));
        }
      }
    }
  }
}

TEST(Coordinates, BackOfNumbersThatAreNotFinite) {
  for (const SelectionKind kind : kKinds) {
    for (const OutsideRule outside : kRules) {
      Back b = back(kind, 3, 300, 0, DType::f32, DType::f32, outside, 0.3);
      for (int i = 0; i < 3; ++i) {
        for (int64_t j = 0; j < 30; ++j) store(b.grad, DType::f32, 9 * j + 3 * i, kNonFinite[i]);
      }
      expect_same_bytes(b);
    }
  }
}

}  // namespace
}  // namespace frugalore::test
