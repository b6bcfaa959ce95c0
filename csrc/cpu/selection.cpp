// The choice of columns or rows (core/selection.h). It is made once a period for as many indices as a layer
// has columns, so one thread makes it.
#include "core/selection.h"

#include "cpu/kernels.h"
#include "cpu/random_words.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlock = 512;  // indices whose random words are made at a time

// Body: void(int64_t index, uint32_t word), for every index in order.
template <class Body>
void for_words(const SelectJob& job, Body&& body) {
  alignas(64) uint32_t words[kBlock];
  for (int64_t first = 0; first < job.count; first += kBlock) {
    const int64_t n = job.count - first < kBlock ? job.count - first : kBlock;
    random_words(job.stream, static_cast<uint64_t>(first), n, words);
    for (int64_t i = 0; i < n; ++i) body(first + i, words[i]);
  }
}

SelectThreshold select_threshold(const SelectJob& job) {
  SelectThreshold threshold{0, static_cast<uint32_t>(job.chosen_count)};
  for (int digit = 0; digit < kSelectDigits; ++digit) {
    uint32_t counts[kSelectBins] = {};
    for_words(job, [&](int64_t, uint32_t word) {
      counts[select_digit(digit, word)] += select_agrees(threshold, digit, word) ? 1 : 0;
    });
    select_refine(threshold, digit, counts);
  }
  return threshold;
}

}  // namespace
}  // namespace FRUGALORE_ISA_NAMESPACE

template <Isa isa>
void run(const SelectJob& job) {
  const SelectThreshold threshold = select_threshold(job);
  uint32_t less = 0, equal = 0;
  for_words(job, [&](int64_t i, uint32_t word) {
    const uint32_t before = selected_before(threshold, less, equal);
    less += word < threshold.word ? 1 : 0;
    equal += word == threshold.word ? 1 : 0;
    job.below[i] = static_cast<int32_t>(before);
    if (selected_before(threshold, less, equal) > before) job.chosen[before] = static_cast<int32_t>(i);
  });
  job.below[job.count] = static_cast<int32_t>(job.chosen_count);
}

template void run<kIsa>(const SelectJob&);

}  // namespace frugalore::cpu
