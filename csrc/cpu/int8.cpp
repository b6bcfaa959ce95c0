#include "core/int8.h"

#include "core/visit.h"
#include "cpu/affine_group.h"
#include "cpu/kernels.h"
#include "cpu/random_words.h"
#include "cpu/thread_pool.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {  // the families share names such as kLevels

constexpr float kLevels = 255.0f;
constexpr int64_t kGroupGrain = 64;  // groups that one thread takes at a time

template <class T>
void quantize_group(const T* x, int64_t n, uint8_t* codes, float* scale, uint8_t* zero) {
  AffineGroup group;
  if (!describe_group(x, n, kLevels, &group, scale, zero)) {
    for (int64_t i = 0; i < n; ++i) codes[i] = 0;
    return;
  }
  affine_codes(x, n, group, kLevels, codes);
}

// The update of a group goes block by block, twice: the range of y, then the writing. The intended changes
// stay in a buffer between the two passes if the group is one block.
constexpr int64_t kBlock = 512;

struct GroupScale {
  float scale, zero, update_per_code, one_minus_keep;
};

// d of n elements, and their part of the range of y.
template <class T>
void find_deltas(const uint8_t* codes, const T* update, int64_t n, const GroupScale& group, float* deltas,
                 Int8Range* range) {
  const GroupScale g = group;
  float lo = range->lo, hi = range->hi;
  int outside = 0, moved = 0;
#pragma omp simd reduction(min : lo) reduction(max : hi) reduction(| : outside, moved)
  for (int64_t i = 0; i < n; ++i) {
    const float q = static_cast<float>(codes[i]);
    const float d = int8_delta(q - g.zero, to_float(update[i]), g.update_per_code, g.one_minus_keep);
    const float y = q - g.zero + d;
    deltas[i] = d;
    lo = y < lo ? y : lo;
    hi = y > hi ? y : hi;
    outside |= static_cast<int>(int8_outside(q, d));
    moved |= static_cast<int>(d != 0.0f);
  }
  *range = Int8Range{lo, hi, range->outside || outside != 0, range->moved || moved != 0};
}

template <bool kStochastic>
void write_codes(uint8_t* codes, const float* deltas, const uint32_t* words, int64_t n, float zero,
                 const Int8Grid& grid) {
  if (grid.kept) {
    for (int64_t i = 0; i < n; ++i) {
      codes[i] = static_cast<uint8_t>(codes[i] + int8_round<kStochastic>(deltas[i], words[i]));
    }
    return;
  }
  const float ratio = grid.ratio;
  const int32_t new_zero = static_cast<int32_t>(grid.zero);
  for (int64_t i = 0; i < n; ++i) {
    const float y = static_cast<float>(codes[i]) - zero + deltas[i];
    codes[i] = static_cast<uint8_t>(new_zero + int8_round<kStochastic>(y * ratio, words[i]));
  }
}

template <bool kStochastic, class T>
void update_group(uint8_t* codes, const T* update, int64_t n, uint64_t first_index,
                  const WeightStepScalars& step, float* scale, uint8_t* zero) {
  float deltas[kBlock];
  uint32_t words[kBlock];
  const GroupScale group{*scale, static_cast<float>(*zero), int8_update_per_code(step.coefficient, *scale),
                         step.one_minus_keep};
  Int8Range range{0.0f, 0.0f, false, false};
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t length = n - begin < kBlock ? n - begin : kBlock;
    find_deltas(codes + begin, update + begin, length, group, deltas, &range);
  }
  if (!range.moved) return;
  const Int8Grid grid = int8_grid(range, group.scale, group.zero);
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t length = n - begin < kBlock ? n - begin : kBlock;
    if (n > kBlock) find_deltas(codes + begin, update + begin, length, group, deltas, &range);
    if (kStochastic) random_words(step.stream, first_index + static_cast<uint64_t>(begin), length, words);
    write_codes<kStochastic>(codes + begin, deltas, words, length, group.zero, grid);
  }
  *scale = grid.scale;
  *zero = static_cast<uint8_t>(grid.zero);
}

}  // namespace
}  // namespace FRUGALORE_ISA_NAMESPACE

template <Isa isa>
void run(const Int8QuantizeJob& job) {
  const GroupLayout& layout = job.layout;
  visit_float(job.x_dtype, job.x, [&](const auto* x) {
    parallel_for(group_count(layout), kGroupGrain, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const GroupSpan span = group_span(layout, g);
        const int64_t first = span.row * layout.columns + span.column;
        quantize_group(x + first, span.length, job.codes + first, job.scale + g, job.zero + g);
      }
    });
  });
}

template <Isa isa>
void run(const Int8DequantizeJob& job) {
  const GroupLayout& layout = job.layout;
  visit_float(job.x_dtype, job.x, [&](auto* x) {
    parallel_for(group_count(layout), kGroupGrain, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const GroupSpan span = group_span(layout, g);
        const int64_t first = span.row * layout.columns + span.column;
        affine_values(job.codes + first, span.length, job.scale[g], static_cast<float>(job.zero[g]),
                      x + first);
      }
    });
  });
}

template <Isa isa>
void run(const Int8UpdateJob& job) {
  const GroupLayout& layout = job.layout;
  const WeightStepScalars step = weight_step_scalars(job.step);
  if (!step.applied) return;
  visit_float(job.update_dtype, job.update, [&](const auto* update) {
    parallel_for(group_count(layout), kGroupGrain, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const GroupSpan span = group_span(layout, g);
        const int64_t first = span.row * layout.columns + span.column;
        const uint64_t index = static_cast<uint64_t>(job.step.first_index + first);
        if (job.step.stochastic) {
          update_group<true>(job.codes + first, update + first, span.length, index, step, job.scale + g,
                             job.zero + g);
        } else {
          update_group<false>(job.codes + first, update + first, span.length, index, step, job.scale + g,
                              job.zero + g);
        }
      }
    });
  });
}

template void run<kIsa>(const Int8QuantizeJob&);
template void run<kIsa>(const Int8DequantizeJob&);
template void run<kIsa>(const Int8UpdateJob&);

}  // namespace frugalore::cpu
