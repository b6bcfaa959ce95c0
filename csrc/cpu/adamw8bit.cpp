// AdamW with 8-bit moments (core/adamw8bit.h). Bytes per element with float32 parameters and gradients:
// step 16, direction 12 and 4 more to look at r first; 8/256 for the two absmax.
#include "core/adamw8bit.h"

#include "cpu/adam_tile.h"
#include "cpu/dynamic_codes.h"
#include "cpu/kernels.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {

static_assert(kTile == kAdam8bitBlock, "a tile is a block");

// One block's moments as floats.
struct Moments {
  alignas(64) float m[kAdam8bitBlock];
  alignas(64) float v[kAdam8bitBlock];
};

// The 8-bit state of one tensor.
struct State {
  uint8_t* exp_avg;
  float* exp_avg_absmax;
  uint8_t* exp_avg_sq;
  float* exp_avg_sq_absmax;
};

template <class Holder>
State state_of(const Holder& holder) {
  return State{holder.exp_avg, holder.exp_avg_absmax, holder.exp_avg_sq, holder.exp_avg_sq_absmax};
}

// The codes of a block to come: a block reads 256 bytes of them, too few at a time for the hardware to run
// ahead. Beyond the end of the tensor this does nothing.
void prefetch_codes(const State& state, int64_t block) {
  constexpr uintptr_t kAhead = 4 * kAdam8bitBlock, kLine = 64;
  const uintptr_t first = static_cast<uintptr_t>(block * kAdam8bitBlock) + kAhead;
  for (uintptr_t i = 0; i < static_cast<uintptr_t>(kAdam8bitBlock); i += kLine) {
    __builtin_prefetch(reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(state.exp_avg) + first + i), 1);
    __builtin_prefetch(reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(state.exp_avg_sq) + first + i), 1);
  }
}

void load_moments(const State& state, int64_t block, int64_t n, Moments& moments) {
  const int64_t first = block * kAdam8bitBlock;
  decode_block<true>(state.exp_avg + first, state.exp_avg_absmax[block], n, moments.m);
  decode_block<false>(state.exp_avg_sq + first, state.exp_avg_sq_absmax[block], n, moments.v);
}

void store_moments(const State& state, int64_t block, int64_t n, const Moments& moments) {
  const int64_t first = block * kAdam8bitBlock;
  state.exp_avg_absmax[block] = encode_block<true>(moments.m, n, state.exp_avg + first);
  state.exp_avg_sq_absmax[block] = encode_block<false>(moments.v, n, state.exp_avg_sq + first);
}

}  // namespace
}  // namespace FRUGALORE_ISA_NAMESPACE

template <Isa isa>
void run(const Adamw8bitStepJob& job) {
  for (int64_t i = 0; i < job.tensor_count; ++i) {
    const Adamw8bitTensor& tensor = job.tensors[i];
    advance_progress(tensor.progress, tensor.beta_powers, job.hyper.beta1, job.hyper.beta2, true);
  }
  for_tiles(job.tensors, job.tensor_count, [&](const Adamw8bitTensor& tensor, int64_t begin, int64_t end) {
    const AdamStepContext context = adam_step_context(job.hyper, job.write, tensor);
    const State state = state_of(tensor);
    Moments moments;
    int64_t skipped = 0;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t n = tile_length(tensor.count, block);
      prefetch_codes(state, block);
      load_moments(state, block, n, moments);
      skipped += step_tile(context, tensor, block * kAdam8bitBlock, n, moments.m, moments.v);
      store_moments(state, block, n, moments);
    }
    return skipped;
  });
}

template <Isa isa>
void run(const Adamw8bitDirectionJob& job) {
  visit_float(job.r_dtype, job.r, [&](auto* r) {
    if (!begin_direction(r, job.count, job.hyper, job.progress, job.beta_powers)) return;
    const AdamScalars scalars = adam_scalars(job.hyper, job.beta_powers);
    const State state = state_of(job);
    parallel_for(ceil_div(job.count, kTile), kTileGrain, [&](int64_t begin, int64_t end) {
      Moments moments;
      for (int64_t block = begin; block < end; ++block) {
        const int64_t n = tile_length(job.count, block);
        prefetch_codes(state, block);
        load_moments(state, block, n, moments);
        direction_tile(scalars, r + block * kAdam8bitBlock, moments.m, moments.v, n);
        store_moments(state, block, n, moments);
      }
    });
  });
}

template void run<kIsa>(const Adamw8bitStepJob&);
template void run<kIsa>(const Adamw8bitDirectionJob&);

}  // namespace frugalore::cpu
