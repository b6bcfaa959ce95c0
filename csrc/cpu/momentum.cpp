// SGD with momentum and Lion (core/momentum.h). Bytes per element, float32: step 20, direction 16 and 4 more
// to look at r first.
#include "core/momentum.h"

#include "cpu/kernels.h"
#include "cpu/momentum_tile.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {

template <MomentumRule rule>
void step_all(const MomentumStepJob& job) {
  for_tiles(job.tensors, job.tensor_count, [&](const MomentumTensor& tensor, int64_t begin, int64_t end) {
    const MomentumScalars scalars = momentum_scalars(job.hyper, tensor.progress);
    const AdamWriteScalars write = adam_write_scalars(job.write);
    const RandomStream stream = adam_random_stream(job.write, tensor.tensor_id, tensor.progress);
    int64_t skipped = 0;
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kTile, n = tile_length(tensor.count, tile);
      skipped += move_tile(tensor, stream, job.write.stochastic, first, n, [&](float* w, const float* g) {
        return momentum_floats<rule>(scalars, write, w, g, tensor.momentum + first, n);
      });
    }
    return skipped;
  });
}

template <MomentumRule rule, class T>
void direction_tile_of(const MomentumScalars& s, T* __restrict__ r, float* __restrict__ m, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = to_float(r[i]), old = m[i];
    m[i] = momentum_fresh(s, old, g);
    r[i] = from_float<T>(momentum_direction<rule>(s, old, m[i], g));
  }
}

template <MomentumRule rule, class T>
void direction_all(const MomentumDirectionJob& job, T* r) {
  const MomentumScalars scalars = momentum_scalars(job.hyper, job.progress);
  parallel_for(ceil_div(job.count, kTile), kTileGrain, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kTile, last = end * kTile < job.count ? end * kTile : job.count;
    direction_tile_of<rule>(scalars, r + first, job.momentum + first, last - first);
  });
}

}  // namespace
}  // namespace FRUGALORE_ISA_NAMESPACE

template <Isa isa>
void run(const MomentumStepJob& job) {
  for (int64_t i = 0; i < job.tensor_count; ++i) advance_progress(job.tensors[i].progress, true);
  if (job.hyper.rule == MomentumRule::lion) {
    step_all<MomentumRule::lion>(job);
  } else {
    step_all<MomentumRule::sgdm>(job);
  }
}

template <Isa isa>
void run(const MomentumDirectionJob& job) {
  visit_float(job.r_dtype, job.r, [&](auto* r) {
    const bool applied = accepts_all(r, job.count);
    advance_progress(job.progress, applied);
    if (!applied) {
      zero_all(r, job.count);
    } else if (job.hyper.rule == MomentumRule::lion) {
      direction_all<MomentumRule::lion>(job, r);
    } else {
      direction_all<MomentumRule::sgdm>(job, r);
    }
  });
}

template void run<kIsa>(const MomentumStepJob&);
template void run<kIsa>(const MomentumDirectionJob&);

}  // namespace frugalore::cpu
