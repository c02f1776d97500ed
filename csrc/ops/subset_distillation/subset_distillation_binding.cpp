// The op ltkernels::subset_distillation: kd_loss on subsets of the classes, with its gradients.
#include "bindings/tensor.h"
#include "ops/subset_distillation/subset_distillation_cpu.h"
#include "ops/subset_distillation/subset_plan.h"
#ifdef LTK_WITH_CUDA
#include "bindings/cuda.h"
#include "ops/subset_distillation/subset_distillation_cuda.h"
#endif

#include <tuple>
#include <vector>

namespace ltk {
namespace {

using Optional = std::optional<Tensor>;
// loss, the student's gradient, the teachers' one after the other, scales of all of them
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class Acc>
void subset_distillation_cpu(const SubsetDistillationParams<Acc>& p, DType dtype) {
  const SubsetPlanner<Acc> planner(p);
  STD_TORCH_CHECK(planner.valid(), "expected `classes` to be distinct, in 0..", p.columns - 1);
  const SubsetPlan<Acc>& plan = planner.plan();
  for_rows(p.rows, p.offset[p.subsets], [&](int64_t begin, int64_t end) {
    switch (selected_isa()) {
#define LTK_CASE(isa)                                                    \
  case Isa::isa:                                                         \
    isa::subset_distillation_rows<Acc>(                                  \
        p, plan, dtype, begin, end,                                      \
        thread_scratch<Acc>(isa::subset_distillation_scratch(p, plan))); \
    break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
  });
  if (p.loss != nullptr) *p.loss = p.reduction_factor * ordered_sum(p.row_loss, p.rows);
}

Outputs subset_distillation(const Tensor& student_logits, std::vector<Tensor> teachers,
                            std::vector<Tensor> classes, double temperature,
                            const Optional& row_temperature, const Optional& column_temperature,
                            std::vector<double> kl_factor, const Optional& subset_factor,
                            const Optional& row_factor, int64_t reduction, bool student_gradient,
                            bool teacher_gradient) {
  const Tensor student = rows_of(student_logits, "student");
  const DType dtype = dtype_of(student);
  const int64_t n = student.size(0), c = student.size(1);
  const size_t subsets = teachers.size();
  STD_TORCH_CHECK(0 < subsets && subsets <= kMostSubsets && classes.size() == subsets &&
                      kl_factor.size() == subsets,
                  "expected teachers, classes and factors of 1..", kMostSubsets, " subsets");
  // An index is 32 bits wide.
  STD_TORCH_CHECK(c <= int64_t{1} << 30, "expected at most 2^30 columns");
  return dispatch_accumulate(dtype, [&](auto zero) -> Outputs {
    using Acc = decltype(zero);
    constexpr ScalarType acc = scalar_type_of<Acc>();
    SubsetDistillationParams<Acc> p{};
    p.rows = n;
    p.columns = c;
    p.subsets = static_cast<int>(subsets);
    p.student = student.const_data_ptr();
    p.student_stride = student.stride(0);
    for (size_t l = 0; l < subsets; l++) {
      teachers[l] = rows_of(teachers[l], "teacher");
      if (!classes[l].is_contiguous()) classes[l] = torch::stable::contiguous(classes[l]);
      const int64_t s = teachers[l].size(1);
      STD_TORCH_CHECK(teachers[l].size(0) == n && 0 < s && s <= c &&
                          teachers[l].get_device() == student.get_device() &&
                          dtype_of(teachers[l]) == dtype,
                      "student and teacher do not belong together");
      p.teacher[l] = teachers[l].const_data_ptr();
      p.teacher_stride[l] = teachers[l].stride(0);
      p.classes[l] = data_or_null<int64_t>(Optional(classes[l]), s, "classes", student);
      p.offset[l + 1] = p.offset[l] + s;
      p.kl_factor[l] = static_cast<Acc>(kl_factor[l]);
    }
    p.temperature = static_cast<Acc>(temperature);
    p.row_temperature = data_or_null<Acc>(row_temperature, n, "row_temperature", student);
    p.column_temperature = data_or_null<Acc>(column_temperature, c, "column_temperature", student);
    p.subset_factor = data_or_null<Acc>(subset_factor, p.subsets, "subset_factor", student);
    p.row_factor = data_or_null<Acc>(row_factor, n, "row_factor", student);
    p.reduction_factor =
        reduction == static_cast<int64_t>(Reduction::Mean) ? Acc(1) / Acc(n) : Acc(1);

    const ScalarType storage = student.scalar_type();
    const Tensor row_loss = empty({n}, acc, student);
    const Tensor loss = reduction == 0 ? row_loss : empty_scalar(acc, student);
    const Tensor student_grad =
        student_gradient ? empty({n, c}, storage, student) : no_tensor(student);
    const Tensor teacher_grad =
        teacher_gradient ? empty({n * p.offset[p.subsets]}, storage, student) : no_tensor(student);
    const bool scaled = dtype == DType::Float16 && (student_gradient || teacher_gradient);
    const Tensor grad_scale = scaled
                                  ? empty({1 + (teacher_gradient ? p.subsets : 0), n}, acc, student)
                                  : no_tensor(student);
    p.row_loss = static_cast<Acc*>(row_loss.mutable_data_ptr());
    p.loss = reduction == 0 ? nullptr : static_cast<Acc*>(loss.mutable_data_ptr());
    p.student_grad = student_gradient ? student_grad.mutable_data_ptr() : nullptr;
    p.teacher_grad = teacher_gradient ? teacher_grad.mutable_data_ptr() : nullptr;
    p.grad_scale = scaled ? static_cast<Acc*>(grad_scale.mutable_data_ptr()) : nullptr;
#ifdef LTK_WITH_CUDA
    if (student.is_cuda()) {
      const CudaCall call(student);
      const Tensor counter = empty({1}, ScalarType::Int, student);
      call.check("subset_distillation",
                 subset_distillation_cuda<Acc>(p, dtype, call.launch_counting(counter)));
      return {loss, student_grad, teacher_grad, grad_scale};
    }
#endif
    subset_distillation_cpu(p, dtype);
    return {loss, student_grad, teacher_grad, grad_scale};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ltkernels, m) {
  m.def(
      "subset_distillation(Tensor student, Tensor[] teachers, Tensor[] classes, float temperature, "
      "Tensor? row_temperature, Tensor? column_temperature, float[] kl_factor, "
      "Tensor? subset_factor, Tensor? row_factor, int reduction, bool student_gradient, "
      "bool teacher_gradient) "
      "-> (Tensor loss, Tensor student_grad, Tensor teacher_grad, Tensor grad_scale)");
}
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CPU, m) {
  m.impl("subset_distillation", TORCH_BOX(&subset_distillation));
}
#ifdef LTK_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CUDA, m) {
  m.impl("subset_distillation", TORCH_BOX(&subset_distillation));
}
#endif

}  // namespace ltk
