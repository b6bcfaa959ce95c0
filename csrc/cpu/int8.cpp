#include "core/int8.h"

#include "core/visit.h"
#include "cpu/affine_group.h"
#include "cpu/kernels.h"
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
  for (int64_t i = 0; i < n; ++i) codes[i] = affine_code(to_float(x[i]), group, kLevels);
}

template <class T>
void dequantize_group(const uint8_t* codes, int64_t n, float scale, float zero, T* x) {
  for (int64_t i = 0; i < n; ++i) x[i] = from_float<T>((static_cast<float>(codes[i]) - zero) * scale);
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
        dequantize_group(job.codes + first, span.length, job.scale[g], static_cast<float>(job.zero[g]),
                         x + first);
      }
    });
  });
}

template void run<kIsa>(const Int8QuantizeJob&);
template void run<kIsa>(const Int8DequantizeJob&);

}  // namespace frugalore::cpu
