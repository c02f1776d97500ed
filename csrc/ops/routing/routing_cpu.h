// The CPU kernels of routing.h, once per instruction set.
#pragma once

#include "common/cpu/isa.h"
#include "ops/routing/routing.h"

namespace ltk {

// Elements [begin, end) of routing_loss (`loss` is the caller's), rows [begin, end) of
// routing_target. `dtype` is that of the gates, of the logits.
#define LTK_DECLARE(isa)                                                                           \
  namespace isa {                                                                                  \
  template <class Acc>                                                                             \
  void routing_loss_elements(const RoutingLossParams<Acc>& p, DType dtype, int64_t begin,          \
                             int64_t end);                                                         \
  void routing_target_rows(const RoutingTargetParams& p, DType dtype, int64_t begin, int64_t end); \
  }
LTK_FOR_EACH_ISA(LTK_DECLARE)
#undef LTK_DECLARE

}  // namespace ltk
