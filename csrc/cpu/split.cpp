// One pass over a weight with two rules (core/split.h). Bytes per element in float32: outside 12, inside 28
// with AdamW and 20 otherwise.
//
// The unit of work is a segment: up to 256 elements of one row, or of the whole tensor where rows do not
// matter. Within it, elements inside that are not contiguous are gathered, moved along their contiguous state
// and scattered after the rule outside has swept over the whole segment; both rules run in full vectors so.
#include "core/split.h"

#include "cpu/kernels.h"
#include "cpu/momentum_tile.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {

constexpr int64_t kSegment = kTile;
static_assert(kSegment == kSelectionTile, "a segment is a tile of randk");

// The elements of a segment that are inside: element index[j] - shift of the segment has the state of slot +
// j.
struct Inside {
  const int32_t* index;
  int64_t count;
  uint64_t shift;
  int64_t slot;
};

struct Buffers {
  alignas(64) float w[kSegment], g[kSegment];
  alignas(64) float inside_w[kSegment], inside_g[kSegment];
  alignas(64) uint32_t words[kSegment];
  alignas(64) int32_t index[kSegment];
};

// An index that the compiler cannot make a vector of: instructions that gather and scatter are slower than
// single loads and stores on most processors that have them.
inline uint64_t scalar_index(const Inside& inside, int64_t j) {
  uint64_t i = static_cast<uint32_t>(inside.index[j]);
  asm("" : "+r"(i));
  return i - inside.shift;
}

void gather(const Inside& inside, const float* __restrict__ w, const float* __restrict__ g,
            float* __restrict__ inside_w, float* __restrict__ inside_g) {
#pragma GCC unroll 4
  for (int64_t j = 0; j < inside.count; ++j) {
    const uint64_t i = scalar_index(inside, j);
    inside_w[j] = w[i];
    inside_g[j] = g[i];
  }
}

void scatter(const Inside& inside, const float* __restrict__ inside_w, float* __restrict__ w) {
#pragma GCC unroll 4
  for (int64_t j = 0; j < inside.count; ++j) w[scalar_index(inside, j)] = inside_w[j];
}

template <OutsideRule outside>
int64_t outside_floats(const AdamWriteScalars& write, float* __restrict__ w, const float* __restrict__ g,
                       int64_t n) {
  int32_t skipped = 0;
  for (int64_t i = 0; i < n; ++i) {
    const OutsideElement element =
        outside_element<outside>(write, w[i], outside == OutsideRule::none ? 0.0f : g[i]);
    w[i] = element.w;
    skipped += element.skipped;
  }
  return skipped;
}

// One tensor within one call.
template <SplitRule rule, OutsideRule outside>
class Splitter {
 public:
  Splitter(const SplitStepJob& job, const SplitTensor& tensor)
      : tensor_(tensor),
        scalars_(split_scalars<rule>(job.hyper, tensor)),
        write_(split_write_scalars(job.hyper, job.write)),
        stream_(adam_random_stream(job.write, tensor.tensor_id, tensor.progress)),
        stochastic_(job.write.stochastic && tensor.param_dtype != DType::f32) {}

  // Columns column ... column+n-1 of a row. Returns how many elements were skipped.
  int64_t move(int64_t row, int64_t column, int64_t n, Buffers& buffers) const {
    const Selection& selection = tensor_.selection;
    const int64_t first = row * tensor_.columns + column;
    switch (selection.kind) {
      case SelectionKind::none:
        return move_outside(first, n, buffers);
      case SelectionKind::all:
        return move_inside(first, n, first);
      case SelectionKind::rows: {
        const int32_t line = selection.below[row];
        if (selection.below[row + 1] == line) return move_outside(first, n, buffers);
        return move_inside(first, n, line * tensor_.columns + column);
      }
      case SelectionKind::columns: {
        const int32_t begin = selection.below[column], end = selection.below[column + n];
        const Inside inside{selection.chosen + begin, end - begin, static_cast<uint64_t>(column),
                            row * selection.count + begin};
        return move_both(first, n, inside, buffers);
      }
      default:
        return move_both(first, n, randk_inside(row, column, buffers.index), buffers);
    }
  }

 private:
  // The chosen elements of a tile, in the order of their ranks.
  Inside randk_inside(int64_t row, int64_t column, int32_t* __restrict__ index) const {
    const RandkTile tile = randk_tile(tensor_.selection, tensor_.columns, row, column);
    const RandkInverse inverse = randk_inverse(tile);
    for (int32_t rank = 0; rank < tile.chosen; ++rank) {
      index[rank] = static_cast<int32_t>(randk_unmix(tile, inverse, static_cast<uint32_t>(rank)));
    }
    if (static_cast<uint32_t>(tile.length) <= tile.mask) {  // else no step is left to walk
      for (int32_t rank = 0; rank < tile.chosen; ++rank) {
        while (index[rank] >= tile.length) {
          index[rank] = static_cast<int32_t>(randk_unmix(tile, inverse, static_cast<uint32_t>(index[rank])));
        }
      }
    }
    return Inside{index, tile.chosen, 0, tile.first_slot};
  }

  int64_t inside_floats(float* w, const float* g, int64_t slot, int64_t n) const {
    float* first = tensor_.first + slot;
    float* second = rule == SplitRule::adamw ? tensor_.second + slot : nullptr;
    if (tensor_.fresh) {
      for (int64_t i = 0; i < n; ++i) first[i] = 0.0f;
      if (second != nullptr) {
        for (int64_t i = 0; i < n; ++i) second[i] = 0.0f;
      }
    }
    if constexpr (rule == SplitRule::adamw) {
      return step_floats(scalars_, write_.inside, w, g, first, second, n);
    } else {
      constexpr MomentumRule momentum = rule == SplitRule::lion ? MomentumRule::lion : MomentumRule::sgdm;
      return momentum_floats<momentum>(scalars_, write_.inside, w, g, first, n);
    }
  }

  // Contiguous elements with contiguous state.
  int64_t move_inside(int64_t first, int64_t n, int64_t slot) const {
    return move_tile(tensor_, stream_, stochastic_, first, n,
                     [&](float* w, const float* g) { return inside_floats(w, g, slot, n); });
  }

  int64_t move_outside(int64_t first, int64_t n, Buffers& buffers) const {
    if (write_.outside_rests) return 0;
    const float* g = nullptr;
    if (outside != OutsideRule::none) g = load_tile(tensor_.grad, tensor_.grad_dtype, first, n, buffers.g);
    float* w = load_weights(first, n, buffers);
    const int64_t skipped = outside_floats<outside>(write_.outside, w, g, n);
    round_weights(first, n, buffers);
    return skipped;
  }

  int64_t move_both(int64_t first, int64_t n, const Inside& inside, Buffers& buffers) const {
    if (inside.count == 0) return move_outside(first, n, buffers);
    float *w = load_weights(first, n, buffers), *inside_w = buffers.inside_w, *inside_g = buffers.inside_g;
    const float* g = load_tile(tensor_.grad, tensor_.grad_dtype, first, n, buffers.g);
    gather(inside, w, g, inside_w, inside_g);
    int64_t skipped = write_.outside_rests ? 0 : outside_floats<outside>(write_.outside, w, g, n);
    if (skipped != 0) {  // the sweep counted the elements inside too
      for (int64_t j = 0; j < inside.count; ++j) {
        skipped -= outside_element<outside>(write_.outside, inside_w[j], inside_g[j]).skipped;
      }
    }
    skipped += inside_floats(inside_w, inside_g, inside.slot, inside.count);
    scatter(inside, inside_w, w);
    round_weights(first, n, buffers);
    return skipped;
  }

  // float32 weights in place, others in a buffer.
  float* load_weights(int64_t first, int64_t n, Buffers& buffers) const {
    if (tensor_.param_dtype == DType::f32) return static_cast<float*>(tensor_.param) + first;
    load_tile(tensor_.param, tensor_.param_dtype, first, n, buffers.w);
    return buffers.w;
  }

  void round_weights(int64_t first, int64_t n, Buffers& buffers) const {
    if (tensor_.param_dtype == DType::f32) return;
    if (stochastic_) random_words(stream_, static_cast<uint64_t>(first), n, buffers.words);
    visit_float(tensor_.param_dtype, tensor_.param, [&](auto* param) {
      store_weights(buffers.w, param + first, n, stochastic_ ? buffers.words : nullptr);
    });
  }

  const SplitTensor& tensor_;
  const SplitScalars<rule> scalars_;
  const SplitWriteScalars write_;
  const RandomStream stream_;
  const bool stochastic_;
};

// How a tensor is cut: into segments of equal cost, whose unit is about four bytes moved.
struct Cut {
  int64_t columns;  // of a row, or of the whole tensor as one row
  int64_t per_row, segments;
  int64_t cost;  // of one segment, on average
};

Cut cut_of(const SplitTensor& tensor, const SplitWriteScalars& write) {
  if (tensor.count == 0) return Cut{0, 0, 0, 0};
  const bool flat =
      tensor.selection.kind == SelectionKind::none || tensor.selection.kind == SelectionKind::all;
  const int64_t columns = flat ? tensor.count : tensor.columns, rows = flat ? 1 : tensor.rows;
  const int64_t per_row = ceil_div(columns, kSegment), segments = rows * per_row;
  const int64_t inside = selected_count(tensor.selection, tensor.rows, tensor.columns);
  const int64_t cost = 7 * inside + (write.outside_rests ? 0 : 3 * (tensor.count - inside));
  return Cut{columns, per_row, segments, 1 + cost / segments};
}

template <SplitRule rule, OutsideRule outside>
int64_t move_segments(const Splitter<rule, outside>& splitter, const Cut& cut, int64_t begin, int64_t end,
                      Buffers& buffers) {
  int64_t skipped = 0;
  int64_t row = begin / cut.per_row, column = (begin - row * cut.per_row) * kSegment;
  for (int64_t segment = begin; segment < end; ++segment) {
    const int64_t rest = cut.columns - column;
    skipped += splitter.move(row, column, rest < kSegment ? rest : kSegment, buffers);
    column += kSegment;
    if (column >= cut.columns) {
      column = 0;
      ++row;
    }
  }
  return skipped;
}

// Threads get equal shares of the cost; a segment belongs to the share that its begin lies in.
template <SplitRule rule, OutsideRule outside>
void step_all(const SplitStepJob& job) {
  const SplitWriteScalars write = split_write_scalars(job.hyper, job.write);
  int64_t cost = 0;
  for (int64_t i = 0; i < job.tensor_count; ++i) {
    const Cut cut = cut_of(job.tensors[i], write);
    cost += cut.segments * cut.cost;
  }
  constexpr int64_t grain = 32 * kSegment;
  parallel_for(cost, grain, [&](int64_t begin, int64_t end) {
    Buffers buffers;
    int64_t before = 0;  // cost of the tensors before this one
    for (int64_t i = 0; i < job.tensor_count && before < end; ++i) {
      const SplitTensor& tensor = job.tensors[i];
      const Cut cut = cut_of(tensor, write);
      if (cut.segments == 0) continue;
      const int64_t first = begin > before ? ceil_div(begin - before, cut.cost) : 0;
      const int64_t until = ceil_div(end - before, cut.cost);
      const int64_t last = until < cut.segments ? until : cut.segments;
      if (first < last) {
        const Splitter<rule, outside> splitter(job, tensor);
        const int64_t skipped = move_segments(splitter, cut, first, last, buffers);
        if (skipped != 0) {
          __atomic_fetch_add(tensor.progress + kProgressSkipped, skipped, __ATOMIC_RELAXED);
        }
      }
      before += cut.segments * cut.cost;
    }
  });
}

template <SplitRule rule>
void step_all(const SplitStepJob& job) {
  switch (job.hyper.outside) {
    case OutsideRule::sign:
      return step_all<rule, OutsideRule::sign>(job);
    case OutsideRule::sgd:
      return step_all<rule, OutsideRule::sgd>(job);
    default:
      return step_all<rule, OutsideRule::none>(job);
  }
}

}  // namespace
}  // namespace FRUGALORE_ISA_NAMESPACE

template <Isa isa>
void run(const SplitStepJob& job) {
  for (int64_t i = 0; i < job.tensor_count; ++i) advance_split(job.hyper, job.tensors[i]);
  switch (job.hyper.rule) {
    case SplitRule::adamw:
      return step_all<SplitRule::adamw>(job);
    case SplitRule::sgdm:
      return step_all<SplitRule::sgdm>(job);
    default:
      return step_all<SplitRule::lion>(job);
  }
}

template void run<kIsa>(const SplitStepJob&);

}  // namespace frugalore::cpu
