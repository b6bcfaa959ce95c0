// Into and out of a coordinate subspace (core/coordinates.h). Bytes per element with float32: back 4 read for
// the gradient, 4 written, and 4 read again for each element inside; project 8 for each element inside.
//
// Work is cut into segments of a row that fit into the first cache: `back` first sweeps a segment as if all
// of it were outside, in vectors, and then writes over the elements inside.
#include "core/coordinates.h"

#include <cstring>

#include "core/visit.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {

constexpr int64_t kSegment = 8 * kSelectionTile;  // elements
constexpr int64_t kSegmentGrain = 8;              // segments that one thread takes at a time

// Body: void(int64_t row, int64_t begin, int64_t end), columns begin ... end-1 of a row. begin is a multiple
// of kSegment.
template <class Body>
void for_segments(int64_t rows, int64_t columns, Body&& body) {
  const int64_t per_row = ceil_div(columns, kSegment);
  parallel_for(rows * per_row, kSegmentGrain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = i / per_row, begin = (i - row * per_row) * kSegment;
      body(row, begin, begin + kSegment < columns ? begin + kSegment : columns);
    }
  });
}

bool row_is_inside(const Selection& selection, int64_t row) {
  return selection.below[row + 1] > selection.below[row];
}

// place[s]: the element of the tile that has the rank s.
void randk_places(const RandkTile& tile, uint16_t* __restrict__ place) {
  alignas(64) uint32_t rank[kSelectionTile];
  const uint32_t length = static_cast<uint32_t>(tile.length);
  for (uint32_t i = 0; i < length; ++i) rank[i] = randk_mix(tile, i);
  for (uint32_t i = 0; i < length && length <= tile.mask; ++i) {
    while (rank[i] >= length) rank[i] = randk_mix(tile, rank[i]);
  }
  for (uint32_t i = 0; i < length; ++i) place[rank[i]] = static_cast<uint16_t>(i);
}

// The tiles of a segment. Body: void(int64_t column, const RandkTile&, const uint16_t* place).
template <class Body>
void for_tiles_of(const Selection& selection, int64_t columns, int64_t row, int64_t begin, int64_t end,
                  Body&& body) {
  for (int64_t column = begin; column < end; column += kSelectionTile) {
    const RandkTile tile = randk_tile(selection, columns, row, column);
    uint16_t place[kSelectionTile];
    randk_places(tile, place);
    body(column, tile, place);
  }
}

template <class Bits, class Index>
void gather(Bits* __restrict__ r, const Bits* __restrict__ grad, const Index* __restrict__ place, int64_t n) {
  for (int64_t i = 0; i < n; ++i) r[i] = grad[place[i]];
}

// Copies bits, so float16 and bfloat16 are one type.
template <class Bits>
void project_bits(const CoordinatesProjectJob& job, const Bits* grad, Bits* r) {
  const Selection& selection = job.selection;
  const int64_t columns = job.columns;
  switch (selection.kind) {
    case SelectionKind::none:
      return;
    case SelectionKind::all:
      return for_segments(job.rows, columns, [&](int64_t row, int64_t begin, int64_t end) {
        std::memcpy(r + row * columns + begin, grad + row * columns + begin, (end - begin) * sizeof(Bits));
      });
    case SelectionKind::columns:
      return for_segments(job.rows, selection.count, [&](int64_t row, int64_t begin, int64_t end) {
        gather(r + row * selection.count + begin, grad + row * columns, selection.chosen + begin,
               end - begin);
      });
    case SelectionKind::rows:
      return for_segments(selection.count, columns, [&](int64_t line, int64_t begin, int64_t end) {
        const int64_t row = selection.chosen[line];
        std::memcpy(r + line * columns + begin, grad + row * columns + begin, (end - begin) * sizeof(Bits));
      });
    case SelectionKind::randk:
      return for_segments(job.rows, columns, [&](int64_t row, int64_t begin, int64_t end) {
        for_tiles_of(selection, columns, row, begin, end,
                     [&](int64_t column, const RandkTile& tile, const uint16_t* place) {
                       gather(r + tile.first_slot, grad + row * columns + column, place, tile.chosen);
                     });
      });
  }
}

template <OutsideRule rule, class T>
void sweep_outside(float* __restrict__ out, const T* __restrict__ grad, float scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = outside_update<rule>(to_float(grad[i]), scale);
}

// Columns begin ... end-1 of a row, as if all of them were outside.
void fill_outside(const CoordinatesBackJob& job, int64_t row, int64_t begin, int64_t end) {
  const int64_t first = row * job.columns + begin, n = end - begin;
  float* out = job.out + first;
  if (job.outside == OutsideRule::none) {
    std::memset(out, 0, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  visit_float(job.grad_dtype, job.grad, [&](const auto* grad) {
    if (job.outside == OutsideRule::sign) {
      sweep_outside<OutsideRule::sign>(out, grad + first, job.outside_scale, n);
    } else {
      sweep_outside<OutsideRule::sgd>(out, grad + first, job.outside_scale, n);
    }
  });
}

// out[i] = scale direction[i], a whole run inside.
template <class T>
void fill_inside(float* __restrict__ out, const T* __restrict__ direction, float scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = scale * to_float(direction[i]);
}

template <class T, class Index>
void scatter_inside(float* __restrict__ out, const T* __restrict__ direction, float scale,
                    const Index* __restrict__ place, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[place[i]] = scale * to_float(direction[i]);
}

template <class T>
void back_segment(const CoordinatesBackJob& job, const T* direction, int64_t row, int64_t begin,
                  int64_t end) {
  const Selection& selection = job.selection;
  const int64_t whole_row = job.first_row + row;  // within the matrix
  float* out = job.out + row * job.columns;
  if (selection.kind == SelectionKind::all) {
    return fill_inside(out + begin, direction + whole_row * job.columns + begin, job.inside_scale,
                       end - begin);
  }
  if (selection.kind == SelectionKind::rows && row_is_inside(selection, whole_row)) {
    const int64_t first = selection.below[whole_row] * job.columns + begin;
    return fill_inside(out + begin, direction + first, job.inside_scale, end - begin);
  }
  fill_outside(job, row, begin, end);
  if (selection.kind == SelectionKind::columns) {
    const int32_t first = selection.below[begin], last = selection.below[end];
    scatter_inside(out, direction + whole_row * selection.count + first, job.inside_scale,
                   selection.chosen + first, last - first);
  }
  if (selection.kind == SelectionKind::randk) {
    for_tiles_of(selection, job.columns, whole_row, begin, end,
                 [&](int64_t column, const RandkTile& tile, const uint16_t* place) {
                   scatter_inside(out + column, direction + tile.first_slot, job.inside_scale, place,
                                  tile.chosen);
                 });
  }
}

}  // namespace
}  // namespace FRUGALORE_ISA_NAMESPACE

template <Isa isa>
void run(const CoordinatesProjectJob& job) {
  if (job.dtype == DType::f32) {
    project_bits(job, static_cast<const uint32_t*>(job.grad), static_cast<uint32_t*>(job.r));
  } else {
    project_bits(job, static_cast<const uint16_t*>(job.grad), static_cast<uint16_t*>(job.r));
  }
}

template <Isa isa>
void run(const CoordinatesBackJob& job) {
  visit_float(job.direction_dtype, job.direction, [&](const auto* direction) {
    for_segments(job.rows, job.columns, [&](int64_t row, int64_t begin, int64_t end) {
      back_segment(job, direction, row, begin, end);
    });
  });
}

template void run<kIsa>(const CoordinatesProjectJob&);
template void run<kIsa>(const CoordinatesBackJob&);

}  // namespace frugalore::cpu
