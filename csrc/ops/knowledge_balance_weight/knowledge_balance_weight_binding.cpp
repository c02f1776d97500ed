// The op ltkernels::knowledge_balance_weight.
#include "bindings/tensor.h"
#include "ops/knowledge_balance_weight/knowledge_balance_weight_cpu.h"
#ifdef LTK_WITH_CUDA
#include "bindings/cuda.h"
#include "ops/knowledge_balance_weight/knowledge_balance_weight_cuda.h"
#endif

namespace ltk {
namespace {

template <class Acc>
void knowledge_balance_weight_cpu(const KnowledgeBalanceWeightParams<Acc>& p, DType dtype) {
  for_rows(p.rows, 2 * p.columns, [&](int64_t begin, int64_t end) {
    switch (selected_isa()) {
#define LTK_CASE(isa)                                                                         \
  case Isa::isa:                                                                              \
    isa::knowledge_balance_weight_rows<Acc>(                                                  \
        p, dtype, begin, end, thread_scratch<Acc>(isa::knowledge_balance_weight_scratch(p))); \
    break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
  });
}

Tensor knowledge_balance_weight(const Tensor& ref_logits, const Tensor& cls_logits,
                                const Tensor& target, double eps) {
  const Tensor ref = rows_of(ref_logits, "ref_logits"), cls = rows_of(cls_logits, "cls_logits");
  const DType dtype = dtype_of(ref);
  const int64_t n = ref.size(0), c = ref.size(1);
  STD_TORCH_CHECK(cls.size(0) == n && cls.size(1) == c && cls.scalar_type() == ref.scalar_type() &&
                      cls.get_device() == ref.get_device(),
                  "expected `cls_logits` of the shape, dtype and device of `ref_logits`");
  return dispatch_accumulate(dtype, [&](auto zero) {
    using Acc = decltype(zero);
    const Tensor weight = empty({n}, scalar_type_of<Acc>(), ref);
    KnowledgeBalanceWeightParams<Acc> p{};
    p.rows = n;
    p.columns = c;
    p.ref_logits = ref.const_data_ptr();
    p.ref_stride = ref.stride(0);
    p.cls_logits = cls.const_data_ptr();
    p.cls_stride = cls.stride(0);
    p.target = data_or_null<int64_t>(std::optional<Tensor>(target), n, "target", ref);
    p.eps = static_cast<Acc>(eps);
    p.smallest_variance = static_cast<Acc>(eps * eps);
    p.weight = static_cast<Acc*>(weight.mutable_data_ptr());
#ifdef LTK_WITH_CUDA
    if (ref.is_cuda()) {
      const CudaCall call(ref);
      call.check("knowledge_balance_weight",
                 knowledge_balance_weight_cuda<Acc>(p, dtype, call.launch()));
      return weight;
    }
#endif
    check_indices(p.target, n, c, "target");
    knowledge_balance_weight_cpu(p, dtype);
    return weight;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ltkernels, m) {
  m.def(
      "knowledge_balance_weight(Tensor ref_logits, Tensor cls_logits, Tensor target, float eps) "
      "-> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CPU, m) {
  m.impl("knowledge_balance_weight", TORCH_BOX(&knowledge_balance_weight));
}
#ifdef LTK_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CUDA, m) {
  m.impl("knowledge_balance_weight", TORCH_BOX(&knowledge_balance_weight));
}
#endif

}  // namespace ltk
