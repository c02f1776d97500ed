// The op ltkernels::adjusted_cross_entropy with its gradient.
#include "bindings/tensor.h"
#include "ops/adjusted_cross_entropy/adjusted_cross_entropy_cpu.h"
#ifdef LTK_WITH_CUDA
#include "bindings/cuda.h"
#include "ops/adjusted_cross_entropy/adjusted_cross_entropy_cuda.h"
#endif

#include <tuple>

namespace ltk {
namespace {

using Optional = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor, Tensor>;  // loss, gradient, its scale

// The mean's divisor: the weights of the rows that count.
template <class Acc>
Acc sum_of_row_weights(const AdjustedCrossEntropyParams<Acc>& p) {
  double sum = 0;
  for (int64_t n = 0; n < p.rows; n++)
    if (p.target[n] != p.ignore_index)
      sum += p.class_weight ? double(p.class_weight[p.target[n]]) : 1.0;
  return static_cast<Acc>(sum);
}

template <class Acc>
void adjusted_cross_entropy_cpu(const AdjustedCrossEntropyParams<Acc>& p, DType dtype) {
  const Acc divisor = p.reduction == Reduction::Mean ? sum_of_row_weights(p) : Acc(1);
  const Acc factor = 1 / divisor;
  for_rows(p.rows, p.columns, [&](int64_t begin, int64_t end) {
    switch (selected_isa()) {
#define LTK_CASE(isa)                                                 \
  case Isa::isa:                                                      \
    isa::adjusted_cross_entropy_rows<Acc>(                            \
        p, factor, dtype, begin, end,                                 \
        thread_scratch<Acc>(isa::adjusted_cross_entropy_scratch(p))); \
    break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
  });
  if (p.loss != nullptr) *p.loss = ordered_sum(p.row_loss, p.rows) / divisor;
}

Outputs adjusted_cross_entropy(const Tensor& given_logits, const Tensor& target, double scale,
                               const Optional& margin, const Optional& bias,
                               const Optional& class_weight, double label_smoothing,
                               double focal_gamma, int64_t ignore_index, int64_t reduction,
                               bool gradient) {
  const Tensor logits = rows_of(given_logits, "logits");
  const DType dtype = dtype_of(logits);
  const int64_t n = logits.size(0), c = logits.size(1);
  return dispatch_accumulate(dtype, [&](auto zero) -> Outputs {
    using Acc = decltype(zero);
    constexpr ScalarType acc = scalar_type_of<Acc>();
    const Tensor loss = reduction == 0 ? empty({n}, acc, logits) : empty_scalar(acc, logits);
    const RowLoss<Acc> row_loss(reduction == 0, loss, n);
    const Tensor grad = gradient ? empty({n, c}, logits.scalar_type(), logits) : no_tensor(logits);
    // On CUDA the mean's divisor is known when the gradient has been written.
    const bool divided_late =
        logits.is_cuda() && reduction == static_cast<int64_t>(Reduction::Mean);
    const bool scaled = gradient && (dtype == DType::Float16 || divided_late);
    const Tensor grad_scale = scaled ? empty({n}, acc, logits) : no_tensor(logits);

    AdjustedCrossEntropyParams<Acc> p{};
    p.rows = n;
    p.columns = c;
    p.logits = logits.const_data_ptr();
    p.logits_stride = logits.stride(0);
    p.target = data_or_null<int64_t>(Optional(target), n, "target", logits);
    p.scale = static_cast<Acc>(scale);
    p.margin = data_or_null<Acc>(margin, c, "margin", logits);
    p.bias = data_or_null<Acc>(bias, c, "bias", logits);
    p.class_weight = data_or_null<Acc>(class_weight, c, "class_weight", logits);
    p.label_smoothing = static_cast<Acc>(label_smoothing);
    p.focal_gamma = static_cast<Acc>(focal_gamma);
    p.ignore_index = ignore_index;
    p.reduction = static_cast<Reduction>(reduction);
    p.row_loss = row_loss.data();
    p.loss = reduction == 0 ? nullptr : static_cast<Acc*>(loss.mutable_data_ptr());
    p.grad = gradient ? grad.mutable_data_ptr() : nullptr;
    p.grad_scale = scaled ? static_cast<Acc*>(grad_scale.mutable_data_ptr()) : nullptr;
#ifdef LTK_WITH_CUDA
    if (logits.is_cuda()) {
      const CudaCall call(logits);
      const Tensor counter = empty({1}, ScalarType::Int, logits);
      call.check("adjusted_cross_entropy",
                 adjusted_cross_entropy_cuda<Acc>(p, dtype, call.launch_counting(counter)));
      return {loss, grad, grad_scale};
    }
#endif
    check_indices(p.target, n, c, "target", ignore_index);
    check_non_negative(p.class_weight, c, "class_weight");
    adjusted_cross_entropy_cpu(p, dtype);
    return {loss, grad, grad_scale};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ltkernels, m) {
  m.def(
      "adjusted_cross_entropy(Tensor logits, Tensor target, float scale, Tensor? margin, "
      "Tensor? bias, Tensor? class_weight, float label_smoothing, float focal_gamma, "
      "int ignore_index, int reduction, bool gradient) "
      "-> (Tensor loss, Tensor grad, Tensor grad_scale)");
}
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CPU, m) {
  m.impl("adjusted_cross_entropy", TORCH_BOX(&adjusted_cross_entropy));
}
#ifdef LTK_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CUDA, m) {
  m.impl("adjusted_cross_entropy", TORCH_BOX(&adjusted_cross_entropy));
}
#endif

}  // namespace ltk
