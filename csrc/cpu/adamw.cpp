// AdamW (core/adamw.h). Bytes per element, float32: step 28, direction 24 and 4 more to look at r first.
#include "core/adamw.h"

#include "cpu/adam_tile.h"
#include "cpu/kernels.h"

namespace frugalore::cpu {

template <Isa isa>
void run(const AdamwStepJob& job) {
  for (int64_t i = 0; i < job.tensor_count; ++i) {
    const AdamwTensor& tensor = job.tensors[i];
    advance_progress(tensor.progress, tensor.beta_powers, job.hyper.beta1, job.hyper.beta2, true);
  }
  for_tiles(job.tensors, job.tensor_count, [&](const AdamwTensor& tensor, int64_t begin, int64_t end) {
    const AdamStepContext context = adam_step_context(job.hyper, job.write, tensor);
    int64_t skipped = 0;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTile, n = tile_length(tensor.count, tile);
      skipped += step_tile(context, tensor, first, n, tensor.exp_avg + first, tensor.exp_avg_sq + first);
    }
    return skipped;
  });
}

template <Isa isa>
void run(const AdamwDirectionJob& job) {
  visit_float(job.r_dtype, job.r, [&](auto* r) {
    if (!begin_direction(r, job.count, job.hyper, job.progress, job.beta_powers)) return;
    const AdamScalars scalars = adam_scalars(job.hyper, job.beta_powers);
    parallel_for(ceil_div(job.count, kTile), kTileGrain, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kTile, last = end * kTile < job.count ? end * kTile : job.count;
      direction_tile(scalars, r + first, job.exp_avg + first, job.exp_avg_sq + first, last - first);
    });
  });
}

template void run<kIsa>(const AdamwStepJob&);
template void run<kIsa>(const AdamwDirectionJob&);

}  // namespace frugalore::cpu
