// Conversions between storage and arithmetic types, and the elementary functions of the kernels.
#pragma once

#include <cmath>
#include <limits>

#include "common/cuda/platform.cuh"
#include "common/dtype.h"

namespace ltk::cuda {

template <class Acc>
constexpr Acc kInfinity = std::numeric_limits<Acc>::infinity();
template <class Acc>
constexpr Acc kNaN = std::numeric_limits<Acc>::quiet_NaN();
template <class Acc>
constexpr Acc kLog2E = Acc(1.44269504088896340736);
template <class Acc>
constexpr Acc kLn2 = Acc(0.69314718055994530942);

template <class To, class From>
__device__ __forceinline__ To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps every bit");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// The value itself, of which the compiler knows nothing: what was computed from x is not kept for
// what is computed from opaque(x).
__device__ __forceinline__ float opaque(float x) {
#if defined(__CUDACC__)
  asm volatile("" : "+f"(x));
#endif
  return x;
}
__device__ __forceinline__ double opaque(double x) {
#if defined(__CUDACC__)
  asm volatile("" : "+d"(x));
#endif
  return x;
}

// ---- Storage to arithmetic ----------------------------------------------------------------------

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(BFloat16 x) {
  return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float widen(Half x) {
#if defined(__CUDACC__)
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31u;
  const uint32_t fraction = x.bits & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(fraction), -24);
    return sign ? -magnitude : magnitude;
  }
  return bit_cast<float>(sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13);
#endif
}

// ---- Arithmetic to storage, to the nearest even -------------------------------------------------

template <class Storage>
__device__ __forceinline__ Storage narrow(Accumulate<Storage> x) {
  return x;
}
template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16>(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return {bits};
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
#endif
}
template <>
__device__ __forceinline__ Half narrow<Half>(float x) {
#if defined(__CUDACC__)
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return {bits};
#else
  const uint16_t sign = static_cast<uint16_t>(bit_cast<uint32_t>(x) >> 16 & 0x8000u);
  const float magnitude = std::fabs(x);
  if (x != x) return {0x7fff};
  if (magnitude >= 65520.f) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (magnitude < 6.103515625e-05f) {  // subnormal: a multiple of 2^-24
    return {static_cast<uint16_t>(sign |
                                  static_cast<uint16_t>(std::nearbyint(magnitude * 16777216.f)))};
  }
  const uint32_t bits = bit_cast<uint32_t>(magnitude) - (112u << 23);
  return {static_cast<uint16_t>(sign | (bits + 0xfffu + (bits >> 13 & 1u)) >> 13)};
#endif
}

// ---- Elementary functions -----------------------------------------------------------------------

// 2^x in one MUFU instruction: relative error 2^-22, results below 2^-126 are 0.
__device__ __forceinline__ float fast_exp2(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const float y = std::exp2(x);
  return y < std::numeric_limits<float>::min() ? 0.f : y;
#endif
}
__device__ __forceinline__ double fast_exp2(double x) { return std::exp2(x); }

// log2(x) in one MUFU instruction: error 2^-22.
__device__ __forceinline__ float fast_log2(float x) {
#if defined(__CUDACC__)
  return __log2f(x);
#else
  return std::log2(x);
#endif
}
__device__ __forceinline__ double fast_log2(double x) { return std::log2(x); }

// ---- The range of float16 -----------------------------------------------------------------------

// The power of two that a row of gradients, none of them above `bound`, is divided by before it is
// stored in 16 bits: the largest then lies near 2^14, and what is 2^28 times smaller still keeps
// every bit.
__device__ __forceinline__ float half_scale(float bound) {
  const int exponent = static_cast<int>(bit_cast<uint32_t>(bound) >> 23 & 255u);
  if (!(bound > 0.f) || exponent == 255) return 1.f;
  const int scaled = exponent - 14;
  return bit_cast<float>(static_cast<uint32_t>(scaled < 27 ? 27 : scaled) << 23);
}
__device__ __forceinline__ double half_scale(double bound) {
  return half_scale(static_cast<float>(bound));
}

}  // namespace ltk::cuda
