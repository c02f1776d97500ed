// ride_loss, diversity_loss and collaborative_kd_loss: one op on the logits of K experts.
//
//   loss[n] = ce_factor * w_y * C[n]  +  kl_factor * row_factor[n] * D[n]
//
// C, the cross-entropies, with y = target[n] and a(z) = z - margin_y e_y:
//   Each     sum_k ( lse(a(z^k)) - a(z^k)_y )          OfMean   lse(a(m)) - a(m)_y,  m = mean_k z^k
// D, the divergence, with p^k = softmax(z^k / T):
//   Mean     sum_k KL(q || p^k),  q = softmax(m / T), a constant
//   Pairwise sum_{i, j} u_i v_j KL(p^i || p^j) = sum_i u_i sum_c p^i_c (V log p^i_c - S_c),
//            V = sum_j v_j,  S_c = sum_j v_j log p^j_c:  O(K) a class.
//            One of u, v is `sample_weight`, the other is 1.
//
// Gradients, with k = kl_factor * row_factor[n] * kl_reduction and e = ce_factor * ce_reduction
// w_y:
//   d z^k_c =  e ( softmax(a(z^k))_c - [c = y] )       (OfMean: 1/K of it, of m)
//            + k / T_c ( p^k_c - q_c )                                            (Mean)
//            + k / T_c v_k ( U p^k_c - sum_i u_i p^i_c )          (Pairwise, as second
//            distribution)
//            + k / T_c u_k p^k_c ( h_c - sum_d p^k_d h_d )        (Pairwise, as first)
//              with U = sum_i u_i,  h_c = V log p^k_c - S_c
//
// -inf: a logit of -inf is a constant with gradient 0. Mean: it makes m_c -inf, q_c = 0, whose term
// is 0 for every expert. Pairwise: where p^i_c > 0 and p^j_c = 0 the KL is +inf; in a row with such
// a class (of any two experts, whatever the weights) there is no gradient through the first
// distributions. A weight of 0 takes its divergence out, even an infinite one. A row in which one
// expert, or with Mean or OfMean the mean, has no finite logit is NaN in the loss and in every
// expert's gradient.
//
// Bytes that must move, with gradient: K N C logits read once, K N C gradients written once.
#pragma once

#include "common/dtype.h"

namespace ltk {

constexpr int kMostExperts = 16;

enum class ExpertCrossEntropy : int { None, Each, OfMean };
enum class ExpertDivergence : int { None, Mean, Pairwise };

// Every pointer carries its shape: N rows, C columns, K experts. Column strides are 1; row strides
// count elements.
template <class Acc>
struct ExpertsParams {
  int64_t rows;     // N
  int64_t columns;  // C
  int experts;      // K <= kMostExperts

  const void* logits[kMostExperts];  // K of [N, C]
  int64_t logits_stride[kMostExperts];

  ExpertCrossEntropy cross_entropy;
  const int64_t* target;    // [N], or null without cross-entropy
  const Acc* margin;        // [C] or null
  const Acc* class_weight;  // [C] or null: w, >= 0
  Acc ce_factor;
  // Times this, loss and gradient are reduced: 1 or 1/N. Negative: 1 / sum_n w_{target[n]}, which
  // the kernel has to find out.
  Acc ce_reduction;

  ExpertDivergence divergence;
  // At most one of the two vectors is set; `temperature` holds where none is.
  Acc temperature;
  const Acc* row_temperature;     // [N] or null
  const Acc* column_temperature;  // [C] or null
  Acc kl_factor;
  const Acc* row_factor;      // [N], or [1] with stride 0, or null
  int64_t row_factor_stride;  // 1 or 0
  Acc kl_reduction;           // 1 or 1/N
  // Pairwise:
  const Acc* sample_weight;  // [K, N] or null: ones
  bool weight_of_second;     // it is v, else u
  bool first_gradient;       // whether the gradient goes through the first distribution, p^i
  bool second_gradient;      // and through the second, p^j

  Acc* row_loss;  // [N], with both reductions in it
  Acc* loss;      // [1] = sum(row_loss), or null for reduction "none"
  void* grad;     // [K, N, C] contiguous, or null
  // float16 gradients are stored divided by a power of two per row and expert; null for the others.
  Acc* grad_scale;  // [K, N] or null
};

}  // namespace ltk
