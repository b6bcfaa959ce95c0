// What every header of csrc/core shares: the host+device marker and the instruction-set namespace.
//
// The functions of csrc/core are inline and are compiled several times: by nvcc, and by the C++
// compiler under several -m flags. If those copies had one name, the linker would keep an arbitrary
// one, and AVX-512 code would run on a machine without it. So they live in an inline namespace that
// is named after the instruction set; plain data (the job descriptors) stays outside of it.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FRUGALORE_HD __host__ __device__ __forceinline__
#else
#define FRUGALORE_HD inline __attribute__((always_inline))
#endif

#ifndef FRUGALORE_ISA_NAMESPACE
#define FRUGALORE_ISA_NAMESPACE portable
#endif
