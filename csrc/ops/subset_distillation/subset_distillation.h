// kd_loss on subsets of the classes: the distillations of several teachers, each of a subset of the
// student's columns, in one visit of the student's row.
//
//   loss[n] = sum_l k_l[n] KL_l[n],   k_l[n] = kl_factor_l * subset_factor_l * row_factor[n]
//   KL_l = sum_{c in S_l} q_c (log q_c - log p_c)
//   p = softmax(student[n, S_l] / T),  q = softmax(teacher_l[n] / T)
//
// Gradients, with f = 1/N for the mean, 1 otherwise:
//   d student[n, c]   = f * sum_{l: c in S_l} k_l / T_c (p_c - q_c),  0 outside of all subsets
//   d teacher_l[n, c] = f * k_l / T_c q_c (log q_c - log p_c - KL_l)
// A logit of -inf is a constant: its gradient is 0. Where q_c = 0 the term is 0. A row whose KL_l
// is infinite has no gradient to teacher l. A row whose student or teacher has no finite logit in
// S_l is NaN in the loss and in the gradients of S_l. Subsets may overlap; their gradients are
// added in the order of the subsets, before they are rounded.
//
// Bytes that must move, with gradient: the student's columns in a subset and the teachers read
// once, the gradient written once.
#pragma once

#include "common/dtype.h"

namespace ltk {

constexpr int kMostSubsets = 16;

// Every pointer carries its shape. N rows, C student columns, L subsets of S_l columns. Column
// strides are 1; row strides count elements.
template <class Acc>
struct SubsetDistillationParams {
  int64_t rows;     // N
  int64_t columns;  // C
  int subsets;      // L <= kMostSubsets

  const void* student;  // [N, C]
  int64_t student_stride;
  const void* teacher[kMostSubsets];  // L of [N, S_l]
  int64_t teacher_stride[kMostSubsets];
  const int64_t* classes[kMostSubsets];  // L of [S_l], distinct columns of the student
  int64_t offset[kMostSubsets + 1];      // S_l = offset[l + 1] - offset[l]

  // At most one of the two vectors is set; `temperature` holds where none is.
  Acc temperature;
  const Acc* row_temperature;     // [N] or null
  const Acc* column_temperature;  // [C] or null

  Acc kl_factor[kMostSubsets];
  const Acc* subset_factor;  // [L] or null
  const Acc* row_factor;     // [N] or null

  Acc reduction_factor;  // 1/N for the mean, else 1; the gradients carry it

  Acc* row_loss;       // [N], not multiplied by reduction_factor
  Acc* loss;           // [1] = reduction_factor * sum(row_loss), or null for reduction "none"
  void* student_grad;  // [N, C] contiguous, or null
  void* teacher_grad;  // L of [N, S_l] contiguous, l from N * offset[l] on; or null
  // float16 gradients are stored divided by a power of two per row, the student's and each
  // teacher's own, which are written here; null for the other types.
  Acc* grad_scale;  // [1 + L, N], without teacher_grad [1, N]; or null
};

}  // namespace ltk
