// The gate of a few rows on the CPU: what topz_gate and route_experts share.
#pragma once

#include "common/cpu/simd.h"
#include "ops/topz_gate/topz_gate_cpu.h"

namespace ltk::LTK_ISA {

constexpr int kGateRows = 4;  // rows that share a look at w1

template <class Acc>
inline Acc dot(const Acc* a, const Acc* b, int64_t n) {
  constexpr int L = kLanes<Acc>;
  Vec<Acc> sum{}, sum2{};
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L) {
    sum += load(a + i) * load(b + i);
    sum2 += load(a + i + L) * load(b + i + L);
  }
  Acc rest = 0;
  for (; i < n; i++) rest += a[i] * b[i];
  return horizontal_sum<Acc>(sum + sum2) + rest;
}

template <class Storage, class Acc>
inline void widen(const Storage* x, int64_t n, Acc* out) {
  constexpr int L = kLanes<Acc>;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(out + i, load(x + i));
  for (; i < n; i++) out[i] = to_float(x[i]);
}

// Row n of the features in the arithmetic type: where it lies, or in `buffer`.
template <class Acc>
inline const Acc* feature_row(const void* feature, int64_t stride, DType dtype, int64_t n,
                              int64_t width, Acc* buffer) {
  if constexpr (sizeof(Acc) == sizeof(float)) {
    if (dtype == DType::Float16)
      widen(static_cast<const Half*>(feature) + n * stride, width, buffer);
    else if (dtype == DType::BFloat16)
      widen(static_cast<const BFloat16*>(feature) + n * stride, width, buffer);
    else
      return static_cast<const Acc*>(feature) + n * stride;
    return buffer;
  }
  return static_cast<const Acc*>(feature) + n * stride;
}

// 1 / ||v||, or minus the inverse of the least norm where that is larger.
template <class Acc>
inline Acc inverse_norm_of(const Acc* v, int64_t width) {
  const Acc norm = std::sqrt(dot(v, v, width));
  return norm < Acc(kLeastNorm) ? -1 / Acc(kLeastNorm) : 1 / norm;
}

// Vectors of hidden units j .. j + Vectors L, of kGateRows rows.
template <int Vectors, class Acc>
inline void unit_block(const Acc* const* v, int64_t width, const Acc* w1_transposed, int64_t padded,
                       int64_t j, const Acc* factor, Acc* out) {
  constexpr int L = kLanes<Acc>;
  Vec<Acc> sum[kGateRows][Vectors] = {};
  for (int64_t d = 0; d < width; d++) {
    Vec<Acc> w[Vectors];
    for (int i = 0; i < Vectors; i++) w[i] = load(w1_transposed + d * padded + j + i * L);
    for (int r = 0; r < kGateRows; r++)
      for (int i = 0; i < Vectors; i++) sum[r][i] += w[i] * v[r][d];
  }
  for (int r = 0; r < kGateRows; r++)
    for (int i = 0; i < Vectors; i++) store(out + r * padded + j + i * L, sum[r][i] * factor[r]);
}

// out[r, j] = relu(b1[j] + |inverse_norm[r]| sum_d w1[j, d] v[r][d]), rows of `out` padded.
template <class Acc>
inline void hidden_units(const Acc* const* v, int64_t width, const Acc* w1_transposed,
                         int64_t hidden, const Acc* b1, const Acc* inverse_norm, Acc* out) {
  constexpr int L = kLanes<Acc>;
  const int64_t padded = padded_units(hidden);
  Acc factor[kGateRows];
  for (int r = 0; r < kGateRows; r++) factor[r] = std::abs(inverse_norm[r]);
  int64_t j = 0;
  for (; j + 2 * L <= padded; j += 2 * L)
    unit_block<2>(v, width, w1_transposed, padded, j, factor, out);
  if (j < padded) unit_block<1>(v, width, w1_transposed, padded, j, factor, out);
  for (int r = 0; r < kGateRows; r++)
    for (j = 0; j < hidden; j++) {
      const Acc x = out[r * padded + j] + b1[j];
      out[r * padded + j] = x <= 0 ? Acc(0) : x;  // NaN stays
    }
}

// The largest logits as the gate takes them: -inf as 0, as NaN in a row of nothing but -inf.
template <class Acc>
inline void without_infinities(Acc* top, int32_t* index, int64_t z) {
  const Acc nothing = top[0] == -kInf<Acc> ? static_cast<Acc>(__builtin_nan("")) : Acc(0);
  for (int64_t k = z; k-- > 0 && top[k] == -kInf<Acc>;) {
    top[k] = nothing;
    index[k] = -1;
  }
}

}  // namespace ltk::LTK_ISA
