// Blocks of 8-bit moments to floats and back (core/dynamic_map.h), at most 256 elements at a time.
//
// Portable: a load from a table per element; gathers cost more than the loads that they stand for.
//
// AVX-512: the tables stay in registers, split into the upper and the lower 16 bits of their 256 entries (8
// registers each), and two-register permutes of 16-bit words look 32 elements up at a time: about 0.6
// instructions an element and table. Encoding has no table of cells then. Within a decade levels are equally
// spaced, so a level is a multiplication away, less than one too low or exact; one comparison with the
// first float of the next level settles it, to the same code for every input.
#pragma once

#include "core/adamw8bit.h"

#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {

constexpr DynamicTables kDynamicTables = make_dynamic_tables();

// The magnitudes of floats are ordered like their bits, and integer maxima vectorise.
inline float largest_magnitude(const float* x, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t bits = bit_cast<int32_t>(x[i]) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return bit_cast<float>(largest);
}

#if defined(__AVX512BW__)

// 256 entries of 32 bits as their lower and their upper halves, in the order of the registers that hold them.
struct WordPlanes {
  alignas(64) uint16_t lower[256];
  alignas(64) uint16_t upper[256];
};

constexpr WordPlanes make_value_planes(const float* values) {
  WordPlanes planes{};
  for (int i = 0; i < 256; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, values[i]);
    planes.lower[i] = static_cast<uint16_t>(bits);
    planes.upper[i] = static_cast<uint16_t>(bits >> 16);
  }
  return planes;
}

// Entry k: the first float that is nearer to level k + 1 than to level k. From the cells, each of which knows
// where in it a level begins.
constexpr WordPlanes make_threshold_planes(const uint32_t* cells) {
  WordPlanes planes{};
  int level = 0;
  for (int cell = 0; cell + 1 < kDynamicCells; ++cell) {
    if ((cells[cell + 1] & 0xffu) == (cells[cell] & 0xffu)) continue;
    const uint32_t begin = static_cast<uint32_t>(kDynamicFirstCell + cell) << 16;
    const uint32_t bits = begin + (cells[cell] >> 8);
    planes.lower[level] = static_cast<uint16_t>(bits);
    planes.upper[level] = static_cast<uint16_t>(bits >> 16);
    ++level;
  }
  return planes;
}

constexpr WordPlanes kSignedValues = make_value_planes(kDynamicTables.signed_value);
constexpr WordPlanes kUnsignedValues = make_value_planes(kDynamicTables.unsigned_value);
constexpr WordPlanes kSignedThresholds = make_threshold_planes(kDynamicTables.signed_cell);
constexpr WordPlanes kUnsignedThresholds = make_threshold_planes(kDynamicTables.unsigned_cell);

// All lanes. The unmasked forms of some intrinsics read an undefined vector, of which compilers warn.
constexpr __mmask16 kAll16 = 0xffff;
constexpr __mmask32 kAll32 = 0xffffffff;

// For two-register permutes of words: the lower halves of 32 integers, and 32 lower and upper halves joined
// to the first and the second 16 integers.
struct WordOrders {
  __m512i lower, first, second;
};

inline WordOrders word_orders() {
  alignas(64) uint16_t lower[32], first[32], second[32];
  for (int i = 0; i < 32; ++i) {
    lower[i] = static_cast<uint16_t>(2 * i);
    first[i] = static_cast<uint16_t>(i / 2 + 32 * (i % 2));
    second[i] = static_cast<uint16_t>(16 + i / 2 + 32 * (i % 2));
  }
  return WordOrders{_mm512_load_si512(lower), _mm512_load_si512(first), _mm512_load_si512(second)};
}

// A table of 32-bit entries in registers. kEntries: 128 or 256.
template <int kEntries>
struct WordTable {
  static constexpr int kRegisters = kEntries / 32;
  __m512i lower[kRegisters], upper[kRegisters];

  explicit WordTable(const WordPlanes& planes) {
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) {
      lower[i] = _mm512_load_si512(planes.lower + 32 * i);
      upper[i] = _mm512_load_si512(planes.upper + 32 * i);
    }
  }

  // The entries of 32 indices, as two registers of 16.
  FRUGALORE_HD void look_up(__m512i indices, const WordOrders& orders, __m512i* first,
                            __m512i* second) const {
    const __m512i low = pick(lower, indices), high = pick(upper, indices);
    *first = _mm512_permutex2var_epi16(low, orders.first, high);
    *second = _mm512_permutex2var_epi16(low, orders.second, high);
  }

 private:
  // A permute reads bits 0 to 5 of an index; bits 6 and 7 choose among the pairs of registers.
  FRUGALORE_HD static __m512i pick(const __m512i* table, __m512i indices) {
    const __mmask32 bit6 = _mm512_test_epi16_mask(indices, _mm512_set1_epi16(64));
    const __m512i low = _mm512_mask_blend_epi16(bit6, _mm512_permutex2var_epi16(table[0], indices, table[1]),
                                                _mm512_permutex2var_epi16(table[2], indices, table[3]));
    if constexpr (kEntries == 128) {
      return low;
    } else {
      const __mmask32 bit7 = _mm512_test_epi16_mask(indices, _mm512_set1_epi16(128));
      const __m512i high =
          _mm512_mask_blend_epi16(bit6, _mm512_permutex2var_epi16(table[4], indices, table[5]),
                                  _mm512_permutex2var_epi16(table[6], indices, table[7]));
      return _mm512_mask_blend_epi16(bit7, low, high);
    }
  }
};

inline __mmask32 first_lanes(int64_t n) {
  return (1u << n) - 1u;
}

// Calls body(i, lanes) for every 32 elements; all lanes as a constant but for the last ones.
template <class Body>
FRUGALORE_HD void for_vectors(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) body(i, kAll32);
  if (i < n) body(i, first_lanes(n - i));
}

template <bool kSigned>
void decode_block(const uint8_t* codes, float absmax, int64_t n, float* x) {
  const WordOrders orders = word_orders();
  const WordTable<256> table(kSigned ? kSignedValues : kUnsignedValues);
  const __m512 factor = _mm512_set1_ps(absmax);
  for_vectors(n, [&](int64_t i, __mmask32 lanes) __attribute__((always_inline)) {
    const __m512i indices = _mm512_maskz_cvtepu8_epi16(lanes, _mm256_maskz_loadu_epi8(lanes, codes + i));
    __m512i first, second;
    table.look_up(indices, orders, &first, &second);
    _mm512_mask_storeu_ps(x + i, static_cast<__mmask16>(lanes),
                          _mm512_mul_ps(_mm512_castsi512_ps(first), factor));
    _mm512_mask_storeu_ps(x + i + 16, static_cast<__mmask16>(lanes >> 16),
                          _mm512_mul_ps(_mm512_castsi512_ps(second), factor));
  });
}

// A guess at the level of a magnitude in [0, 1]: the level, or the one below it.
//
// In the decade [top / 10, top], top = 10^(i - 6), the n levels from level `base` on are the midpoints of n
// equal parts of the decade, so t = (x / top - 0.1) / 0.9 n counts parts and the nearest level is base +
// floor(t), but near the ends of the decade, where it may be a neighbour. floor(base + t - 0.5) is right or
// one too low in all cases, with room for the rounding of t. An octave touches at most two decades.
struct DecadeTables {
  float next_decade_from[32];   // of an octave, from 2^-20 on: where the higher of its decades begins
  int32_t decade[32];           // the lower one
  float slope[16], offset[16];  // of a decade: base + t - 0.5 = slope x + offset
};

constexpr DecadeTables make_decade_tables(bool with_sign) {
  DecadeTables tables{};
  const double begin[kDynamicDecades] = {0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1};
  double octave = 1.0 / 1048576.0;  // 2^-20
  for (int i = 0; i < 32; ++i, octave *= 2.0) {
    int decade = 0;
    while (decade + 1 < kDynamicDecades && i > 0 && begin[decade + 1] <= octave) ++decade;
    tables.decade[i] = decade;
    const bool two = decade + 1 < kDynamicDecades && begin[decade + 1] < 2.0 * octave;
    tables.next_decade_from[i] = two ? static_cast<float>(begin[decade + 1]) : 4.0f;
  }
  double top = 1e-6;
  int base = 1;
  for (int decade = 0; decade < kDynamicDecades; ++decade, top *= 10.0) {
    const int parts = with_sign ? 1 << decade : 2 << decade;
    tables.slope[decade] = static_cast<float>(parts / 0.9 / top);
    tables.offset[decade] = static_cast<float>(base - parts / 9.0 - 0.5);
    base += parts;
  }
  return tables;
}

constexpr DecadeTables kSignedDecades = make_decade_tables(true);
constexpr DecadeTables kUnsignedDecades = make_decade_tables(false);

struct LevelGuess {
  __m512i decade_low, decade_high;
  __m512 next_low, next_high, slope, offset;

  explicit LevelGuess(const DecadeTables& tables)
      : decade_low(_mm512_loadu_si512(tables.decade)),
        decade_high(_mm512_loadu_si512(tables.decade + 16)),
        next_low(_mm512_loadu_ps(tables.next_decade_from)),
        next_high(_mm512_loadu_ps(tables.next_decade_from + 16)),
        slope(_mm512_loadu_ps(tables.slope)),
        offset(_mm512_loadu_ps(tables.offset)) {}

  // bits: of magnitudes in [0, 1].
  FRUGALORE_HD __m512i operator()(__m512i bits) const {
    const __m512 x = _mm512_castsi512_ps(bits);
    const __m512i octave = _mm512_maskz_max_epi32(
        kAll16, _mm512_sub_epi32(_mm512_maskz_srli_epi32(kAll16, bits, 23), _mm512_set1_epi32(127 - 20)),
        _mm512_setzero_si512());
    const __m512 next = _mm512_permutex2var_ps(next_low, octave, next_high);
    const __m512i lower = _mm512_permutex2var_epi32(decade_low, octave, decade_high);
    const __mmask16 beyond = _mm512_cmp_ps_mask(x, next, _CMP_GE_OQ);
    const __m512i decade = _mm512_mask_add_epi32(lower, beyond, lower, _mm512_set1_epi32(1));
    const __m512 level = _mm512_fmadd_ps(x, _mm512_maskz_permutexvar_ps(kAll16, decade, slope),
                                         _mm512_maskz_permutexvar_ps(kAll16, decade, offset));
    return _mm512_maskz_cvttps_epi32(kAll16, level);
  }
};

// Quantises a block and returns its absmax.
template <bool kSigned>
float encode_block(const float* x, int64_t n, uint8_t* codes) {
  const Adam8bitScale scale = adam8bit_scale(largest_magnitude(x, n));
  const WordOrders orders = word_orders();
  const WordTable<kSigned ? 128 : 256> thresholds(kSigned ? kSignedThresholds : kUnsignedThresholds);
  const LevelGuess guess(kSigned ? kSignedDecades : kUnsignedDecades);
  const __m512 factor = _mm512_set1_ps(scale.inverse);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), one = _mm512_set1_epi32(0x3f800000);
  for_vectors(n, [&](int64_t i, __mmask32 lanes) __attribute__((always_inline)) {
    const __m512i a = _mm512_castps_si512(
        _mm512_mul_ps(_mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes), x + i), factor));
    const __m512i b = _mm512_castps_si512(
        _mm512_mul_ps(_mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes >> 16), x + i + 16), factor));
    // Beyond 1, and for NaN, the last level.
    const __m512i bits_a = _mm512_maskz_min_epi32(kAll16, _mm512_and_si512(a, magnitude), one);
    const __m512i bits_b = _mm512_maskz_min_epi32(kAll16, _mm512_and_si512(b, magnitude), one);
    const __m512i guesses = _mm512_permutex2var_epi16(guess(bits_a), orders.lower, guess(bits_b));
    __m512i next_a, next_b;
    thresholds.look_up(guesses, orders, &next_a, &next_b);
    const __mmask32 above =
        _mm512_kunpackw(_mm512_cmpge_epi32_mask(bits_b, next_b), _mm512_cmpge_epi32_mask(bits_a, next_a));
    const __m512i level = _mm512_mask_add_epi16(guesses, above, guesses, _mm512_set1_epi16(1));
    __m512i code = level;
    if constexpr (kSigned) {
      const __mmask32 negative = _mm512_kunpackw(_mm512_movepi32_mask(b), _mm512_movepi32_mask(a));
      const __m512i zero = _mm512_set1_epi16(kDynamicSignedZero);
      code = _mm512_mask_sub_epi16(_mm512_add_epi16(zero, level), negative, zero,
                                   _mm512_maskz_min_epi16(kAll32, level, zero));
    }
    _mm256_mask_storeu_epi8(codes + i, lanes, _mm512_maskz_cvtepi16_epi8(kAll32, code));
  });
  return scale.absmax;
}

#else

// out[i] = table[index[i]]. The empty asm keeps this loop scalar.
template <class T, class Index>
void look_up(const T* __restrict__ table, const Index* __restrict__ index, int64_t n, T* __restrict__ out) {
#pragma GCC unroll 8
  for (int64_t i = 0; i < n; ++i) {
    out[i] = table[index[i]];
    asm volatile("");
  }
}

template <bool kSigned>
void decode_block(const uint8_t* codes, float absmax, int64_t n, float* __restrict__ x) {
  look_up(kSigned ? kDynamicTables.signed_value : kDynamicTables.unsigned_value, codes, n, x);
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] * absmax;
}

// Quantises a block and returns its absmax.
template <bool kSigned>
float encode_block(const float* __restrict__ x, int64_t n, uint8_t* __restrict__ codes) {
  alignas(64) float scaled[kAdam8bitBlock];
  alignas(64) uint16_t cell[kAdam8bitBlock];
  alignas(64) uint32_t entry[kAdam8bitBlock];
  const Adam8bitScale scale = adam8bit_scale(largest_magnitude(x, n));
  for (int64_t i = 0; i < n; ++i) {
    scaled[i] = x[i] * scale.inverse;
    cell[i] = static_cast<uint16_t>(dynamic_cell(scaled[i]));
  }
  look_up(kSigned ? kDynamicTables.signed_cell : kDynamicTables.unsigned_cell, cell, n, entry);
  for (int64_t i = 0; i < n; ++i) {
    codes[i] =
        kSigned ? dynamic_signed_code(entry[i], scaled[i]) : dynamic_unsigned_code(entry[i], scaled[i]);
  }
  return scale.absmax;
}

#endif

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore::cpu
