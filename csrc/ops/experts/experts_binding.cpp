// The op ltkernels::experts: ride_loss, diversity_loss and collaborative_kd_loss with their
// gradients.
#include "bindings/tensor.h"
#include "ops/experts/experts_cpu.h"
#ifdef LTK_WITH_CUDA
#include "bindings/cuda.h"
#include "ops/experts/experts_cuda.h"
#endif

#include <tuple>
#include <vector>

namespace ltk {
namespace {

using Optional = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor, Tensor>;  // loss, gradients, their scales

template <class Acc>
Acc sum_of_row_weights(const ExpertsParams<Acc>& p) {
  double sum = 0;
  for (int64_t n = 0; n < p.rows; n++) sum += static_cast<double>(p.class_weight[p.target[n]]);
  return static_cast<Acc>(sum);
}

template <class Acc>
void experts_cpu(ExpertsParams<Acc> p, DType dtype) {
  if (p.ce_reduction < 0) p.ce_reduction = 1 / sum_of_row_weights(p);
  ExpertsTables<Acc> tables{nullptr, 0};
  std::vector<Acc> inverse_temperature;
  if (p.column_temperature != nullptr) {
    inverse_temperature.resize(p.columns + 16);
    for (int64_t c = 0; c < p.columns; c++) {
      inverse_temperature[c] = 1 / p.column_temperature[c];
      tables.largest_inverse_temperature =
          std::max(tables.largest_inverse_temperature, inverse_temperature[c]);
    }
    tables.inverse_temperature = inverse_temperature.data();
  }
  for_rows(p.rows, p.columns * p.experts, [&](int64_t begin, int64_t end) {
    switch (selected_isa()) {
#define LTK_CASE(isa)                                                          \
  case Isa::isa:                                                               \
    isa::experts_rows<Acc>(p, tables, dtype, begin, end,                       \
                           thread_scratch<Acc>(isa::experts_scratch<Acc>(p))); \
    break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
  });
  if (p.loss == nullptr) return;
  // The mean of no row is NaN: 0 / 0.
  *p.loss = p.rows > 0 ? ordered_sum(p.row_loss, p.rows) : 0 * (p.ce_reduction * p.kl_reduction);
}

Outputs experts(std::vector<Tensor> logits, const Optional& target, const Optional& margin,
                const Optional& class_weight, int64_t cross_entropy, double ce_factor,
                int64_t divergence, double temperature, const Optional& row_temperature,
                const Optional& column_temperature, double kl_factor, const Optional& row_factor,
                const Optional& sample_weight, bool weight_of_second, bool first_gradient,
                bool second_gradient, int64_t reduction, bool gradient) {
  const int64_t k = static_cast<int64_t>(logits.size());
  STD_TORCH_CHECK(1 <= k && k <= kMostExperts, "expected 1 to ", kMostExperts, " experts, got ", k);
  for (Tensor& z : logits) z = rows_of(z, "logits");
  const Tensor& first = logits[0];
  const DType dtype = dtype_of(first);
  const int64_t n = first.size(0), c = first.size(1);
  for (const Tensor& z : logits)
    STD_TORCH_CHECK(z.size(0) == n && z.size(1) == c && z.scalar_type() == first.scalar_type() &&
                        z.get_device() == first.get_device(),
                    "the experts' logits do not belong together");
  STD_TORCH_CHECK(0 <= cross_entropy && cross_entropy <= 2 && 0 <= divergence && divergence <= 2,
                  "expected `cross_entropy` and `divergence` to be 0, 1 or 2");
  STD_TORCH_CHECK(target.has_value() == (cross_entropy != 0),
                  "expected `target` with a cross-entropy, and without one none");
  return dispatch_accumulate(dtype, [&](auto zero) -> Outputs {
    using Acc = decltype(zero);
    constexpr ScalarType acc = scalar_type_of<Acc>();
    const bool mean = reduction == static_cast<int64_t>(Reduction::Mean);
    const Tensor row_loss = empty({n}, acc, first);
    const Tensor loss = reduction == 0 ? row_loss : empty_scalar(acc, first);
    const Tensor grad = gradient ? empty({k, n, c}, first.scalar_type(), first) : no_tensor(first);
    const bool scaled = gradient && dtype == DType::Float16;
    const Tensor grad_scale = scaled ? empty({k, n}, acc, first) : no_tensor(first);

    ExpertsParams<Acc> p{};
    p.rows = n;
    p.columns = c;
    p.experts = static_cast<int>(k);
    for (int64_t i = 0; i < k; i++) {
      p.logits[i] = logits[i].const_data_ptr();
      p.logits_stride[i] = logits[i].stride(0);
    }
    p.cross_entropy = static_cast<ExpertCrossEntropy>(cross_entropy);
    p.target = data_or_null<int64_t>(target, n, "target", first);
    p.margin = data_or_null<Acc>(margin, c, "margin", first);
    p.class_weight = data_or_null<Acc>(class_weight, c, "class_weight", first);
    p.ce_factor = static_cast<Acc>(ce_factor);
    p.kl_reduction = mean ? 1 / static_cast<Acc>(n) : Acc(1);
    p.ce_reduction =
        mean && p.class_weight != nullptr && p.target != nullptr ? Acc(-1) : p.kl_reduction;
    p.divergence = static_cast<ExpertDivergence>(divergence);
    p.temperature = static_cast<Acc>(temperature);
    p.row_temperature = data_or_null<Acc>(row_temperature, n, "row_temperature", first);
    p.column_temperature = data_or_null<Acc>(column_temperature, c, "column_temperature", first);
    p.kl_factor = static_cast<Acc>(kl_factor);
    if (row_factor.has_value()) {
      const int64_t size = row_factor->numel();
      STD_TORCH_CHECK(size == n || size == 1, "expected `row_factor` to have N or 1 elements");
      p.row_factor = data_or_null<Acc>(row_factor, size, "row_factor", first);
      p.row_factor_stride = size == n ? 1 : 0;
    }
    p.sample_weight = data_or_null<Acc>(sample_weight, k * n, "sample_weight", first);
    p.weight_of_second = weight_of_second;
    p.first_gradient = first_gradient;
    p.second_gradient = second_gradient;
    p.row_loss = static_cast<Acc*>(row_loss.mutable_data_ptr());
    p.loss = reduction == 0 ? nullptr : static_cast<Acc*>(loss.mutable_data_ptr());
    p.grad = gradient ? grad.mutable_data_ptr() : nullptr;
    p.grad_scale = scaled ? static_cast<Acc*>(grad_scale.mutable_data_ptr()) : nullptr;
#ifdef LTK_WITH_CUDA
    if (first.is_cuda()) {
      const CudaCall call(first);
      const Tensor counter = empty({1}, ScalarType::Int, first);
      call.check("experts", experts_cuda<Acc>(p, dtype, call.launch_counting(counter)));
      return {loss, grad, grad_scale};
    }
#endif
    check_indices(p.target, n, c, "target");
    check_non_negative(p.class_weight, c, "class_weight");
    experts_cpu(p, dtype);
    return {loss, grad, grad_scale};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ltkernels, m) {
  m.def(
      "experts(Tensor[] logits, Tensor? target, Tensor? margin, Tensor? class_weight, "
      "int cross_entropy, float ce_factor, int divergence, float temperature, "
      "Tensor? row_temperature, Tensor? column_temperature, float kl_factor, Tensor? row_factor, "
      "Tensor? sample_weight, bool weight_of_second, bool first_gradient, bool second_gradient, "
      "int reduction, bool gradient) -> (Tensor loss, Tensor grad, Tensor grad_scale)");
}
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CPU, m) { m.impl("experts", TORCH_BOX(&experts)); }
#ifdef LTK_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CUDA, m) { m.impl("experts", TORCH_BOX(&experts)); }
#endif

}  // namespace ltk
