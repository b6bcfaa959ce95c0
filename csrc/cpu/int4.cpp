#include "core/int4.h"

#include <cstring>

#include "core/visit.h"
#include "cpu/affine_group.h"
#include "cpu/kernels.h"
#include "cpu/thread_pool.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {  // the families share names such as kLevels

constexpr float kLevels = 15.0f;
constexpr int64_t kGroupGrain = 64;  // groups that one thread takes at a time

constexpr int64_t kBlock = 512;  // elements whose codes wait in the cache, a byte each; even

// The loops over whole bytes read or write both codes of a byte as one 16-bit number, low byte first: two
// loops over bytes with stride two would shuffle.
void pack_codes(const uint8_t* __restrict__ codes, int64_t n, uint8_t* __restrict__ packed) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  for (int64_t i = 0; i < n / 2; ++i) {
    uint16_t both;
    memcpy(&both, codes + 2 * i, 2);
    packed[i] = static_cast<uint8_t>((both & 15u) | ((both >> 4) & 0xf0u));
  }
#else
  for (int64_t i = 0; i < n / 2; ++i) packed[i] = int4_pair(codes[2 * i], codes[2 * i + 1]);
#endif
  if (n % 2 != 0) packed[n / 2] = int4_pair(codes[n - 1], 0);
}

void unpack_codes(const uint8_t* __restrict__ packed, int64_t n, uint8_t* __restrict__ codes) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  for (int64_t i = 0; i < n / 2; ++i) {
    const uint32_t pair = packed[i];
    const uint16_t both = static_cast<uint16_t>((pair | (pair << 4)) & 0x0f0fu);
    memcpy(codes + 2 * i, &both, 2);
  }
#else
  for (int64_t i = 0; i < n / 2; ++i) {
    codes[2 * i] = packed[i] & 15u;
    codes[2 * i + 1] = packed[i] >> 4;
  }
#endif
  if (n % 2 != 0) codes[n - 1] = packed[n / 2] & 15u;
}

template <class T>
void quantize_group(const T* x, int64_t n, uint8_t* packed, float* scale, uint8_t* zero) {
  AffineGroup group;
  if (!describe_group(x, n, kLevels, &group, scale, zero)) {
    for (int64_t i = 0; i < ceil_div(n, 2); ++i) packed[i] = 0;
    return;
  }
  uint8_t codes[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t length = n - begin < kBlock ? n - begin : kBlock;
    affine_codes(x + begin, length, group, kLevels, codes);
    pack_codes(codes, length, packed + begin / 2);
  }
}

template <class T>
void dequantize_group(const uint8_t* packed, int64_t n, float scale, float zero, T* x) {
  uint8_t codes[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t length = n - begin < kBlock ? n - begin : kBlock;
    unpack_codes(packed + begin / 2, length, codes);
    affine_values(codes, length, scale, zero, x + begin);
  }
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
      pack_codes(job.codes + row * job.columns, job.columns, job.packed + row * row_bytes);
    }
  });
}

template <Isa isa>
void run(const Int4UnpackJob& job) {
  const int64_t row_bytes = ceil_div(job.columns, 2);
  parallel_for(job.rows, kGroupGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      unpack_codes(job.packed + row * row_bytes, job.columns, job.codes + row * job.columns);
    }
  });
}

template void run<kIsa>(const Int4QuantizeJob&);
template void run<kIsa>(const Int4DequantizeJob&);
template void run<kIsa>(const Int4PackJob&);
template void run<kIsa>(const Int4UnpackJob&);

}  // namespace frugalore::cpu
