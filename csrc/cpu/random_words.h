// Random words of a run of elements (core/philox.h), 64 counters side by side.
#pragma once

#include "core/philox.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {

constexpr int kPhiloxLanes = 64;
constexpr int kPhiloxWords = 4 * kPhiloxLanes;

// words[i] belongs to element 4 * quad + i, for i < 256.
inline void philox_words(const RandomStream& stream, uint64_t quad, uint32_t* __restrict__ words) {
  for (int lane = 0; lane < kPhiloxLanes; ++lane) {
    const uint64_t counter = quad + static_cast<uint64_t>(lane);
    uint32_t c[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), stream.tensor_id,
                     stream.step_and_purpose};
    uint32_t key0 = static_cast<uint32_t>(stream.seed), key1 = static_cast<uint32_t>(stream.seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      philox_round(c, key0, key1);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    words[4 * lane] = c[0];
    words[4 * lane + 1] = c[1];
    words[4 * lane + 2] = c[2];
    words[4 * lane + 3] = c[3];
  }
}

// words[i] = random_word(stream, first + i) for i < n.
inline void random_words(const RandomStream& stream, uint64_t first, int64_t n, uint32_t* words) {
  uint64_t quad = first >> 2;
  int64_t skip = static_cast<int64_t>(first & 3), done = 0;
  while (done < n) {
    if (skip == 0 && n - done >= kPhiloxWords) {
      philox_words(stream, quad, words + done);
      done += kPhiloxWords;
    } else {
      uint32_t all[kPhiloxWords];
      philox_words(stream, quad, all);
      for (int64_t i = skip; i < kPhiloxWords && done < n; ++i) words[done++] = all[i];
      skip = 0;
    }
    quad += kPhiloxLanes;
  }
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore::cpu
