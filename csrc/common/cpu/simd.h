// Vectors of the width of the instruction set this file is compiled for.
//
// GCC's and Clang's vector extension gives arithmetic, comparison and selection for every target;
// what it lacks (unaligned and converting loads, horizontal reductions, exp2) is added here. A
// kernel file is compiled once per instruction set, each time with another LTK_ISA, so everything
// it defines lives in namespace ltk::LTK_ISA: nothing compiled for AVX-512 can be linked into the
// place of a baseline function. For the same reason nothing here uses the standard library's
// templates.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "common/dtype.h"

#ifndef LTK_ISA
#error "compile with -DLTK_ISA=<name of the instruction set>"
#endif

#if defined(__AVX512F__)
#define LTK_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define LTK_VECTOR_BYTES 32
#else
#define LTK_VECTOR_BYTES 16
#endif

namespace ltk::LTK_ISA {

template <class Acc>
constexpr Acc kLog2e = static_cast<Acc>(1.4426950408889634);

template <class Acc>
struct Simd;
template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(LTK_VECTOR_BYTES)));
  typedef int32_t I __attribute__((vector_size(LTK_VECTOR_BYTES)));
  typedef uint32_t U __attribute__((vector_size(LTK_VECTOR_BYTES)));
  static constexpr int lanes = LTK_VECTOR_BYTES / sizeof(float);
};
template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(LTK_VECTOR_BYTES)));
  typedef int64_t I __attribute__((vector_size(LTK_VECTOR_BYTES)));
  static constexpr int lanes = LTK_VECTOR_BYTES / sizeof(double);
};
template <class Acc>
using Vec = typename Simd<Acc>::V;
template <class Acc>
constexpr int kLanes = Simd<Acc>::lanes;

template <class Acc>
constexpr Acc kInf = static_cast<Acc>(__builtin_inf());

template <class Acc>
inline Vec<Acc> broadcast(Acc x) {
  return x - Vec<Acc>{};
}

template <class T>
inline T load_bytes(const void* p) {
  T x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
template <class Acc>
inline Vec<Acc> load(const Acc* p) {
  return load_bytes<Vec<Acc>>(p);
}
template <class Acc>
inline void store(Acc* p, Vec<Acc> x) {
  std::memcpy(p, &x, sizeof x);
}

// a > b ? a : b; where one is NaN the result is `b`.
template <class V>
inline V max(V a, V b) {
#if defined(__AVX512F__)  // where GCC would compare into a mask and blend
  if constexpr (sizeof(a[0]) == sizeof(float))
    return V(_mm512_max_ps(__m512(a), __m512(b)));
  else
    return V(_mm512_max_pd(__m512d(a), __m512d(b)));
#else
  return a > b ? a : b;
#endif
}

// Horizontal reductions fold the upper half onto the lower until one lane is left: a fixed order,
// whatever the data.
template <int Bytes, class Acc, class Combine>
inline Acc fold(const void* lanes, Combine combine) {
  if constexpr (Bytes == sizeof(Acc)) {
    return load_bytes<Acc>(lanes);
  } else if constexpr (Bytes == 2 * sizeof(Acc)) {
    return combine(load_bytes<Acc>(lanes),
                   load_bytes<Acc>(static_cast<const char*>(lanes) + sizeof(Acc)));
  } else {
    typedef Acc Folded __attribute__((vector_size(Bytes / 2)));
    const Folded folded = combine(load_bytes<Folded>(lanes),
                                  load_bytes<Folded>(static_cast<const char*>(lanes) + Bytes / 2));
    return fold<Bytes / 2, Acc>(&folded, combine);
  }
}
template <class Acc>
inline Acc horizontal_sum(Vec<Acc> x) {
#if defined(__AVX512F__)  // shuffles in the same order, where GCC would go through memory
  if constexpr (sizeof(Acc) == sizeof(float))
    return _mm512_reduce_add_ps(__m512(x));
  else
    return _mm512_reduce_add_pd(__m512d(x));
#endif
  // x + 0 is another value: GCC would keep an accumulator whose bytes are stored in memory, in the
  // very loop that accumulates.
  const Vec<Acc> copy = x + Vec<Acc>{};
  return fold<LTK_VECTOR_BYTES, Acc>(&copy, [](auto a, auto b) { return a + b; });
}
template <class Acc>
inline Acc horizontal_max(Vec<Acc> x) {
  const Vec<Acc> copy = max(x, broadcast(-kInf<Acc>));
#if defined(__AVX512F__)
  if constexpr (sizeof(Acc) == sizeof(float))
    return _mm512_reduce_max_ps(__m512(copy));
  else
    return _mm512_reduce_max_pd(__m512d(copy));
#endif
  return fold<LTK_VECTOR_BYTES, Acc>(&copy, [](auto a, auto b) { return a > b ? a : b; });
}

// 2^x for x <= ~0, as softmax needs it, and for x > -inf only if `Finite`. 2^x = 2^n 2^f with n =
// round(x); 2^f is the minimax polynomial of degree 5 on [-1/2, 1/2] among those with 2^0 = 1
// exactly: relative error 9.1e-8, 1.7e-7 as evaluated in float, 6.6e-8 in the root mean square.
// (Degree 6 evaluates to 7.9e-8.) Results below 2^-126 are 0; NaN stays NaN.
template <bool Finite = false>
inline Vec<float> exp2(Vec<float> x) {
  using V = Vec<float>;
#if defined(__AVX512F__)
  // NaN is the second operand: kept. Where -inf is not allowed for, it becomes NaN below.
  const __m512 clamped = __m512(Finite ? x : max(broadcast(-200.0f), x));
  const __m512 n = _mm512_roundscale_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const V f = V(clamped) - V(n);
#else
  using I = Simd<float>::I;
  const V lowest = broadcast(-126.0f);
  const V clamped = max(lowest, x);
  const V magic = broadcast(12582912.0f);  // 1.5 * 2^23: the sum's low bits are round(x)
  const V shifted = clamped + magic;
  const V f = clamped - (shifted - magic);
#endif
  V p = broadcast(1.3264727197399122e-3f);
  p = p * f + broadcast(9.671512639658913e-3f);
  p = p * f + broadcast(5.550733743251557e-2f);
  p = p * f + broadcast(2.402224208537489e-1f);
  p = p * f + broadcast(6.931469775991653e-1f);
  p = p * f + broadcast(1.0f);
#if defined(__AVX512F__)
  return V(_mm512_scalef_ps(__m512(p), n));
#else
  const V scaled = V(I(p) + (I(shifted) << 23));
  return x < lowest ? V{} : scaled;
#endif
}
template <bool Finite = false>
inline Vec<double> exp2(Vec<double> x) {
  Vec<double> y = x;
  for (int i = 0; i < kLanes<double>; i++) y[i] = __builtin_exp2(x[i]);
  return y;
}

// ---- 16-bit storage -----------------------------------------------------------------------------

inline float to_float(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  return load_bytes<float>(&bits);
}
inline float to_float(Half x) {
  // Shifted into float's exponent field the number is 2^-112 too small; the product is exact and
  // normalises subnormals. Inf and NaN keep an exponent that only they can have.
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const float scaled = load_bytes<float>(&magnitude) * 0x1p112f;
  uint32_t bits = load_bytes<uint32_t>(&scaled);
  if (magnitude >= 0x0f800000u) bits |= 0x7f800000u;
  bits |= sign;
  return load_bytes<float>(&bits);
}
inline float to_float(float x) { return x; }
inline double to_float(double x) { return x; }

// Round to nearest, ties to even.
inline void from_float(float x, BFloat16* out) {
  const uint32_t bits = load_bytes<uint32_t>(&x);
  out->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void from_float(float x, Half* out) {
  uint32_t bits = load_bytes<uint32_t>(&x);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7fffffffu;
  uint16_t half;
  if (bits >= 0x47800000u) {  // 65536 and up, Inf, NaN
    half = bits > 0x7f800000u ? 0x7e00 : 0x7c00;
  } else if (bits < 0x38800000u) {  // below 2^-14: the addition of 1/2 aligns and rounds
    const float aligned = load_bytes<float>(&bits) + 0.5f;
    half = static_cast<uint16_t>(load_bytes<uint32_t>(&aligned) - 0x3f000000u);
  } else {
    bits += 0xc8000fffu + (bits >> 13 & 1);  // exponent bias 127 -> 15, round to even
    half = static_cast<uint16_t>(bits >> 13);
  }
  out->bits = sign | half;
}
inline void from_float(float x, float* out) { *out = x; }
inline void from_float(double x, double* out) { *out = x; }

inline Vec<float> load(const BFloat16* p) {
  typedef uint16_t Narrow __attribute__((vector_size(LTK_VECTOR_BYTES / 2)));
  using U = Simd<float>::U;
  return Vec<float>(__builtin_convertvector(load_bytes<Narrow>(p), U) << 16);
}
inline auto to_bfloat16(Vec<float> x) {
  typedef uint16_t Narrow __attribute__((vector_size(LTK_VECTOR_BYTES / 2)));
  using U = Simd<float>::U;
  const U bits = U(x);
  const U rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const U result = x != x ? U{} + 0x7fc0 : rounded;
  return __builtin_convertvector(result, Narrow);
}
inline void store(BFloat16* p, Vec<float> x) {
  const auto narrow = to_bfloat16(x);
  std::memcpy(p, &narrow, sizeof narrow);
}

#if defined(__AVX512F__)
inline Vec<float> load(const Half* p) {
  return Vec<float>(_mm512_cvtph_ps(load_bytes<__m256i>(p)));
}
inline void store(Half* p, Vec<float> x) {
  const __m256i narrow = _mm512_cvtps_ph(__m512(x), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &narrow, sizeof narrow);
}
#elif defined(__F16C__) && defined(__AVX2__)
inline Vec<float> load(const Half* p) {
  return Vec<float>(_mm256_cvtph_ps(load_bytes<__m128i>(p)));
}
inline void store(Half* p, Vec<float> x) {
  const __m128i narrow = _mm256_cvtps_ph(__m256(x), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &narrow, sizeof narrow);
}
#else
inline Vec<float> load(const Half* p) {
  Vec<float> x;
  for (int i = 0; i < kLanes<float>; i++) x[i] = to_float(p[i]);
  return x;
}
inline void store(Half* p, Vec<float> x) {
  for (int i = 0; i < kLanes<float>; i++) from_float(x[i], p + i);
}
#endif

// ---- the last columns of a row, fewer than a vector
// ----------------------------------------------

#if defined(__AVX512F__)
// Masked: scalars written one by one would stall the vector load that follows them.
inline Vec<float> load_tail(const float* p, int64_t count, float fill) {
  return _mm512_mask_loadu_ps(broadcast(fill), __mmask16((1u << count) - 1), p);
}
inline Vec<double> load_tail(const double* p, int64_t count, double fill) {
  return _mm512_mask_loadu_pd(broadcast(fill), __mmask8((1u << count) - 1), p);
}
inline Vec<float> load_tail(const BFloat16* p, int64_t count, float fill) {
  const __mmask16 mask = __mmask16((1u << count) - 1);
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
  return _mm512_mask_mov_ps(broadcast(fill), mask, __m512(_mm512_slli_epi32(wide, 16)));
}
inline Vec<float> load_tail(const Half* p, int64_t count, float fill) {
  const __mmask16 mask = __mmask16((1u << count) - 1);
  return _mm512_mask_cvtph_ps(broadcast(fill), mask, _mm256_maskz_loadu_epi16(mask, p));
}
inline void store_tail(float* p, Vec<float> x, int64_t count) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), x);
}
inline void store_tail(double* p, Vec<double> x, int64_t count) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << count) - 1), x);
}
inline void store_tail(BFloat16* p, Vec<float> x, int64_t count) {
  _mm256_mask_storeu_epi16(p, __mmask16((1u << count) - 1), __m256i(to_bfloat16(x)));
}
inline void store_tail(Half* p, Vec<float> x, int64_t count) {
  _mm256_mask_storeu_epi16(p, __mmask16((1u << count) - 1),
                           _mm512_cvtps_ph(__m512(x), _MM_FROUND_TO_NEAREST_INT));
}
#else
// The first `count` lanes from p, the others `fill`.
template <class Storage>
inline Vec<Accumulate<Storage>> load_tail(const Storage* p, int64_t count,
                                          Accumulate<Storage> fill) {
  Vec<Accumulate<Storage>> x = broadcast(fill);
  for (int64_t i = 0; i < count; i++) x[i] = to_float(p[i]);
  return x;
}
// The first `count` lanes to p.
template <class Storage>
inline void store_tail(Storage* p, Vec<Accumulate<Storage>> x, int64_t count) {
  for (int64_t i = 0; i < count; i++) from_float(x[i], p + i);
}
#endif

}  // namespace ltk::LTK_ISA
