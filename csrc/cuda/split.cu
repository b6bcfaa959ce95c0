// One pass over a weight with two rules (core/split.h). Bytes per element in float32: outside 12, inside 28
// with AdamW and 20 otherwise.
#include "core/split.h"

#include "cuda/adam_step.h"
#include "cuda/kernels.h"

namespace frugalore::cuda {
namespace {

constexpr unsigned kThreads = 256;
static_assert(sizeof(TensorBatch<SplitTensor>) + sizeof(SplitHyper) + sizeof(AdamWrite) <= 4096,
              "the parameters of a launch");

// The scalars of one tensor, in shared memory.
template <SplitRule rule>
struct SplitContext {
  SplitScalars<rule> scalars;
  SplitWriteScalars write;
  RandomStream stream;
};

__global__ void advance_split_batch_kernel(TensorBatch<SplitTensor> batch, SplitHyper hyper) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < batch.count) advance_split(hyper, batch.tensor[i]);
}

// Where an element is.
struct Place {
  int64_t row, column;
};

// The element `offset` < kAdamChunk after `begin`: one 64-bit division a chunk, and at most one of 32 bits
// here.
__device__ inline Place place_after(const Place& begin, int64_t offset, int64_t columns) {
  Place place{begin.row, begin.column + offset};
  if (place.column < columns) return place;
  if (columns >= kAdamChunk) return Place{place.row + 1, place.column - columns};
  const uint32_t position = static_cast<uint32_t>(place.column), length = static_cast<uint32_t>(columns);
  return Place{place.row + position / length, static_cast<int64_t>(position % length)};
}

// Where the state of the elements of a quad is; -1 outside.
struct QuadSlots {
  int64_t at[4];

  __device__ bool none() const { return (at[0] & at[1] & at[2] & at[3]) == -1; }
  // The first n are all inside, and their state is contiguous.
  __device__ bool run(int n) const {
    bool is_run = at[0] >= 0;
    for (int j = 1; j < 4; ++j) is_run = is_run && (j >= n || at[j] == at[0] + j);
    return is_run;
  }
};

__device__ inline int64_t line_slot(const int32_t* below, int64_t line) {
  const int32_t before = below[line];
  return below[line + 1] == before ? -1 : before;
}

// The slots of the elements index ... index+n-1, the first of which is at `place`.
__device__ inline QuadSlots slots_of_quad(const SplitTensor& tensor, int64_t index, Place place, int n) {
  const Selection& selection = tensor.selection;
  QuadSlots slots{{-1, -1, -1, -1}};
  if (selection.kind == SelectionKind::none) return slots;
  RandkTile tile{};
  int64_t tile_end = -1, in_row = -1;  // of the tile; of the selected row
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (j >= n) break;
    switch (selection.kind) {
      case SelectionKind::all:
        slots.at[j] = index + j;
        break;
      case SelectionKind::columns: {
        const int64_t slot = line_slot(selection.below, place.column);
        if (slot >= 0) slots.at[j] = place.row * selection.count + slot;
        break;
      }
      case SelectionKind::rows:
        if (j == 0 || place.column == 0) in_row = line_slot(selection.below, place.row);
        if (in_row >= 0) slots.at[j] = in_row * tensor.columns + place.column;
        break;
      default: {
        if (place.column >= tile_end || place.column == 0) {
          const int64_t begin = place.column - place.column % kSelectionTile;
          tile = randk_tile(selection, tensor.columns, place.row, begin);
          tile_end = begin + tile.length;
        }
        const int32_t rank = randk_rank(tile, static_cast<int32_t>(place.column % kSelectionTile));
        if (rank < tile.chosen) slots.at[j] = tile.first_slot + rank;
      }
    }
    if (++place.column == tensor.columns) place = Place{place.row + 1, 0};
  }
  return slots;
}

// The state of the elements inside; zeros where it is fresh.
__device__ inline Quad<float> load_state(const float* state, const QuadSlots& slots, int n, bool fresh) {
  Quad<float> quad{};
  if (fresh) return quad;
  if (slots.run(n)) return load_quad(state + slots.at[0], n);
  for (int j = 0; j < 4; ++j) {
    if (slots.at[j] >= 0) quad.at[j] = state[slots.at[j]];
  }
  return quad;
}

__device__ inline void store_state(float* state, const QuadSlots& slots, int n, const Quad<float>& quad) {
  if (slots.run(n)) return store_quad(state + slots.at[0], quad, n);
  for (int j = 0; j < 4; ++j) {
    if (slots.at[j] >= 0) state[slots.at[j]] = quad.at[j];
  }
}

// Moves the elements of w that are inside, and their state. Returns how many were skipped.
template <SplitRule rule>
__device__ inline int move_inside(const SplitTensor& tensor, const SplitContext<rule>& context,
                                  const QuadSlots& slots, int n, Quad<float>& w, const Quad<float>& g) {
  int skipped = 0;
  Quad<float> first = load_state(tensor.first, slots, n, tensor.fresh);
  if constexpr (rule == SplitRule::adamw) {
    Quad<float> second = load_state(tensor.second, slots, n, tensor.fresh);
    for (int j = 0; j < 4; ++j) {
      if (slots.at[j] < 0) continue;
      const AdamElement element =
          adam_element(context.scalars, context.write.inside, w.at[j], g.at[j], first.at[j], second.at[j]);
      w.at[j] = element.w;
      first.at[j] = element.m;
      second.at[j] = element.v;
      skipped += element.skipped;
    }
    store_state(tensor.second, slots, n, second);
  } else {
    constexpr MomentumRule momentum = rule == SplitRule::lion ? MomentumRule::lion : MomentumRule::sgdm;
    for (int j = 0; j < 4; ++j) {
      if (slots.at[j] < 0) continue;
      const MomentumElement element =
          momentum_element<momentum>(context.scalars, context.write.inside, w.at[j], g.at[j], first.at[j]);
      w.at[j] = element.w;
      first.at[j] = element.m;
      skipped += element.skipped;
    }
  }
  store_state(tensor.first, slots, n, first);
  return skipped;
}

__device__ inline OutsideElement outside_element(OutsideRule rule, const AdamWriteScalars& write, float w,
                                                 float g) {
  switch (rule) {
    case OutsideRule::sign:
      return frugalore::outside_element<OutsideRule::sign>(write, w, g);
    case OutsideRule::sgd:
      return frugalore::outside_element<OutsideRule::sgd>(write, w, g);
    default:
      return frugalore::outside_element<OutsideRule::none>(write, w, g);
  }
}

// Moves the elements index ... index+n-1 (index % 4 == 0). Returns how many were skipped.
template <SplitRule rule>
__device__ inline int split_quad(const SplitTensor& tensor, const SplitContext<rule>& context,
                                 OutsideRule outside, bool stochastic, int64_t index, int n,
                                 const QuadSlots& slots) {
  const bool nothing_inside = slots.none();
  if (context.write.outside_rests && nothing_inside) return 0;
  Quad<float> g{};
  if (outside != OutsideRule::none || !nothing_inside) {
    g = load_floats(tensor.grad, tensor.grad_dtype, index, n);
  }
  Quad<float> w = load_floats(tensor.param, tensor.param_dtype, index, n);
  int skipped = 0;
  if (!context.write.outside_rests) {
    for (int j = 0; j < 4; ++j) {
      if (j >= n || slots.at[j] >= 0) continue;
      const OutsideElement element = outside_element(outside, context.write.outside, w.at[j], g.at[j]);
      w.at[j] = element.w;
      skipped += element.skipped;
    }
  }
  if (!nothing_inside) skipped += move_inside<rule>(tensor, context, slots, n, w, g);
  store_params(tensor, context.stream, stochastic, index, w, n);
  return skipped;
}

template <int kRule>
__global__ void split_step_kernel(TensorBatch<SplitTensor> batch, SplitHyper hyper, AdamWrite write) {
  constexpr SplitRule rule = static_cast<SplitRule>(kRule);
  for_chunks_of<SplitContext<rule>>(
      batch,
      [&](const SplitTensor& tensor) {
        return SplitContext<rule>{split_scalars<rule>(hyper, tensor), split_write_scalars(hyper, write),
                                  adam_random_stream(write, tensor.tensor_id, tensor.progress)};
      },
      [&](const SplitTensor& tensor, const SplitContext<rule>& context, int64_t chunk) {
        if (context.write.outside_rests && tensor.selection.kind == SelectionKind::none) return;
        const int64_t begin = chunk * kAdamChunk;
        const int64_t end = begin + kAdamChunk < tensor.count ? begin + kAdamChunk : tensor.count;
        const int64_t row = begin / tensor.columns;
        const Place place{row, begin - row * tensor.columns};
        int skipped = 0;
        for (int64_t i = begin + 4 * threadIdx.x; i < end; i += 4 * blockDim.x) {
          const int n = static_cast<int>(end - i < 4 ? end - i : 4);
          const QuadSlots slots = slots_of_quad(tensor, i, place_after(place, i - begin, tensor.columns), n);
          skipped += split_quad<rule>(tensor, context, hyper.outside, write.stochastic, i, n, slots);
        }
        count_skipped(tensor.progress, skipped);
      });
}

}  // namespace

cudaError_t run(const SplitStepJob& job, cudaStream_t stream) {
  return for_batches(job.tensors, job.tensor_count, [&](const TensorBatch<SplitTensor>& batch) {
    const cudaError_t status =
        launch(advance_split_batch_kernel, LaunchShape{1, 32}, stream, batch, job.hyper);
    if (status != cudaSuccess) return status;
    const LaunchShape shape{block_count(batch.first_chunk[batch.count], 1), kThreads};
    switch (job.hyper.rule) {
      case SplitRule::adamw:
        return launch(split_step_kernel<0>, shape, stream, batch, job.hyper, job.write);
      case SplitRule::sgdm:
        return launch(split_step_kernel<1>, shape, stream, batch, job.hyper, job.write);
      default:
        return launch(split_step_kernel<2>, shape, stream, batch, job.hyper, job.write);
    }
  });
}

}  // namespace frugalore::cuda
