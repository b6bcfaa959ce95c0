#include "cuda_on_cpu/compare.h"

namespace frugalore::test {
namespace {

struct Residual {
  ResidualRule rule;
  int64_t rows, columns;
  DType update_dtype, grad_dtype, projected_dtype;
  bool projects, factor_of_rows;
  Bytes update, grad, projected, factor;
  int64_t offset = 0;  // the operands are views that begin here, so quads may not be aligned

  ResidualJob job() {
    return {update.data() + offset * size_of(update_dtype),
            grad.data() + offset * size_of(grad_dtype),
            projects ? projected.data() + offset * size_of(projected_dtype) : nullptr,
            rule == ResidualRule::scaled ? at<float>(factor) : nullptr,
            update_dtype,
            grad_dtype,
            projected_dtype,
            rule,
            factor_of_rows,
            rows,
            columns,
            0.75,
            -0.3};
  }
  auto bytes() const { return std::tie(update); }
};

constexpr ResidualRule kResidualRules[] = {ResidualRule::sign, ResidualRule::sgd, ResidualRule::scaled};

Residual residual_case(ResidualRule rule, int64_t rows, int64_t columns, DType update, DType grad,
                       DType projected, bool projects, bool factor_of_rows, int64_t offset = 0) {
  const int64_t count = rows * columns + offset;
  return {rule,
          rows,
          columns,
          update,
          grad,
          projected,
          projects,
          factor_of_rows,
          random_floats(update, count, 1.0f, 1),
          random_floats(grad, count, 1.0f, 2),
          random_floats(projected, count, 1.0f, 3),
          random_floats(DType::f32, factor_of_rows ? rows : columns, 2.0f, 4),
          offset};
}

TEST(Residual, EveryDtype) {
  for (const ResidualRule rule : kResidualRules) {
    for (const DType update : kFloats) {
      for (const DType grad : kFloats) {
        for (const bool by_rows : {false, true}) {
          expect_same_bytes(residual_case(rule, 5, 37, update, grad, update, true, by_rows));
          expect_same_bytes(residual_case(rule, 5, 37, update, grad, DType::f32, true, by_rows));
          expect_same_bytes(residual_case(rule, 5, 37, update, grad, DType::f32, false, by_rows));
        }
      }
    }
  }
}

TEST(Residual, ShapesAndViews) {
  const int64_t shapes[][2] = {{1, 1}, {1, 9}, {9, 1}, {3, 1024}, {2, 2051}, {70, 6}};
  for (const auto& [rows, columns] : shapes) {
    for (const ResidualRule rule : kResidualRules) {
      for (const int64_t offset : {0, 1, 2}) {
        expect_same_bytes(
            residual_case(rule, rows, columns, DType::bf16, DType::f16, DType::f32, true, false, offset));
        expect_same_bytes(
            residual_case(rule, rows, columns, DType::f32, DType::bf16, DType::f32, false, true, offset));
      }
    }
  }
}

TEST(Residual, NonFiniteElements) {
  for (const ResidualRule rule : kResidualRules) {
    for (const DType dtype : kFloats) {
      Residual c = residual_case(rule, 3, 41, dtype, dtype, dtype, true, false);
      for (int i = 0; i < 3; ++i) {
        store(c.update, dtype, 5 + i, kNonFinite[i]);
        store(c.grad, dtype, 50 + i, kNonFinite[i]);
        store(c.projected, dtype, 51 + i, kNonFinite[i]);
        store(c.projected, dtype, 80 + i, kNonFinite[i]);
      }
      expect_same_bytes(c);
    }
  }
}

}  // namespace
}  // namespace frugalore::test
