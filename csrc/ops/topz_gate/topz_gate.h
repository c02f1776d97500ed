// RIDE's router: whether a sample needs the next expert.
//
//   t[n, k]  = the k-th largest of logits[n, :], -inf counted as 0 (NaN in a row of nothing but
//   -inf) r[n]     = 1 / max(||v[n]||, 1e-12)                                             v:
//   feature u[n, j]  = relu(b1[j] + r[n] sum_d w1[j, d] v[n, d])                            the
//   hidden units gate[n]  = b2 + sum_k w2[k] t[n, k] + sum_j w2[z + j] u[n, j]
//
// Descending, NaN first; of equal logits the lowest column comes first.
//
// Backward, with g = upstream and s[n, j] = g[n] w2[z + j] [not u[n, j] <= 0]:
//   d b2 = sum_n g      d w2[k] = sum_n g t[n, k]      d w2[z + j] = sum_n g u[n, j]
//   d b1[j] = sum_n s[n, j]      d w1[j, d] = sum_n s[n, j] r[n] v[n, d]
//   d logits[n, index[n, k]] = g w2[k] where that logit is not -inf, 0 elsewhere
//   d v[n, d] = r ( a_d - x_d sum_e x_e a_e ),  a_d = sum_j s[n, j] w1[j, d],  x = r v;
//               r a_d where the norm is below 1e-12
//
// Bytes that must move: forward, the logits and features read once; backward, the features read and
// what is asked for written once. Sums over n are taken in a fixed order.
#pragma once

#include "common/dtype.h"

namespace ltk {

template <class Acc>
struct TopzGateParams {
  int64_t rows;     // N
  int64_t columns;  // C
  int64_t width;    // D
  int64_t hidden;   // h
  int64_t z;        // 1..C

  const void* logits;  // [N, C]
  int64_t logits_stride;
  const void* feature;  // [N, D]
  int64_t feature_stride;
  DType feature_dtype;
  const Acc* w1;  // [h, D]
  const Acc* b1;  // [h]
  const Acc* w2;  // [z + h]
  const Acc* b2;  // [1]

  Acc* gate;  // [N]
  // What backward needs, or null.
  Acc* top;           // [N, z]: t
  int32_t* index;     // [N, z], -1 for a logit of -inf
  Acc* units;         // [N, h]: u
  Acc* inverse_norm;  // [N]: r, or -r where the norm is below 1e-12
};

template <class Acc>
struct TopzGateGradientParams {
  int64_t rows, columns, width, hidden, z;

  const Acc* upstream;  // [N]
  const void* feature;  // [N, D]
  int64_t feature_stride;
  DType feature_dtype;
  const Acc* w1;            // [h, D]
  const Acc* w2;            // [z + h]
  const Acc* top;           // [N, z]
  const int32_t* index;     // [N, z]
  const Acc* units;         // [N, h]
  const Acc* inverse_norm;  // [N]

  // Each may be null; those of the weights all or none.
  void* d_logits;   // [N, C] contiguous
  void* d_feature;  // [N, D] contiguous
  Acc* d_w1;        // [h, D]
  Acc* d_b1;        // [h]
  Acc* d_w2;        // [z + h]
  Acc* d_b2;        // [1]
};

constexpr double kLeastNorm = 1e-12;

}  // namespace ltk
