// The CPU kernels. `dispatch(job)` runs a job with the instruction set in use; csrc/cpu/<family>.cpp
// defines `run<isa>(job)` and is compiled once per instruction set.
#pragma once

#include "core/adamw.h"
#include "core/adamw8bit.h"
#include "core/cholesky.h"
#include "core/coordinates.h"
#include "core/gemm.h"
#include "core/gram.h"
#include "core/int4.h"
#include "core/int8.h"
#include "core/momentum.h"
#include "core/residual.h"
#include "core/selection.h"
#include "core/sketch.h"
#include "core/split.h"
#include "core/weight.h"
#include "cpu/isa.h"

namespace frugalore::cpu {

// Within a kernel's translation unit: the set that it is being compiled for.
inline namespace FRUGALORE_ISA_NAMESPACE {
namespace isa_constant {
constexpr Isa portable = Isa::baseline;
constexpr Isa baseline = Isa::baseline;
constexpr Isa avx2 = Isa::avx2;
constexpr Isa avx512 = Isa::avx512;
}  // namespace isa_constant
constexpr Isa kIsa = isa_constant::FRUGALORE_ISA_NAMESPACE;
}  // namespace FRUGALORE_ISA_NAMESPACE

template <Isa isa>
void run(const Int4QuantizeJob& job);
template <Isa isa>
void run(const Int4DequantizeJob& job);
template <Isa isa>
void run(const Int4PackJob& job);
template <Isa isa>
void run(const Int4UnpackJob& job);

template <Isa isa>
void run(const Int8QuantizeJob& job);
template <Isa isa>
void run(const Int8DequantizeJob& job);
template <Isa isa>
void run(const Int8UpdateJob& job);

template <Isa isa>
void run(const WeightUpdateJob& job);

template <Isa isa>
void run(const AdamwStepJob& job);
template <Isa isa>
void run(const AdamwDirectionJob& job);

template <Isa isa>
void run(const Adamw8bitStepJob& job);
template <Isa isa>
void run(const Adamw8bitDirectionJob& job);

template <Isa isa>
void run(const MomentumStepJob& job);
template <Isa isa>
void run(const MomentumDirectionJob& job);

template <Isa isa>
void run(const ResidualJob& job);

template <Isa isa>
void run(const SplitStepJob& job);

template <Isa isa>
void run(const RademacherJob& job);

template <Isa isa>
void run(const GemmJob& job);

template <Isa isa>
void run(const GramJob& job);

template <Isa isa>
void run(const CholeskyInverseJob& job);

template <Isa isa>
void run(const SelectJob& job);

template <Isa isa>
void run(const CoordinatesProjectJob& job);
template <Isa isa>
void run(const CoordinatesBackJob& job);

template <class Job>
void dispatch(const Job& job) {
  switch (active_isa()) {
#if FRUGALORE_HAS_AVX512
    case Isa::avx512:
      return run<Isa::avx512>(job);
#endif
#if FRUGALORE_HAS_AVX2
    case Isa::avx2:
      return run<Isa::avx2>(job);
#endif
    default:
      return run<Isa::baseline>(job);
  }
}

}  // namespace frugalore::cpu
