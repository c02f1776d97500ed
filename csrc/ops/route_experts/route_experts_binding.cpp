// The op ltkernels::route_experts.
#include "bindings/tensor.h"
#include "ops/route_experts/route_experts_cpu.h"
#include "ops/topz_gate/topz_gate_cpu.h"
#ifdef LTK_WITH_CUDA
#include "bindings/cuda.h"
#include "ops/route_experts/route_experts_cuda.h"
#endif

#include <tuple>
#include <vector>

namespace ltk {
namespace {

using Given = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor>;  // mean logits, experts used

template <class Acc>
void route_experts_cpu(const RouteExpertsParams<Acc>& p, DType dtype) {
  const int64_t padded = padded_units(p.hidden), gates = p.experts - 1;
  std::vector<Acc> w1_transposed(gates * p.width * padded);
  for (int64_t i = 0; i < gates; i++)
    for (int64_t j = 0; j < p.hidden; j++)
      for (int64_t d = 0; d < p.width; d++)
        w1_transposed[(i * p.width + d) * padded + j] = p.w1[(i * p.hidden + j) * p.width + d];
  for_rows(p.rows, p.experts * (p.columns + p.width), [&](int64_t begin, int64_t end) {
    switch (selected_isa()) {
#define LTK_CASE(isa)                                                                 \
  case Isa::isa:                                                                      \
    isa::route_experts_rows<Acc>(p, w1_transposed.data(), dtype, begin, end,          \
                                 thread_scratch<Acc>(isa::route_experts_scratch(p))); \
    break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
  });
}

// features: those of the first K - 1 experts. w2: [G, z + h] and b2: [G] with G = K - 1 or 1.
Outputs route_experts(const std::vector<Tensor>& expert_logits, const std::vector<Tensor>& features,
                      const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                      int64_t z, double threshold) {
  const int64_t experts = static_cast<int64_t>(expert_logits.size()), gates = experts - 1;
  STD_TORCH_CHECK(1 <= experts && experts <= kMostStages, "expected `expert_logits` to be 1 to ",
                  kMostStages, " tensors, got ", experts);
  STD_TORCH_CHECK(static_cast<int64_t>(features.size()) == gates,
                  "expected `features` to be one tensor less than `expert_logits`");
  STD_TORCH_CHECK(w1.dim() == 3 && w1.size(0) == gates, "expected `w1` to be [K - 1, h, D]");
  std::vector<Tensor> logits, rows;
  for (const Tensor& x : expert_logits) logits.push_back(rows_of(x, "expert_logits"));
  for (const Tensor& x : features) rows.push_back(rows_of(x, "features"));
  const Tensor& first = logits[0];
  const DType dtype = dtype_of(first);
  const int64_t n = first.size(0), c = first.size(1), h = w1.size(1), d = w1.size(2);
  STD_TORCH_CHECK(1 <= z && z <= c && c < (int64_t{1} << 31), "expected `z` in 1..C");
  return dispatch_accumulate(dtype, [&](auto zero) -> Outputs {
    using Acc = decltype(zero);
    const Tensor mean = empty({n, c}, scalar_type_of<Acc>(), first);
    const Tensor used = empty({n}, ScalarType::Long, first);
    RouteExpertsParams<Acc> p{};
    p.rows = n;
    p.columns = c;
    p.width = d;
    p.hidden = h;
    p.z = z;
    p.experts = static_cast<int>(experts);
    for (int64_t k = 0; k < experts; k++) {
      const Tensor& x = logits[k];
      STD_TORCH_CHECK(x.size(0) == n && x.size(1) == c && dtype_of(x) == dtype &&
                          x.get_device() == first.get_device(),
                      "expected `expert_logits` to be alike");
      p.logits[k] = x.const_data_ptr();
      p.logits_stride[k] = x.stride(0);
    }
    for (int64_t i = 0; i < gates; i++) {
      const Tensor& x = rows[i];
      p.feature_dtype = dtype_of(rows[0]);
      STD_TORCH_CHECK(x.size(0) == n && x.size(1) == d && dtype_of(x) == p.feature_dtype &&
                          x.get_device() == first.get_device() &&
                          (dtype == DType::Float64) == (p.feature_dtype == DType::Float64),
                      "expected `features` to be alike, float64 where the logits are");
      p.feature[i] = x.const_data_ptr();
      p.feature_stride[i] = x.stride(0);
    }
    const int64_t w2_gates = b2.numel() == 1 ? 1 : gates;
    p.w1 = data_or_null<Acc>(Given(w1), gates * h * d, "w1", first);
    p.b1 = data_or_null<Acc>(Given(b1), gates * h, "b1", first);
    p.w2 = data_or_null<Acc>(Given(w2), w2_gates * (z + h), "w2", first);
    p.w2_stride = w2_gates == 1 ? 0 : z + h;
    p.b2 = data_or_null<Acc>(Given(b2), w2_gates, "b2", first);
    p.b2_stride = w2_gates == 1 ? 0 : 1;
    p.threshold = static_cast<Acc>(threshold);
    p.mean = static_cast<Acc*>(mean.mutable_data_ptr());
    p.used = static_cast<int64_t*>(used.mutable_data_ptr());
#ifdef LTK_WITH_CUDA
    if (first.is_cuda()) {
      const CudaCall call(first);
      const Tensor workspace = empty({route_experts_workspace(p)}, ScalarType::Byte, first);
      call.check("route_experts",
                 route_experts_cuda<Acc>(p, dtype, workspace.mutable_data_ptr(), call.launch()));
      return {mean, used};
    }
#endif
    route_experts_cpu(p, dtype);
    return {mean, used};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ltkernels, m) {
  m.def(
      "route_experts(Tensor[] expert_logits, Tensor[] features, Tensor w1, Tensor b1, Tensor w2, "
      "Tensor b2, int z, float threshold) -> (Tensor logits, Tensor experts)");
}
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CPU, m) { m.impl("route_experts", TORCH_BOX(&route_experts)); }
#ifdef LTK_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CUDA, m) {
  m.impl("route_experts", TORCH_BOX(&route_experts));
}
#endif

}  // namespace ltk
