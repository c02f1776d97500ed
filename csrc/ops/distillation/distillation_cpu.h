// The CPU kernel of distillation.h, once per instruction set.
#pragma once

#include "common/cpu/isa.h"
#include "ops/distillation/distillation.h"

namespace ltk {

// Per-class values that all rows share, computed once a call.
template <class Acc>
struct DistillationTables {
  const Acc* inverse_temperature;  // [C] 1 / column_temperature, or null
  const Acc* log_class_weight;     // [C] or null
  Acc largest_inverse_temperature;
};

// Writes row_loss, grad_scale and the gradients of rows [begin, end); `loss` is the caller's.
// `scratch` holds distillation_scratch(p) values, aligned to 64 bytes.
#define LTK_DECLARE(isa)                                                                     \
  namespace isa {                                                                            \
  template <class Acc>                                                                       \
  int64_t distillation_scratch(const DistillationParams<Acc>& p);                            \
  template <class Acc>                                                                       \
  void distillation_rows(const DistillationParams<Acc>& p, const DistillationTables<Acc>& t, \
                         DType dtype, int64_t begin, int64_t end, Acc* scratch);             \
  }
LTK_FOR_EACH_ISA(LTK_DECLARE)
#undef LTK_DECLARE

}  // namespace ltk
