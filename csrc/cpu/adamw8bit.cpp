// AdamW with 8-bit moments (core/adamw8bit.h). Bytes per element with float32 parameters and gradients:
// step 16, direction 12 and 4 more to look at r first; 8/256 for the two absmax.
#include "core/adamw8bit.h"

#include "cpu/adam_tile.h"
#include "cpu/kernels.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {

static_assert(kTile == kAdam8bitBlock, "a tile is a block");

constexpr DynamicTables kTables = make_dynamic_tables();

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

// out[i] = table[index[i]]. The empty asm keeps this loop scalar: gathers cost more than the loads that
// they stand for, on some processors several times as much.
template <class T, class Index>
void look_up(const T* __restrict__ table, const Index* __restrict__ index, int64_t n, T* __restrict__ out) {
#pragma GCC unroll 8
  for (int64_t i = 0; i < n; ++i) {
    out[i] = table[index[i]];
    asm volatile("");
  }
}

void decode(const float* value, const uint8_t* codes, float absmax, int64_t n, float* __restrict__ x) {
  look_up(value, codes, n, x);
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] * absmax;
}

// The magnitudes of floats are ordered like their bits, and integer maxima vectorise.
float largest_magnitude(const float* x, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t bits = bit_cast<int32_t>(x[i]) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return bit_cast<float>(largest);
}

// Quantises a block and returns its absmax; x is overwritten. Code: uint8_t(entry, value in [-1, 1]).
template <class Code>
float encode(const uint32_t* cells, float* __restrict__ x, int64_t n, uint8_t* __restrict__ codes,
             Code code) {
  alignas(64) uint16_t cell[kAdam8bitBlock];
  alignas(64) uint32_t entry[kAdam8bitBlock];
  const Adam8bitScale scale = adam8bit_scale(largest_magnitude(x, n));
  for (int64_t i = 0; i < n; ++i) {
    x[i] = x[i] * scale.inverse;
    cell[i] = static_cast<uint16_t>(dynamic_cell(x[i]));
  }
  look_up(cells, cell, n, entry);
  for (int64_t i = 0; i < n; ++i) codes[i] = code(entry[i], x[i]);
  return scale.absmax;
}

void load_moments(const State& state, int64_t block, int64_t n, Moments& moments) {
  const int64_t first = block * kAdam8bitBlock;
  decode(kTables.signed_value, state.exp_avg + first, state.exp_avg_absmax[block], n, moments.m);
  decode(kTables.unsigned_value, state.exp_avg_sq + first, state.exp_avg_sq_absmax[block], n, moments.v);
}

void store_moments(const State& state, int64_t block, int64_t n, Moments& moments) {
  const int64_t first = block * kAdam8bitBlock;
  state.exp_avg_absmax[block] = encode(kTables.signed_cell, moments.m, n, state.exp_avg + first,
                                       [](uint32_t entry, float x) { return dynamic_signed_code(entry, x); });
  state.exp_avg_sq_absmax[block] =
      encode(kTables.unsigned_cell, moments.v, n, state.exp_avg_sq + first,
             [](uint32_t entry, float x) { return dynamic_unsigned_code(entry, x); });
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
