// The random words of a run of elements, many Philox counters at a time.
//
// A counter is four 64-bit lanes, one per 32-bit word. Only the low half of a lane counts: the multiplier
// reads nothing else, so the upper halves may hold anything and a round needs no masks and no shuffles.
#pragma once

#include "core/philox.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {

#if defined(__AVX512F__)
constexpr int kWideLanes = 8;
#elif defined(__AVX2__)
constexpr int kWideLanes = 4;
#else
constexpr int kWideLanes = 2;
#endif

using Wide = uint64_t __attribute__((vector_size(8 * kWideLanes)));

// The 64-bit products of the low halves of the lanes.
FRUGALORE_HD Wide multiply_low_halves(Wide a, Wide b) {
#if defined(__AVX512F__)
  // All lanes; the unmasked form reads an undefined vector, of which compilers warn.
  const __mmask8 all = 0xff;
  return reinterpret_cast<Wide>(
      _mm512_maskz_mul_epu32(all, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Wide>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<Wide>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// Stores a[0] b[0] a[1] b[1] ...
FRUGALORE_HD void store_alternating(Wide a, Wide b, uint32_t* out) {
#if defined(__AVX512F__)
  const __m512i x = reinterpret_cast<__m512i>(a), y = reinterpret_cast<__m512i>(b);
  const __m512i low = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  const __m512i high = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
  _mm512_storeu_si512(out, _mm512_permutex2var_epi64(x, low, y));
  _mm512_storeu_si512(out + 16, _mm512_permutex2var_epi64(x, high, y));
#elif defined(__AVX2__)
  const __m256i x = reinterpret_cast<__m256i>(a), y = reinterpret_cast<__m256i>(b);
  const __m256i even = _mm256_unpacklo_epi64(x, y), odd = _mm256_unpackhi_epi64(x, y);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute2x128_si256(even, odd, 0x20));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 8), _mm256_permute2x128_si256(even, odd, 0x31));
#else
  for (int lane = 0; lane < kWideLanes; ++lane) {
    out[4 * lane] = static_cast<uint32_t>(a[lane]);
    out[4 * lane + 1] = static_cast<uint32_t>(a[lane] >> 32);
    out[4 * lane + 2] = static_cast<uint32_t>(b[lane]);
    out[4 * lane + 3] = static_cast<uint32_t>(b[lane] >> 32);
  }
#endif
}

// Stores a counter's four words c0 c1 c2 c3 of every lane, of which the upper halves are garbage.
FRUGALORE_HD void store_words(Wide c0, Wide c1, Wide c2, Wide c3, uint32_t* out) {
#if defined(__AVX512F__)
  // The odd words move into the upper halves of the even ones: one masked shuffle a pair.
  const __mmask16 upper = 0xaaaa;
  const Wide a = reinterpret_cast<Wide>(_mm512_mask_shuffle_epi32(
      reinterpret_cast<__m512i>(c0), upper, reinterpret_cast<__m512i>(c1), _MM_PERM_CCAA));
  const Wide b = reinterpret_cast<Wide>(_mm512_mask_shuffle_epi32(
      reinterpret_cast<__m512i>(c2), upper, reinterpret_cast<__m512i>(c3), _MM_PERM_CCAA));
#else
  const Wide a = (c0 & 0xffffffffu) | (c1 << 32), b = (c2 & 0xffffffffu) | (c3 << 32);
#endif
  store_alternating(a, b, out);
}

// Vectors of counters in flight. A round is a chain of a multiplication, a shift and an exclusive or, so one
// vector alone would wait for the multiplier. With AVX-512, 4 vectors of 4 words, the multipliers and the
// keys fill 20 of the 32 registers; the others have 16 registers, which 2 vectors fill.
#if defined(__AVX512F__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif
constexpr int kPhiloxWords = 4 * kWideLanes * kVectors;

// words[i] belongs to element 4 * quad + i, for i < kPhiloxWords. A round is 6 instructions a vector: two
// multiplications, two shifts, and two exclusive ors of three operands.
inline void philox_words(const RandomStream& stream, uint64_t quad, uint32_t* __restrict__ words) {
  const Wide zeros = {};
  Wide lanes = {};
  for (int lane = 0; lane < kWideLanes; ++lane) lanes[lane] = static_cast<uint64_t>(lane);
  Wide c0[kVectors], c1[kVectors], c2[kVectors], c3[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    c0[v] = lanes + (quad + static_cast<uint64_t>(v * kWideLanes));
    c1[v] = c0[v] >> 32;
    c2[v] = zeros + stream.tensor_id;
    c3[v] = zeros + stream.step_and_purpose;
  }
  const Wide multiplier0 = zeros + 0xD2511F53u, multiplier1 = zeros + 0xCD9E8D57u;
  Wide key0 = zeros + static_cast<uint32_t>(stream.seed), key1 = zeros + (stream.seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    for (int v = 0; v < kVectors; ++v) {
      const Wide product0 = multiply_low_halves(c0[v], multiplier0);
      const Wide product1 = multiply_low_halves(c2[v], multiplier1);
      c0[v] = (product1 >> 32) ^ c1[v] ^ key0;
      c2[v] = (product0 >> 32) ^ c3[v] ^ key1;
      c1[v] = product1;
      c3[v] = product0;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (int v = 0; v < kVectors; ++v) {
    store_words(c0[v], c1[v], c2[v], c3[v], words + 4 * kWideLanes * v);
  }
}

// words[i] = random_word(stream, first + i) for i < n. `first` need not be a multiple of 4.
inline void random_words(const RandomStream& stream, uint64_t first, int64_t n, uint32_t* words) {
  uint64_t quad = first >> 2;
  int64_t skip = static_cast<int64_t>(first & 3), done = 0;
  for (; done < n; quad += kPhiloxWords / 4) {
    if (skip == 0 && n - done >= kPhiloxWords) {
      philox_words(stream, quad, words + done);
      done += kPhiloxWords;
    } else {
      uint32_t all[kPhiloxWords];
      philox_words(stream, quad, all);
      for (int64_t i = skip; i < kPhiloxWords && done < n; ++i) words[done++] = all[i];
      skip = 0;
    }
  }
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore::cpu
