// The op ltkernels::scale_gradient, the backward pass of every fused loss.
#include "bindings/tensor.h"
#include "ops/scale_gradient/scale_gradient_cpu.h"
#ifdef LTK_WITH_CUDA
#include "bindings/cuda.h"
#include "ops/scale_gradient/scale_gradient_cuda.h"
#endif

namespace ltk {
namespace {

template <class Acc>
void scale_gradient_cpu(const ScaleGradientParams<Acc>& p, DType dtype) {
  for_rows(p.rows, p.columns, [&](int64_t begin, int64_t end) {
    switch (selected_isa()) {
#define LTK_CASE(isa) \
  case Isa::isa: isa::scale_gradient_rows<Acc>(p, dtype, begin, end); break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
  });
}

// upstream: a scalar or [N] of the loss's dtype; scale: [N], or anything without elements for ones.
Tensor scale_gradient(const Tensor& gradient, const Tensor& upstream, const Tensor& scale) {
  STD_TORCH_CHECK(gradient.dim() == 2 && gradient.is_contiguous(),
                  "expected `gradient` to be a contiguous [N, C]");
  const DType dtype = dtype_of(gradient);
  const int64_t n = gradient.size(0), c = gradient.size(1);
  STD_TORCH_CHECK(upstream.numel() == 1 || upstream.numel() == n,
                  "expected `upstream` to have 1 or N elements");
  return dispatch_accumulate(dtype, [&](auto zero) {
    using Acc = decltype(zero);
    // An expanded upstream (the gradient of a sum is one) becomes N numbers.
    const Tensor above = upstream.is_contiguous() ? upstream : torch::stable::contiguous(upstream);
    const Tensor out = empty({n, c}, gradient.scalar_type(), gradient);
    ScaleGradientParams<Acc> p{};
    p.rows = n;
    p.columns = c;
    p.gradient = gradient.const_data_ptr();
    p.upstream =
        data_or_null<Acc>(std::optional<Tensor>(above), above.numel(), "upstream", gradient);
    p.upstream_stride = above.numel() == n && above.dim() > 0 ? 1 : 0;
    if (scale.numel() > 0)
      p.scale = data_or_null<Acc>(std::optional<Tensor>(scale), n, "scale", gradient);
    p.out = out.mutable_data_ptr();
#ifdef LTK_WITH_CUDA
    if (gradient.is_cuda()) {
      const CudaCall call(gradient);
      call.check("scale_gradient", scale_gradient_cuda<Acc>(p, dtype, call.launch()));
      return out;
    }
#endif
    scale_gradient_cpu(p, dtype);
    return out;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ltkernels, m) {
  m.def("scale_gradient(Tensor gradient, Tensor upstream, Tensor scale) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CPU, m) {
  m.impl("scale_gradient", TORCH_BOX(&scale_gradient));
}
#ifdef LTK_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CUDA, m) {
  m.impl("scale_gradient", TORCH_BOX(&scale_gradient));
}
#endif

}  // namespace ltk
