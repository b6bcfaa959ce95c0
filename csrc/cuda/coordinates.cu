// Into and out of a coordinate subspace (core/coordinates.h). A warp takes a tile of 256 columns of a row at
// a time, in quads. Bytes per element with float32: back 4 read for the gradient, 4 written, and 4 read for
// each element inside; project 8 for each element inside.
#include "core/coordinates.h"

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/quad.h"
#include "cuda/warp.h"

namespace frugalore::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kWarpsOfBlock = kThreads / kWarpSize;
constexpr int64_t kWarpQuads = 4 * kWarpSize;  // elements that a warp moves at a time

// Body: void(int64_t row, int64_t column), for the tiles that fall to this warp.
template <class Body>
__device__ inline void for_tiles_of_warp(int64_t rows, int64_t columns, Body&& body) {
  const int64_t per_row = ceil_div(columns, kSelectionTile), tiles = rows * per_row;
  for (int64_t i = warp_in_grid(); i < tiles; i += warps_in_grid()) {
    const int64_t row = i / per_row;
    body(row, (i - row * per_row) * kSelectionTile);
  }
}

// Body: void(int64_t column, int n), for the quads of the tile at `begin` that fall to this lane.
template <class Body>
__device__ inline void for_quads_of_lane(int64_t begin, int64_t columns, Body&& body) {
#pragma unroll
  for (int64_t at = 0; at < kSelectionTile; at += kWarpQuads) {
    const int64_t column = begin + at + 4 * lane_index();
    if (column < columns) body(column, quad_length(columns - column));
  }
}

// The lines of R, each from one row of the gradient: a row itself, or its chosen columns.
template <class Bits>
__global__ void project_lines_kernel(CoordinatesProjectJob job, int64_t lines, int64_t length) {
  const auto* grads = static_cast<const Bits*>(job.grad);
  const bool of_columns = job.selection.kind == SelectionKind::columns;
  const bool of_rows = job.selection.kind == SelectionKind::rows;
  for_tiles_of_warp(lines, length, [&](int64_t line, int64_t begin) {
    const Bits* grad = grads + (of_rows ? job.selection.chosen[line] : line) * job.columns;
    Bits* r = static_cast<Bits*>(job.r) + line * length;
    for_quads_of_lane(begin, length, [&](int64_t i, int n) {
      Quad<Bits> quad{};
      if (of_columns) {
        const Quad<int32_t> place = load_quad(job.selection.chosen + i, n);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (j < n) quad.at[j] = grad[place.at[j]];
        }
      } else {
        quad = load_quad(grad + i, n);
      }
      store_quad(r + i, quad, n);
    });
  });
}

template <class Bits>
__global__ void project_randk_kernel(CoordinatesProjectJob job) {
  for_tiles_of_warp(job.rows, job.columns, [&](int64_t row, int64_t column) {
    const RandkTile tile = randk_tile(job.selection, job.columns, row, column);
    const Bits* grad = static_cast<const Bits*>(job.grad) + row * job.columns + column;
    Bits* r = static_cast<Bits*>(job.r) + tile.first_slot;
    for (int32_t i = lane_index(); i < tile.length; i += kWarpSize) {
      const int32_t rank = randk_rank(tile, i);
      if (rank < tile.chosen) r[rank] = grad[i];
    }
  });
}

__device__ inline float load_float(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::bf16:
      return to_float(static_cast<const bf16*>(data)[i]);
    case DType::f16:
      return to_float(static_cast<const f16*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

// Elements index ... index+n-1 of the panel, as if all of them were outside.
__device__ inline Quad<float> outside_quad(const CoordinatesBackJob& job, int64_t index, int n) {
  if (job.outside == OutsideRule::none) return Quad<float>{};
  Quad<float> quad = load_floats(job.grad, job.grad_dtype, index, n);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    quad.at[j] = job.outside == OutsideRule::sign
                     ? outside_update<OutsideRule::sign>(quad.at[j], job.outside_scale)
                     : outside_update<OutsideRule::sgd>(quad.at[j], job.outside_scale);
  }
  return quad;
}

// Where a row is inside as a whole: the slot of its first element; else -1.
__device__ inline int64_t slot_of_row(const Selection& selection, int64_t columns, int64_t row) {
  if (selection.kind == SelectionKind::all) return row * columns;
  if (selection.kind != SelectionKind::rows) return -1;
  const int32_t line = selection.below[row];
  return selection.below[row + 1] > line ? line * columns : -1;
}

__global__ void back_lines_kernel(CoordinatesBackJob job) {
  const Selection& selection = job.selection;
  for_tiles_of_warp(job.rows, job.columns, [&](int64_t row, int64_t begin) {
    const int64_t whole_row = job.first_row + row;  // within the matrix
    const int64_t slot = slot_of_row(selection, job.columns, whole_row);
    for_quads_of_lane(begin, job.columns, [&](int64_t column, int n) {
      const int64_t index = row * job.columns + column;
      Quad<float> u;
      if (slot >= 0) {
        u = load_floats(job.direction, job.direction_dtype, slot + column, n);
#pragma unroll
        for (int j = 0; j < 4; ++j) u.at[j] = job.inside_scale * u.at[j];
      } else {
        u = outside_quad(job, index, n);
      }
      if (selection.kind == SelectionKind::columns) {
        const Quad<int32_t> below = load_quad(selection.below + column, n);
        const int32_t end = selection.below[column + n];
        const int64_t first = whole_row * selection.count;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int32_t next = j + 1 < n ? below.at[j + 1 < 4 ? j + 1 : 3] : end;
          if (j < n && next > below.at[j]) {
            u.at[j] = job.inside_scale * load_float(job.direction, job.direction_dtype, first + below.at[j]);
          }
        }
      }
      store_quad(job.out + index, u, n);
    });
  });
}

__global__ void back_randk_kernel(CoordinatesBackJob job) {
  for_tiles_of_warp(job.rows, job.columns, [&](int64_t row, int64_t begin) {
    const RandkTile tile = randk_tile(job.selection, job.columns, job.first_row + row, begin);
    for_quads_of_lane(begin, job.columns, [&](int64_t column, int n) {
      const int64_t index = row * job.columns + column;
      Quad<float> u = outside_quad(job, index, n);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (j >= n) continue;
        const int32_t rank = randk_rank(tile, static_cast<int32_t>(column - begin) + j);
        if (rank < tile.chosen) {
          u.at[j] = job.inside_scale * load_float(job.direction, job.direction_dtype, tile.first_slot + rank);
        }
      }
      store_quad(job.out + index, u, n);
    });
  });
}

LaunchShape shape_for(int64_t rows, int64_t columns) {
  return LaunchShape{block_count(rows * ceil_div(columns, kSelectionTile), kWarpsOfBlock), kThreads};
}

template <class Bits>
cudaError_t project_bits(const CoordinatesProjectJob& job, cudaStream_t stream) {
  const Selection& selection = job.selection;
  if (selection.kind == SelectionKind::none) return cudaSuccess;
  if (selection.kind == SelectionKind::randk) {
    return launch(project_randk_kernel<Bits>, shape_for(job.rows, job.columns), stream, job);
  }
  const int64_t lines = selection.kind == SelectionKind::rows ? selection.count : job.rows;
  const int64_t length = selection.kind == SelectionKind::columns ? selection.count : job.columns;
  return launch(project_lines_kernel<Bits>, shape_for(lines, length), stream, job, lines, length);
}

}  // namespace

cudaError_t run(const CoordinatesProjectJob& job, cudaStream_t stream) {
  return job.dtype == DType::f32 ? project_bits<uint32_t>(job, stream) : project_bits<uint16_t>(job, stream);
}

cudaError_t run(const CoordinatesBackJob& job, cudaStream_t stream) {
  return launch(job.selection.kind == SelectionKind::randk ? back_randk_kernel : back_lines_kernel,
                shape_for(job.rows, job.columns), stream, job);
}

}  // namespace frugalore::cuda
