// The CPU kernel of experts.h, once per instruction set.
#pragma once

#include "common/cpu/isa.h"
#include "ops/experts/experts.h"

namespace ltk {

// Per-class values that all rows share, computed once a call.
template <class Acc>
struct ExpertsTables {
  // [C] 1 / column_temperature, then zeros up to a multiple of 16; or null.
  const Acc* inverse_temperature;
  Acc largest_inverse_temperature;
};

// Writes row_loss, grad_scale and the gradients of rows [begin, end); `loss` is the caller's.
// `ce_reduction` must not be negative. `scratch` holds experts_scratch(p) values, aligned to 64
// bytes.
#define LTK_DECLARE(isa)                                                                   \
  namespace isa {                                                                          \
  template <class Acc>                                                                     \
  int64_t experts_scratch(const ExpertsParams<Acc>& p);                                    \
  template <class Acc>                                                                     \
  void experts_rows(const ExpertsParams<Acc>& p, const ExpertsTables<Acc>& t, DType dtype, \
                    int64_t begin, int64_t end, Acc* scratch);                             \
  }
LTK_FOR_EACH_ISA(LTK_DECLARE)
#undef LTK_DECLARE

}  // namespace ltk
