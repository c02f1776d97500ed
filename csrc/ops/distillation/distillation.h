// kd_loss and bkd_loss: one op, the knowledge-distillation term with an optional cross-entropy.
//
//   loss[n] = CE(student[n], target[n]) + kl_factor * row_factor[n] * sum_c q_c (log q_c - log p_c)
//   p = softmax(student[n] / T)
//   q = softmax(teacher[n] / T + log class_weight)
//
// Gradients, with k = kl_factor * row_factor[n] and f = 1/N for the mean, 1 otherwise:
//   d student[n, c] = f * ( k / T_c (p_c - q_c) + sum(y) softmax(student[n])_c - y_c )
//   d teacher[n, c] = f * k / T_c q_c (log q_c - log p_c - KL)
// A logit of -inf is a constant: its gradient is 0. Where q_c = 0 the term is 0. A row whose KL is
// infinite has no teacher gradient. A row without a finite logit is NaN in loss and gradients.
//
// Bytes that must move, with gradient: student and teacher read once, the gradient written once.
#pragma once

#include "common/dtype.h"

namespace ltk {

// Every pointer carries its shape. N rows, C columns. Column strides are 1; row strides count
// elements.
template <class Acc>
struct DistillationParams {
  int64_t rows;     // N
  int64_t columns;  // C

  const void* student;  // [N, C]
  int64_t student_stride;
  const void* teacher;  // [N, C]
  int64_t teacher_stride;

  // At most one of the two vectors is set; `temperature` holds where none is.
  Acc temperature;
  const Acc* row_temperature;     // [N] or null
  const Acc* column_temperature;  // [C] or null
  const Acc* class_weight;        // [C] or null; >= 0

  Acc kl_factor;
  const Acc* row_factor;      // [N], or [1] with stride 0, or null
  int64_t row_factor_stride;  // 1 or 0

  // Cross-entropy: none where both `target` and `soft_target` are null.
  const int64_t* target;    // [N] or null
  const int64_t* target_b;  // [N] or null: CE = lam CE(target) + (1 - lam) CE(target_b)
  Acc lam;
  const Acc* row_lam;      // [N] or null
  const Acc* soft_target;  // [N, C] of Acc whatever the logits are, or null; then target is null
  int64_t soft_target_stride;

  Acc reduction_factor;  // 1/N for the mean, else 1; the gradients carry it

  Acc* row_loss;       // [N], not multiplied by reduction_factor
  Acc* loss;           // [1] = reduction_factor * sum(row_loss), or null for reduction "none"
  void* student_grad;  // [N, C] contiguous, or null
  void* teacher_grad;  // [N, C] contiguous, or null
  // float16 cannot hold gradients of 1/N * 1e-6. Its gradients are stored divided by a power of
  // two per row, which is written here; null for the other types, whose gradients are stored as is.
  Acc* grad_scale;  // [N] or null
};

}  // namespace ltk
