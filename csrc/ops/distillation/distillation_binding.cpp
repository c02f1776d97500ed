// The op ltkernels::distillation: kd_loss and bkd_loss with their gradients.
#include "bindings/tensor.h"
#include "ops/distillation/distillation_cpu.h"
#ifdef LTK_WITH_CUDA
#include "bindings/cuda.h"
#include "ops/distillation/distillation_cuda.h"
#endif

#include <cmath>
#include <tuple>
#include <vector>

namespace ltk {
namespace {

using Optional = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // loss, two gradients, their scale

template <class Acc>
void distillation_cpu(const DistillationParams<Acc>& p, DType dtype) {
  DistillationTables<Acc> tables{nullptr, nullptr, 0};
  std::vector<Acc> inverse_temperature, log_class_weight;
  if (p.column_temperature != nullptr) {
    inverse_temperature.resize(p.columns);
    for (int64_t c = 0; c < p.columns; c++) {
      inverse_temperature[c] = 1 / p.column_temperature[c];
      tables.largest_inverse_temperature =
          std::max(tables.largest_inverse_temperature, inverse_temperature[c]);
    }
    tables.inverse_temperature = inverse_temperature.data();
  }
  if (p.class_weight != nullptr) {
    log_class_weight.resize(p.columns);
    for (int64_t c = 0; c < p.columns; c++) log_class_weight[c] = std::log(p.class_weight[c]);
    tables.log_class_weight = log_class_weight.data();
  }
  for_rows(p.rows, p.columns, [&](int64_t begin, int64_t end) {
    switch (selected_isa()) {
#define LTK_CASE(isa)                                                               \
  case Isa::isa:                                                                    \
    isa::distillation_rows<Acc>(p, tables, dtype, begin, end,                       \
                                thread_scratch<Acc>(isa::distillation_scratch(p))); \
    break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
  });
  if (p.loss != nullptr) *p.loss = p.reduction_factor * ordered_sum(p.row_loss, p.rows);
}

Outputs distillation(const Tensor& student_logits, const Tensor& teacher_logits, double temperature,
                     const Optional& row_temperature, const Optional& column_temperature,
                     const Optional& class_weight, double kl_factor, const Optional& row_factor,
                     const Optional& target, const Optional& target_b, double lam,
                     const Optional& row_lam, const Optional& soft_target, int64_t reduction,
                     bool student_gradient, bool teacher_gradient) {
  const Tensor student = rows_of(student_logits, "student");
  const Tensor teacher = rows_of(teacher_logits, "teacher");
  const DType dtype = dtype_of(student);
  const int64_t n = student.size(0), c = student.size(1);
  STD_TORCH_CHECK(teacher.size(0) == n && teacher.get_device() == student.get_device() &&
                      dtype_of(teacher) == dtype && teacher.size(1) == c,
                  "student and teacher do not belong together");
  return dispatch_accumulate(dtype, [&](auto zero) -> Outputs {
    using Acc = decltype(zero);
    constexpr ScalarType acc = scalar_type_of<Acc>();
    const Tensor loss = reduction == 0 ? empty({n}, acc, student) : empty_scalar(acc, student);
    const RowLoss<Acc> row_loss(reduction == 0, loss, n);
    const Tensor student_grad =
        student_gradient ? empty({n, c}, student.scalar_type(), student) : no_tensor(student);
    const Tensor teacher_grad =
        teacher_gradient ? empty({n, c}, student.scalar_type(), student) : no_tensor(student);
    const bool scaled = dtype == DType::Float16 && (student_gradient || teacher_gradient);
    const Tensor grad_scale = scaled ? empty({n}, acc, student) : no_tensor(student);

    DistillationParams<Acc> p{};
    p.rows = n;
    p.columns = c;
    p.student = student.const_data_ptr();
    p.student_stride = student.stride(0);
    p.teacher = teacher.const_data_ptr();
    p.teacher_stride = teacher.stride(0);
    p.temperature = static_cast<Acc>(temperature);
    p.row_temperature = data_or_null<Acc>(row_temperature, n, "row_temperature", student);
    p.column_temperature = data_or_null<Acc>(column_temperature, c, "column_temperature", student);
    p.class_weight = data_or_null<Acc>(class_weight, c, "class_weight", student);
    p.kl_factor = static_cast<Acc>(kl_factor);
    if (row_factor.has_value()) {
      const int64_t size = row_factor->numel();
      STD_TORCH_CHECK(size == n || size == 1, "expected `row_factor` to have N or 1 elements");
      p.row_factor = data_or_null<Acc>(row_factor, size, "row_factor", student);
      p.row_factor_stride = size == n ? 1 : 0;
    }
    p.target = data_or_null<int64_t>(target, n, "target", student);
    p.target_b = data_or_null<int64_t>(target_b, n, "target_b", student);
    p.lam = static_cast<Acc>(lam);
    p.row_lam = data_or_null<Acc>(row_lam, n, "row_lam", student);
    p.soft_target = data_or_null<Acc>(soft_target, n * c, "soft_target", student);
    p.soft_target_stride = c;
    p.reduction_factor =
        reduction == static_cast<int64_t>(Reduction::Mean) ? Acc(1) / Acc(n) : Acc(1);
    p.row_loss = row_loss.data();
    p.loss = reduction == 0 ? nullptr : static_cast<Acc*>(loss.mutable_data_ptr());
    p.student_grad = student_gradient ? student_grad.mutable_data_ptr() : nullptr;
    p.teacher_grad = teacher_gradient ? teacher_grad.mutable_data_ptr() : nullptr;
    p.grad_scale = scaled ? static_cast<Acc*>(grad_scale.mutable_data_ptr()) : nullptr;
#ifdef LTK_WITH_CUDA
    if (student.is_cuda()) {
      const CudaCall call(student);
      const Tensor counter = empty({1}, ScalarType::Int, student);
      call.check("distillation", distillation_cuda<Acc>(p, dtype, call.launch_counting(counter)));
      return {loss, student_grad, teacher_grad, grad_scale};
    }
#endif
    check_indices(p.target, n, c, "target");
    check_indices(p.target_b, n, c, "target_b");
    check_non_negative(p.class_weight, c, "class_weight");
    distillation_cpu(p, dtype);
    return {loss, student_grad, teacher_grad, grad_scale};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ltkernels, m) {
  m.def(
      "distillation(Tensor student, Tensor teacher, float temperature, "
      "Tensor? row_temperature, Tensor? column_temperature, Tensor? class_weight, float kl_factor, "
      "Tensor? row_factor, Tensor? target, Tensor? target_b, float lam, Tensor? row_lam, "
      "Tensor? soft_target, int reduction, bool student_gradient, bool teacher_gradient) "
      "-> (Tensor loss, Tensor student_grad, Tensor teacher_grad, Tensor grad_scale)");
}
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CPU, m) { m.impl("distillation", TORCH_BOX(&distillation)); }
#ifdef LTK_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CUDA, m) { m.impl("distillation", TORCH_BOX(&distillation)); }
#endif

}  // namespace ltk
