// The CPU kernels of topz_gate.h, once per instruction set.
#pragma once

#include "common/cpu/isa.h"
#include "ops/topz_gate/topz_gate.h"

namespace ltk {

// Hidden units are computed whole vectors at a time: tables of them have this many columns.
constexpr int64_t padded_units(int64_t hidden) { return (hidden + 15) / 16 * 16; }

// What a block of columns of w1 costs is worth a task of its own.
constexpr int64_t kGateColumns = 64;

// topz_gate_rows: gates, and what is kept, of rows [begin, end). `w1_transposed` is [D, padded h],
// zero where padded. `scratch` holds topz_gate_scratch(p) values, aligned to 64 bytes.
//
// topz_gate_gradient_rows: d_logits and d_feature of rows [begin, end); `scratch` holds D + h.
// topz_gate_gradient_columns: columns [begin, end) of d_w1, `scratch` holds
// h * kGateColumns + kGateTile * h values; `slope` is s r of topz_gate.h, [N, h].
// topz_gate_gradient_sums: the other weights' gradients, and `slope`.
#define LTK_DECLARE(isa)                                                                         \
  namespace isa {                                                                                \
  template <class Acc>                                                                           \
  int64_t topz_gate_scratch(const TopzGateParams<Acc>& p);                                       \
  template <class Acc>                                                                           \
  void topz_gate_rows(const TopzGateParams<Acc>& p, const Acc* w1_transposed, DType dtype,       \
                      int64_t begin, int64_t end, Acc* scratch);                                 \
  template <class Acc>                                                                           \
  void topz_gate_gradient_rows(const TopzGateGradientParams<Acc>& p, DType dtype, int64_t begin, \
                               int64_t end, Acc* scratch);                                       \
  template <class Acc>                                                                           \
  void topz_gate_gradient_sums(const TopzGateGradientParams<Acc>& p, Acc* slope);                \
  template <class Acc>                                                                           \
  void topz_gate_gradient_columns(const TopzGateGradientParams<Acc>& p, const Acc* slope,        \
                                  int64_t begin, int64_t end);                                   \
  }
LTK_FOR_EACH_ISA(LTK_DECLARE)
#undef LTK_DECLARE

}  // namespace ltk
