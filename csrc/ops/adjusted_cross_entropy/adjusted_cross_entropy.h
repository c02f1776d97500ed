// Cross-entropy of adjusted logits: the one kernel under LDAM, balanced softmax, logit adjustment,
// class-balanced and focal loss.
//
//   z[n, c]  = scale * (logits[n, c] - margin[c] [c == y]) + bias[c]
//   l[n]     = (1 - e) w_y (lse(z) - z_y) + e / C sum_c w_c (lse(z) - z_c)      e: label smoothing
//   loss[n]  = l (1 - exp(-l))^gamma
//   d logits[n, c] = f * loss'(l) * scale * ( ((1 - e) w_y + e / C sum(w)) softmax(z)_c
//                                             - (1 - e) w_y [c == y] - e / C w_c )
//   loss'(l) = (1 - u)^gamma + gamma l u (1 - u)^(gamma - 1),  u = exp(-l)
//   f = 1 / sum_n w_{y_n} for the mean (rows with target == ignore_index count for nothing), else 1
// A logit that is -inf, or that a bias of -inf makes so, is a constant: its gradient is 0. A row
// without a finite logit is NaN.
//
// Bytes that must move, with gradient: the logits read once, the gradient written once.
#pragma once

#include "common/dtype.h"

namespace ltk {

template <class Acc>
struct AdjustedCrossEntropyParams {
  int64_t rows;     // N
  int64_t columns;  // C

  const void* logits;  // [N, C]
  int64_t logits_stride;
  const int64_t* target;  // [N]
  Acc scale;
  const Acc* margin;        // [C] or null
  const Acc* bias;          // [C] or null
  const Acc* class_weight;  // [C] or null
  Acc label_smoothing;
  Acc focal_gamma;
  int64_t ignore_index;
  Reduction reduction;

  Acc* row_loss;  // [N], not divided by the sum of the weights
  Acc* loss;      // [1] or null for reduction "none"
  void* grad;     // [N, C] contiguous, or null
  // The stored gradient of row n times grad_scale[n] is the gradient. Null: stored as it is.
  // float16 needs it for range; CUDA needs it for the mean, whose divisor is known last.
  Acc* grad_scale;  // [N] or null
};

}  // namespace ltk
