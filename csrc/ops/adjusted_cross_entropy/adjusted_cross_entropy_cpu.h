// The CPU kernel of adjusted_cross_entropy.h, once per instruction set.
#pragma once

#include "common/cpu/isa.h"
#include "ops/adjusted_cross_entropy/adjusted_cross_entropy.h"

namespace ltk {

// Writes row_loss, grad_scale and the gradients of rows [begin, end); `loss` is the caller's.
// `factor` multiplies the gradients: 1 / sum of the rows' weights for the mean, else 1.
// `scratch` holds adjusted_cross_entropy_scratch(p) values, aligned to 64 bytes.
#define LTK_DECLARE(isa)                                                                   \
  namespace isa {                                                                          \
  template <class Acc>                                                                     \
  int64_t adjusted_cross_entropy_scratch(const AdjustedCrossEntropyParams<Acc>& p);        \
  template <class Acc>                                                                     \
  void adjusted_cross_entropy_rows(const AdjustedCrossEntropyParams<Acc>& p, Acc factor,   \
                                   DType dtype, int64_t begin, int64_t end, Acc* scratch); \
  }
LTK_FOR_EACH_ISA(LTK_DECLARE)
#undef LTK_DECLARE

}  // namespace ltk
