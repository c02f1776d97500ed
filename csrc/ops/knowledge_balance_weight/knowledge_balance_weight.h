// How much an expert still has to learn of a sample: the cross-entropies of its two heads, each of
// logits brought to unit deviation.
//
//   sigma    = sqrt(max(sum_c (z_c - mean)^2 / max(C' - 1, 1), smallest_variance))
//   CE       = lse(z / sigma) - z_y / sigma
//   weight   = CE_cls / max(CE_ref, eps)
// with sums over the C' classes whose logit is not -inf. A row without a finite logit is NaN.
//
// Bytes that must move: the logits of both heads read once.
#pragma once

#include "common/dtype.h"

namespace ltk {

template <class Acc>
struct KnowledgeBalanceWeightParams {
  int64_t rows;     // N
  int64_t columns;  // C

  const void* ref_logits;  // [N, C]
  int64_t ref_stride;
  const void* cls_logits;  // [N, C]
  int64_t cls_stride;
  const int64_t* target;  // [N]
  Acc eps;                // least divisor
  Acc smallest_variance;  // eps^2

  Acc* weight;  // [N]
};

}  // namespace ltk
