// The CPU kernel of subset_distillation.h, once per instruction set.
#pragma once

#include "common/cpu/isa.h"
#include "ops/subset_distillation/subset_distillation.h"

namespace ltk {

// Columns of one subset that a row is worked on in: neighbours, or scattered.
struct SubsetPiece {
  int64_t at, count;  // positions [at, at + count) of the subset
  int64_t first;      // the student's column of the first where they are neighbours, else -1
  int64_t before;     // positions of all pieces before this one
};

struct ColumnRange {
  int64_t begin, end;
};

// How the rows of a call are visited, found out once from its classes (subset_plan.h).
template <class Acc>
struct SubsetPlan {
  const int32_t* classes;      // [S] of all subsets, S = p.offset[L]
  const SubsetPiece* pieces;   // of all subsets, in order
  const int64_t* first_piece;  // [L + 1]
  int64_t largest_subset;      // S_l
  int64_t most_pieces;         // of a subset
  bool overlapping;            // a column lies in several subsets
  const ColumnRange* outside;  // what to fill with zeros: at least the columns of no subset
  int64_t outside_count;
  const Acc* inverse_temperature;   // [S] 1 / column_temperature, or null
  Acc largest_inverse_temperature;  // of those
};

// Writes row_loss, grad_scale and the gradients of rows [begin, end); `loss` is the caller's.
// `scratch` holds subset_distillation_scratch(p, plan) values, aligned to 64 bytes.
#define LTK_DECLARE(isa)                                                                 \
  namespace isa {                                                                        \
  template <class Acc>                                                                   \
  int64_t subset_distillation_scratch(const SubsetDistillationParams<Acc>& p,            \
                                      const SubsetPlan<Acc>& plan);                      \
  template <class Acc>                                                                   \
  void subset_distillation_rows(const SubsetDistillationParams<Acc>& p,                  \
                                const SubsetPlan<Acc>& plan, DType dtype, int64_t begin, \
                                int64_t end, Acc* scratch);                              \
  }
LTK_FOR_EACH_ISA(LTK_DECLARE)
#undef LTK_DECLARE

}  // namespace ltk
