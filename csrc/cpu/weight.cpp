#include "core/weight.h"

#include "core/visit.h"
#include "cpu/kernels.h"
#include "cpu/random_words.h"
#include "cpu/thread_pool.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {  // the families share names such as kBlock

constexpr int64_t kBlock = 512;  // elements whose random words are made at a time

template <bool kStochastic, class W, class U>
void update_block(W* __restrict__ weight, const U* __restrict__ update, const uint32_t* __restrict__ words,
                  int64_t n, float keep, float coefficient) {
  for (int64_t i = 0; i < n; ++i) {
    weight[i] = updated_weight<kStochastic>(weight[i], to_float(update[i]), words[i], keep, coefficient);
  }
}

template <bool kStochastic, class W, class U>
void update_all(W* weight, const U* update, const WeightUpdateJob& job, const WeightStepScalars& step) {
  parallel_for(job.count, 32 * kBlock, [&](int64_t begin, int64_t end) {
    uint32_t words[kBlock] = {};
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t n = end - i < kBlock ? end - i : kBlock;
      if (kStochastic) {
        random_words(step.stream, static_cast<uint64_t>(job.step.first_index + i), n, words);
      }
      update_block<kStochastic>(weight + i, update + i, words, n, step.keep, step.coefficient);
    }
  });
}

}  // namespace
}  // namespace FRUGALORE_ISA_NAMESPACE

template <Isa isa>
void run(const WeightUpdateJob& job) {
  const WeightStepScalars step = weight_step_scalars(job.step);
  if (!step.applied) return;
  visit_float(job.weight_dtype, job.weight, [&](auto* weight) {
    visit_float(job.update_dtype, job.update, [&](const auto* update) {
      if (job.step.stochastic && sizeof(*weight) == 2) {
        update_all<true>(weight, update, job, step);
      } else {
        update_all<false>(weight, update, job, step);
      }
    });
  });
}

template void run<kIsa>(const WeightUpdateJob&);

}  // namespace frugalore::cpu
