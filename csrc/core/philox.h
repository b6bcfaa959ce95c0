// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and the
// library's convention for its counter. A random number is a pure function of
//
//   key      seed (64 bits)
//   counter  (element_index >> 2) low, (element_index >> 2) high, tensor id, step | purpose << 28
//   lane     element_index & 3
//
// so it depends on no thread, block, chunk, shard or device.
#pragma once

#include "core/config.h"

namespace frugalore {

enum class Purpose : uint32_t { weight = 0, exp_avg = 1, exp_avg_sq = 2, sketch = 3, selection = 4 };

// One stream of random words, one per element of a tensor.
struct RandomStream {
  uint64_t seed;
  uint32_t tensor_id;
  uint32_t step_and_purpose;
};

inline namespace FRUGALORE_ISA_NAMESPACE {

struct PhiloxWords {
  uint32_t word[4];
};

FRUGALORE_HD RandomStream random_stream(uint64_t seed, uint32_t tensor_id, int64_t step, Purpose purpose) {
  const uint32_t low_step = static_cast<uint32_t>(step) & 0x0fffffffu;
  return RandomStream{seed, tensor_id, low_step | (static_cast<uint32_t>(purpose) << 28)};
}

FRUGALORE_HD void philox_round(uint32_t (&c)[4], uint32_t key0, uint32_t key1) {
  const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * c[0];
  const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * c[2];
  const uint32_t high0 = static_cast<uint32_t>(product0 >> 32), low0 = static_cast<uint32_t>(product0);
  const uint32_t high1 = static_cast<uint32_t>(product1 >> 32), low1 = static_cast<uint32_t>(product1);
  const uint32_t c0 = high1 ^ c[1] ^ key0;
  const uint32_t c2 = high0 ^ c[3] ^ key1;
  c[0] = c0;
  c[1] = low1;
  c[2] = c2;
  c[3] = low0;
}

// The four words of one counter: the random words of elements 4*quad ... 4*quad+3.
FRUGALORE_HD PhiloxWords philox4x32(const RandomStream& stream, uint64_t quad) {
  uint32_t c[4] = {static_cast<uint32_t>(quad), static_cast<uint32_t>(quad >> 32), stream.tensor_id,
                   stream.step_and_purpose};
  uint32_t key0 = static_cast<uint32_t>(stream.seed), key1 = static_cast<uint32_t>(stream.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    philox_round(c, key0, key1);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return PhiloxWords{{c[0], c[1], c[2], c[3]}};
}

FRUGALORE_HD uint32_t random_word(const RandomStream& stream, uint64_t element_index) {
  return philox4x32(stream, element_index >> 2).word[element_index & 3];
}

}  // namespace FRUGALORE_ISA_NAMESPACE
}  // namespace frugalore
