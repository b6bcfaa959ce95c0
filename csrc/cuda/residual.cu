// The residual (core/residual.h). A block takes 1024 elements of one row, a thread a quad of them. Without
// factors the whole matrix is one row. Bytes per element, float32: 12, and 4 more with `projected`.
#include "core/residual.h"

#include "core/groups.h"
#include "core/visit.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/quad.h"

namespace frugalore::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kPiece = 4 * kThreads;  // elements of a row that a block takes at a time

// Kernels are templates over a number, which ptxas's reports name legibly.
template <int kRule, class T>
__global__ void residual_kernel(ResidualJob job, T* update) {
  constexpr ResidualRule rule = static_cast<ResidualRule>(kRule);
  const float inside_scale = static_cast<float>(job.inside_scale);
  const float outside_scale = static_cast<float>(job.outside_scale);
  const int64_t pieces = ceil_div(job.columns, kPiece);
  for (int64_t piece = blockIdx.x; piece < job.rows * pieces; piece += gridDim.x) {
    const int64_t row = piece / pieces;
    const int64_t column = (piece - row * pieces) * kPiece + 4 * threadIdx.x;
    const int n = quad_length(job.columns - column);
    if (n == 0) continue;
    const int64_t i = row * job.columns + column;
    Quad<float> factor{};
    if (rule == ResidualRule::scaled) {
      if (job.factor_of_rows) {
        for (int j = 0; j < 4; ++j) factor.at[j] = job.factor[row];
      } else {
        factor = load_quad(job.factor + column, n);
      }
    }
    Quad<float> projected{};
    if (job.projected != nullptr) projected = load_floats(job.projected, job.projected_dtype, i, n);
    const Quad<float> grad = load_floats(job.grad, job.grad_dtype, i, n);
    const Quad<float> old = load_floats(update + i, n);
    Quad<T> fresh;
    for (int j = 0; j < 4; ++j) {
      fresh.at[j] = from_float<T>(residual_sum<rule>(old.at[j], grad.at[j], projected.at[j], factor.at[j],
                                                     inside_scale, outside_scale));
    }
    store_quad(update + i, fresh, n);
  }
}

}  // namespace

cudaError_t run(const ResidualJob& given, cudaStream_t stream) {
  ResidualJob job = given;
  if (job.rule != ResidualRule::scaled) {
    job.columns *= job.rows;
    job.rows = 1;
  }
  const LaunchShape shape{block_count(job.rows * ceil_div(job.columns, kPiece), 1), kThreads};
  return visit_float(job.update_dtype, job.update, [&](auto* update) {
    using T = std::remove_pointer_t<decltype(update)>;
    switch (job.rule) {
      case ResidualRule::sign:
        return launch(residual_kernel<static_cast<int>(ResidualRule::sign), T>, shape, stream, job, update);
      case ResidualRule::sgd:
        return launch(residual_kernel<static_cast<int>(ResidualRule::sgd), T>, shape, stream, job, update);
      default:
        return launch(residual_kernel<static_cast<int>(ResidualRule::scaled), T>, shape, stream, job, update);
    }
  });
}

}  // namespace frugalore::cuda
