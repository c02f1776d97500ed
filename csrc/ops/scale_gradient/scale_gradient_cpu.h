// The CPU kernel of scale_gradient.h, once per instruction set.
#pragma once

#include "common/cpu/isa.h"
#include "ops/scale_gradient/scale_gradient.h"

namespace ltk {

#define LTK_DECLARE(isa)                                                                  \
  namespace isa {                                                                         \
  template <class Acc>                                                                    \
  void scale_gradient_rows(const ScaleGradientParams<Acc>& p, DType dtype, int64_t begin, \
                           int64_t end);                                                  \
  }
LTK_FOR_EACH_ISA(LTK_DECLARE)
#undef LTK_DECLARE

}  // namespace ltk
