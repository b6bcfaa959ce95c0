#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/isa.h"

namespace frugalore::cpu {
namespace {

constexpr Isa kAll[] = {Isa::avx512, Isa::avx2, Isa::baseline};  // best first

bool built(Isa isa) {
  switch (isa) {
    case Isa::avx512:
#if FRUGALORE_HAS_AVX512
      return true;
#else
      return false;
#endif
    case Isa::avx2:
#if FRUGALORE_HAS_AVX2
      return true;
#else
      return false;
#endif
    case Isa::baseline:
      return true;
  }
  return false;
}

bool runs_here(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("fma");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::baseline:
      return true;
  }
#endif
  return isa == Isa::baseline;
}

Isa named(const char* name) {
  for (Isa isa : kAll) {
    if (std::string(name) != isa_name(isa)) continue;
    if (!built(isa) || !runs_here(isa)) {
      throw std::invalid_argument(std::string("FRUGALORE_ISA: ") + name +
                                  (built(isa) ? " does not run on this machine" : " is not in this build"));
    }
    return isa;
  }
  throw std::invalid_argument(std::string("FRUGALORE_ISA: baseline, avx2 or avx512 expected, got ") + name);
}

Isa choose() {
  if (const char* name = std::getenv("FRUGALORE_ISA"); name != nullptr && *name != '\0') return named(name);
  for (Isa isa : kAll) {
    if (built(isa) && runs_here(isa)) return isa;
  }
  return Isa::baseline;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{choose()};
  return isa;
}

}  // namespace

Isa active_isa() {
  return current().load(std::memory_order_relaxed);
}

void force_isa(const char* name) {
  current().store(named(name));
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::baseline:
      return "baseline";
  }
  return "unknown";
}

const char* cpu_vendor() {
#if defined(__x86_64__)
  if (__builtin_cpu_is("intel")) return "intel";
  if (__builtin_cpu_is("amd")) return "amd";
#endif
  return "other";
}

}  // namespace frugalore::cpu
