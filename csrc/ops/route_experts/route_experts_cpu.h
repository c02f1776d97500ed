// The CPU kernel of route_experts.h, once per instruction set.
#pragma once

#include "common/cpu/isa.h"
#include "ops/route_experts/route_experts.h"

namespace ltk {

// Rows [begin, end). `w1_transposed` is [K - 1, D, padded h] (topz_gate_cpu.h), `scratch` holds
// route_experts_scratch(p) values, aligned to 64 bytes.
#define LTK_DECLARE(isa)                                                                           \
  namespace isa {                                                                                  \
  template <class Acc>                                                                             \
  int64_t route_experts_scratch(const RouteExpertsParams<Acc>& p);                                 \
  template <class Acc>                                                                             \
  void route_experts_rows(const RouteExpertsParams<Acc>& p, const Acc* w1_transposed, DType dtype, \
                          int64_t begin, int64_t end, Acc* scratch);                               \
  }
LTK_FOR_EACH_ISA(LTK_DECLARE)
#undef LTK_DECLARE

}  // namespace ltk
