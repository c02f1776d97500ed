// The ops ltkernels::routing_loss and ltkernels::routing_target.
#include "bindings/tensor.h"
#include "ops/routing/routing_cpu.h"
#ifdef LTK_WITH_CUDA
#include "bindings/cuda.h"
#include "ops/routing/routing_cuda.h"
#endif

#include <tuple>
#include <vector>

namespace ltk {
namespace {

using Outputs = std::tuple<Tensor, Tensor>;  // loss, gradient

template <class Acc>
void routing_loss_cpu(const RoutingLossParams<Acc>& p, DType dtype) {
  for_rows(p.count, 16, [&](int64_t begin, int64_t end) {
    switch (selected_isa()) {
#define LTK_CASE(isa) \
  case Isa::isa: isa::routing_loss_elements<Acc>(p, dtype, begin, end); break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
  });
  if (p.loss)
    *p.loss = ordered_sum(p.each, p.count) / (p.reduction == Reduction::Mean ? Acc(p.count) : 1);
}

// gate: contiguous [M]; needs_help: [M], bool or of the loss's dtype.
Outputs routing_loss(const Tensor& gate, const Tensor& needs_help, double pos_weight,
                     int64_t reduction, bool gradient) {
  const DType dtype = dtype_of(gate);
  const int64_t m = gate.numel();
  const bool flags = needs_help.scalar_type() == ScalarType::Bool;
  STD_TORCH_CHECK(gate.dim() == 1 && gate.is_contiguous() && needs_help.numel() == m &&
                      needs_help.is_contiguous() && needs_help.get_device() == gate.get_device(),
                  "expected `gate` and `needs_help` to be contiguous [M] on one device");
  return dispatch_accumulate(dtype, [&](auto zero) -> Outputs {
    using Acc = decltype(zero);
    constexpr ScalarType acc = scalar_type_of<Acc>();
    const Tensor each = empty({m}, acc, gate);
    const Tensor loss = reduction == 0 ? each : empty_scalar(acc, gate);
    const Tensor grad = gradient ? empty({m}, acc, gate) : no_tensor(gate);
    RoutingLossParams<Acc> p{};
    p.count = m;
    p.gate = gate.const_data_ptr();
    if (flags)
      p.help_flag = static_cast<const bool*>(needs_help.const_data_ptr());
    else
      p.help_share = data_or_null<Acc>(std::optional<Tensor>(needs_help), m, "needs_help", gate);
    p.pos_weight = static_cast<Acc>(pos_weight);
    p.reduction = static_cast<Reduction>(reduction);
    p.each = static_cast<Acc*>(each.mutable_data_ptr());
    p.loss = reduction == 0 ? nullptr : static_cast<Acc*>(loss.mutable_data_ptr());
    p.grad = gradient ? static_cast<Acc*>(grad.mutable_data_ptr()) : nullptr;
#ifdef LTK_WITH_CUDA
    if (gate.is_cuda()) {
      const CudaCall call(gate);
      const Tensor counter = empty({1}, ScalarType::Int, gate);
      call.check("routing_loss", routing_loss_cuda<Acc>(p, dtype, call.launch_counting(counter)));
      return {loss, grad};
    }
#endif
    routing_loss_cpu(p, dtype);
    return {loss, grad};
  });
}

void routing_target_cpu(const RoutingTargetParams& p, DType dtype) {
  for_rows(p.rows, p.columns * p.experts, [&](int64_t begin, int64_t end) {
    switch (selected_isa()) {
#define LTK_CASE(isa) \
  case Isa::isa: isa::routing_target_rows(p, dtype, begin, end); break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
  });
}

Tensor routing_target(const std::vector<Tensor>& expert_logits, const Tensor& target) {
  const int64_t experts = static_cast<int64_t>(expert_logits.size());
  STD_TORCH_CHECK(1 <= experts && experts <= kMostRoutedExperts,
                  "expected `expert_logits` to be 1 to ", kMostRoutedExperts, " tensors, got ",
                  experts);
  std::vector<Tensor> logits;
  for (const Tensor& x : expert_logits) logits.push_back(rows_of(x, "expert_logits"));
  const Tensor& first = logits[0];
  const DType dtype = dtype_of(first);
  RoutingTargetParams p{};
  p.rows = first.size(0);
  p.columns = first.size(1);
  p.experts = static_cast<int>(experts);
  for (int64_t k = 0; k < experts; k++) {
    const Tensor& x = logits[k];
    STD_TORCH_CHECK(x.size(0) == p.rows && x.size(1) == p.columns && dtype_of(x) == dtype &&
                        x.get_device() == first.get_device(),
                    "expected `expert_logits` to be alike");
    p.logits[k] = x.const_data_ptr();
    p.logits_stride[k] = x.stride(0);
  }
  p.target = data_or_null<int64_t>(std::optional<Tensor>(target), p.rows, "target", first);
  const Tensor needs_help = empty({experts - 1, p.rows}, ScalarType::Bool, first);
  p.needs_help = static_cast<bool*>(needs_help.mutable_data_ptr());
#ifdef LTK_WITH_CUDA
  if (first.is_cuda()) {
    const CudaCall call(first);
    call.check("routing_target", routing_target_cuda(p, dtype, call.launch()));
    return needs_help;
  }
#endif
  check_indices(p.target, p.rows, p.columns, "target");
  if (experts > 1) routing_target_cpu(p, dtype);
  return needs_help;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ltkernels, m) {
  m.def(
      "routing_loss(Tensor gate, Tensor needs_help, float pos_weight, int reduction, "
      "bool gradient) -> (Tensor loss, Tensor grad)");
  m.def("routing_target(Tensor[] expert_logits, Tensor target) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CPU, m) {
  m.impl("routing_loss", TORCH_BOX(&routing_loss));
  m.impl("routing_target", TORCH_BOX(&routing_target));
}
#ifdef LTK_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CUDA, m) {
  m.impl("routing_loss", TORCH_BOX(&routing_loss));
  m.impl("routing_target", TORCH_BOX(&routing_target));
}
#endif

}  // namespace ltk
