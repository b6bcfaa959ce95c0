#include "core/sketch.h"

#include "core/visit.h"
#include "cpu/kernels.h"
#include "cpu/random_words.h"
#include "cpu/thread_pool.h"

namespace frugalore::cpu {
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace {  // the families share names such as kBlock

constexpr int64_t kBlock = 512;  // elements whose random words are made at a time

template <class T>
void fill_signs(T* __restrict__ out, const uint32_t* __restrict__ words, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = from_float<T>(rademacher(words[i]));
}

}  // namespace
}  // namespace FRUGALORE_ISA_NAMESPACE

template <Isa isa>
void run(const RademacherJob& job) {
  visit_float(job.dtype, job.out, [&](auto* out) {
    parallel_for(job.count, 32 * kBlock, [&](int64_t begin, int64_t end) {
      uint32_t words[kBlock];
      for (int64_t i = begin; i < end; i += kBlock) {
        const int64_t n = end - i < kBlock ? end - i : kBlock;
        random_words(job.stream, static_cast<uint64_t>(job.first_index + i), n, words);
        fill_signs(out + i, words, n);
      }
    });
  });
}

template void run<kIsa>(const RademacherJob&);

}  // namespace frugalore::cpu
