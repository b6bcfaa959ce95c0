#include "core/int4.h"

#include "core/visit.h"
#include "cpu/affine_group.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {  // the families share names such as kLevels

constexpr float kLevels = 15.0f;
constexpr int64_t kGroupGrain = 64;  // groups that one thread takes at a time

template <class T>
void quantize_group(const T* x, int64_t n, uint8_t* packed, float* scale, uint8_t* zero) {
  AffineGroup group;
  if (!describe_group(x, n, kLevels, &group, scale, zero)) {
    for (int64_t i = 0; i < ceil_div(n, 2); ++i) packed[i] = 0;
    return;
  }
  for (int64_t i = 0; i + 1 < n; i += 2) {
    packed[i / 2] = int4_pair(affine_code(to_float(x[i]), group, kLevels),
                              affine_code(to_float(x[i + 1]), group, kLevels));
  }
  if (n % 2 != 0) packed[n / 2] = int4_pair(affine_code(to_float(x[n - 1]), group, kLevels), 0);
}

template <class T>
void dequantize_group(const uint8_t* packed, int64_t n, float scale, float zero, T* x) {
  for (int64_t i = 0; i + 1 < n; i += 2) {
    const uint8_t pair = packed[i / 2];
    x[i] = from_float<T>((static_cast<float>(pair & 15u) - zero) * scale);
    x[i + 1] = from_float<T>((static_cast<float>(pair >> 4) - zero) * scale);
  }
  if (n % 2 != 0) x[n - 1] = from_float<T>((static_cast<float>(packed[n / 2] & 15u) - zero) * scale);
}

}  // namespace
}  // namespace FRUGALORE_ISA_NAMESPACE

template <Isa isa>
void run(const Int4QuantizeJob& job) {
  const GroupLayout& layout = job.layout;
  const int64_t per_row = groups_per_row(layout), row_bytes = ceil_div(layout.columns, 2);
  visit_float(job.x_dtype, job.x, [&](const auto* x) {
    parallel_for(layout.rows * per_row, kGroupGrain, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const GroupSpan span = group_span(layout, g);
        quantize_group(x + span.row * layout.columns + span.column, span.length,
                       job.packed + span.row * row_bytes + span.column / 2, job.scale + g, job.zero + g);
      }
    });
  });
}

template <Isa isa>
void run(const Int4DequantizeJob& job) {
  const GroupLayout& layout = job.layout;
  const int64_t per_row = groups_per_row(layout), row_bytes = ceil_div(layout.columns, 2);
  visit_float(job.x_dtype, job.x, [&](auto* x) {
    parallel_for(layout.rows * per_row, kGroupGrain, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        const GroupSpan span = group_span(layout, g);
        dequantize_group(job.packed + span.row * row_bytes + span.column / 2, span.length, job.scale[g],
                         static_cast<float>(job.zero[g]), x + span.row * layout.columns + span.column);
      }
    });
  });
}

template <Isa isa>
void run(const Int4PackJob& job) {
  const int64_t row_bytes = ceil_div(job.columns, 2);
  parallel_for(job.rows, kGroupGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* codes = job.codes + row * job.columns;
      uint8_t* packed = job.packed + row * row_bytes;
      for (int64_t i = 0; i < job.columns / 2; ++i) packed[i] = int4_pair(codes[2 * i], codes[2 * i + 1]);
      if (job.columns % 2 != 0) packed[row_bytes - 1] = int4_pair(codes[job.columns - 1], 0);
    }
  });
}

template <Isa isa>
void run(const Int4UnpackJob& job) {
  const int64_t row_bytes = ceil_div(job.columns, 2);
  parallel_for(job.rows, kGroupGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* packed = job.packed + row * row_bytes;
      uint8_t* codes = job.codes + row * job.columns;
      for (int64_t i = 0; i < job.columns / 2; ++i) {
        codes[2 * i] = packed[i] & 15u;
        codes[2 * i + 1] = packed[i] >> 4;
      }
      if (job.columns % 2 != 0) codes[job.columns - 1] = packed[row_bytes - 1] & 15u;
    }
  });
}

template void run<kIsa>(const Int4QuantizeJob&);
template void run<kIsa>(const Int4DequantizeJob&);
template void run<kIsa>(const Int4PackJob&);
template void run<kIsa>(const Int4UnpackJob&);

}  // namespace frugalore::cpu
