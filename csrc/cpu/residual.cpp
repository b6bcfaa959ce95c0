// The residual (core/residual.h). Bytes per element, float32: 12, and 4 more with `projected`.
#include "core/residual.h"

#include "cpu/adam_tile.h"
#include "cpu/kernels.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {

alignas(64) constexpr float kNoProjection[kTile] = {};

// The factors of elements first ... first+n-1 of the matrix: in place if they are a piece of `factor`, else
// in `buffer`.
const float* factors_of_tile(const ResidualJob& job, int64_t first, int64_t n, float* buffer) {
  int64_t row = first / job.columns, column = first % job.columns;
  if (!job.factor_of_rows && column + n <= job.columns) return job.factor + column;
  for (int64_t i = 0; i < n; ++row, column = 0) {
    const int64_t rest = job.columns - column, length = rest < n - i ? rest : n - i;
    for (int64_t j = 0; j < length; ++j) {
      buffer[i + j] = job.factor[job.factor_of_rows ? row : column + j];
    }
    i += length;
  }
  return buffer;
}

template <ResidualRule rule, class T>
void add_tile(T* __restrict__ update, const float* __restrict__ grad, const float* __restrict__ projected,
              const float* __restrict__ factor, int64_t n, float inside_scale, float outside_scale) {
  for (int64_t i = 0; i < n; ++i) {
    update[i] = from_float<T>(residual_sum<rule>(to_float(update[i]), grad[i], projected[i], factor[i],
                                                 inside_scale, outside_scale));
  }
}

template <ResidualRule rule, class T>
void add_all(const ResidualJob& job, T* update) {
  const int64_t count = job.rows * job.columns;
  const float inside_scale = static_cast<float>(job.inside_scale);
  const float outside_scale = static_cast<float>(job.outside_scale);
  parallel_for(ceil_div(count, kTile), kTileGrain, [&](int64_t begin, int64_t end) {
    alignas(64) float grad_buffer[kTile], projected_buffer[kTile], factor_buffer[kTile];
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTile, n = tile_length(count, tile);
      const float* grad = load_tile(job.grad, job.grad_dtype, first, n, grad_buffer);
      const float* projected = kNoProjection;
      if (job.projected != nullptr) {
        projected = load_tile(job.projected, job.projected_dtype, first, n, projected_buffer);
      }
      const float* factor = kNoProjection;  // not read by the other rules
      if (rule == ResidualRule::scaled) factor = factors_of_tile(job, first, n, factor_buffer);
      add_tile<rule>(update + first, grad, projected, factor, n, inside_scale, outside_scale);
    }
  });
}

}  // namespace
}  // namespace FRUGALORE_ISA_NAMESPACE

template <Isa isa>
void run(const ResidualJob& job) {
  visit_float(job.update_dtype, job.update, [&](auto* update) {
    switch (job.rule) {
      case ResidualRule::sign:
        return add_all<ResidualRule::sign>(job, update);
      case ResidualRule::sgd:
        return add_all<ResidualRule::sgd>(job, update);
      case ResidualRule::scaled:
        return add_all<ResidualRule::scaled>(job, update);
    }
  });
}

template void run<kIsa>(const ResidualJob&);

}  // namespace frugalore::cpu
