// The CPU kernel of knowledge_balance_weight.h, once per instruction set.
#pragma once

#include "common/cpu/isa.h"
#include "ops/knowledge_balance_weight/knowledge_balance_weight.h"

namespace ltk {

// Writes the weights of rows [begin, end). `scratch` holds knowledge_balance_weight_scratch(p)
// values, aligned to 64 bytes.
#define LTK_DECLARE(isa)                                                                      \
  namespace isa {                                                                             \
  template <class Acc>                                                                        \
  int64_t knowledge_balance_weight_scratch(const KnowledgeBalanceWeightParams<Acc>& p);       \
  template <class Acc>                                                                        \
  void knowledge_balance_weight_rows(const KnowledgeBalanceWeightParams<Acc>& p, DType dtype, \
                                     int64_t begin, int64_t end, Acc* scratch);               \
  }
LTK_FOR_EACH_ISA(LTK_DECLARE)
#undef LTK_DECLARE

}  // namespace ltk
