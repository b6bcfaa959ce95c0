// Device intrinsics of CUDA that have a plain meaning on one thread: memory, atomics, bits, and arithmetic
// with a stated rounding (this code is compiled without contraction, so + - * / and sqrt are the _rn forms).
#pragma once

#include <cmath>
#include <cstring>

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
void __stcs(T* to, T value) {
  *to = value;
}
template <class T>
void __stcg(T* to, T value) {
  *to = value;
}

// Fibres change only at collectives, so a plain read and write is atomic. The operand is converted to the
// type in memory, as CUDA's overloads do.
namespace cuda_on_cpu {
template <class T, class Change>
T atomic(T* at, Change change) {
  const T old = *at;
  *at = change(old);
  return old;
}
template <class T>
struct Same {
  using type = T;
};
template <class T>
using same_t = typename Same<T>::type;
}  // namespace cuda_on_cpu

template <class T>
T atomicAdd(T* at, cuda_on_cpu::same_t<T> value) {
  return cuda_on_cpu::atomic(at, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMax(T* at, cuda_on_cpu::same_t<T> value) {
  return cuda_on_cpu::atomic(at, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* at, cuda_on_cpu::same_t<T> value) {
  return cuda_on_cpu::atomic(at, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicOr(T* at, cuda_on_cpu::same_t<T> value) {
  return cuda_on_cpu::atomic(at, [=](T old) { return old | value; });
}
template <class T>
T atomicAnd(T* at, cuda_on_cpu::same_t<T> value) {
  return cuda_on_cpu::atomic(at, [=](T old) { return old & value; });
}
template <class T>
T atomicExch(T* at, cuda_on_cpu::same_t<T> value) {
  return cuda_on_cpu::atomic(at, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* at, cuda_on_cpu::same_t<T> expected, cuda_on_cpu::same_t<T> value) {
  return cuda_on_cpu::atomic(at, [=](T old) { return old == expected ? value : old; });
}
// Counts up to `last`, then starts over.
inline unsigned atomicInc(unsigned* at, unsigned last) {
  return cuda_on_cpu::atomic(at, [=](unsigned old) { return old >= last ? 0u : old + 1; });
}

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
  return __builtin_popcountll(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1u) << (31 - bit);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

namespace cuda_on_cpu {
template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a change of type, not of size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace cuda_on_cpu
inline unsigned __float_as_uint(float x) {
  return cuda_on_cpu::same_bits<unsigned>(x);
}
inline int __float_as_int(float x) {
  return cuda_on_cpu::same_bits<int>(x);
}
inline float __uint_as_float(unsigned x) {
  return cuda_on_cpu::same_bits<float>(x);
}
inline float __int_as_float(int x) {
  return cuda_on_cpu::same_bits<float>(x);
}

inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __frcp_rn(float a) {
  return 1.0f / a;
}
inline float __fsqrt_rn(float a) {
  return std::sqrt(a);
}
