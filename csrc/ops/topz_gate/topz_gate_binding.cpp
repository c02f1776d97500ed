// The ops ltkernels::topz_gate and ltkernels::topz_gate_backward.
#include "bindings/tensor.h"
#include "ops/topz_gate/topz_gate_cpu.h"
#ifdef LTK_WITH_CUDA
#include "bindings/cuda.h"
#include "ops/topz_gate/topz_gate_cuda.h"
#endif

#include <tuple>
#include <vector>

namespace ltk {
namespace {

using Given = std::optional<Tensor>;
using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Acc>
Acc* data(const Tensor& t) {
  return static_cast<Acc*>(t.mutable_data_ptr());
}

// The arithmetic is double where logits or features are; then both must be.
void check_dtypes(DType logits, DType feature) {
  STD_TORCH_CHECK((logits == DType::Float64) == (feature == DType::Float64),
                  "expected `feature` to be float64 where the logits are");
}

template <class Acc>
void topz_gate_cpu(const TopzGateParams<Acc>& p, DType dtype) {
  const int64_t padded = padded_units(p.hidden);
  std::vector<Acc> w1_transposed(p.width * padded);
  for (int64_t j = 0; j < p.hidden; j++)
    for (int64_t d = 0; d < p.width; d++) w1_transposed[d * padded + j] = p.w1[j * p.width + d];
  for_rows(p.rows, p.columns + p.width, [&](int64_t begin, int64_t end) {
    switch (selected_isa()) {
#define LTK_CASE(isa)                                                         \
  case Isa::isa:                                                              \
    isa::topz_gate_rows<Acc>(p, w1_transposed.data(), dtype, begin, end,      \
                             thread_scratch<Acc>(isa::topz_gate_scratch(p))); \
    break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
  });
}

Forward topz_gate(const Tensor& given_logits, const Tensor& given_feature, const Tensor& w1,
                  const Tensor& b1, const Tensor& w2, const Tensor& b2, int64_t z, bool keep) {
  const Tensor logits = rows_of(given_logits, "logits");
  const Tensor feature = rows_of(given_feature, "feature");
  const DType dtype = dtype_of(logits), feature_dtype = dtype_of(feature);
  check_dtypes(dtype, feature_dtype);
  const int64_t n = logits.size(0), c = logits.size(1), d = feature.size(1);
  STD_TORCH_CHECK(feature.size(0) == n && feature.get_device() == logits.get_device(),
                  "expected `feature` to be [N, D] on the device of the logits");
  STD_TORCH_CHECK(1 <= z && z <= c && c < (int64_t{1} << 31), "expected `z` in 1..C");
  const int64_t h = b1.numel();
  return dispatch_accumulate(dtype, [&](auto zero) -> Forward {
    using Acc = decltype(zero);
    constexpr ScalarType acc = scalar_type_of<Acc>();
    const Tensor gate = empty({n}, acc, logits);
    const auto kept = [&](int64_t columns, ScalarType type) {
      return keep ? empty({n, columns}, type, logits) : no_tensor(logits);
    };
    const Tensor top = kept(z, acc), index = kept(z, ScalarType::Int), units = kept(h, acc);
    const Tensor inverse_norm = keep ? empty({n}, acc, logits) : no_tensor(logits);

    TopzGateParams<Acc> p{};
    p.rows = n;
    p.columns = c;
    p.width = d;
    p.hidden = h;
    p.z = z;
    p.logits = logits.const_data_ptr();
    p.logits_stride = logits.stride(0);
    p.feature = feature.const_data_ptr();
    p.feature_stride = feature.stride(0);
    p.feature_dtype = feature_dtype;
    p.w1 = data_or_null<Acc>(Given(w1), h * d, "w1", logits);
    p.b1 = data_or_null<Acc>(Given(b1), h, "b1", logits);
    p.w2 = data_or_null<Acc>(Given(w2), z + h, "w2", logits);
    p.b2 = data_or_null<Acc>(Given(b2), 1, "b2", logits);
    p.gate = data<Acc>(gate);
    if (keep) {
      p.top = data<Acc>(top);
      p.index = data<int32_t>(index);
      p.units = data<Acc>(units);
      p.inverse_norm = data<Acc>(inverse_norm);
    }
#ifdef LTK_WITH_CUDA
    if (logits.is_cuda()) {
      const CudaCall call(logits);
      const Tensor workspace = empty({topz_gate_workspace(p)}, ScalarType::Byte, logits);
      call.check("topz_gate",
                 topz_gate_cuda<Acc>(p, dtype, workspace.mutable_data_ptr(), call.launch()));
      return {gate, top, index, units, inverse_norm};
    }
#endif
    topz_gate_cpu(p, dtype);
    return {gate, top, index, units, inverse_norm};
  });
}

template <class Acc>
void topz_gate_gradient_cpu(const TopzGateGradientParams<Acc>& p, DType dtype) {
  switch (selected_isa()) {
#define LTK_CASE(isa)                                                                      \
  case Isa::isa: {                                                                         \
    if (p.d_logits || p.d_feature)                                                         \
      for_rows(p.rows, p.columns + p.width * p.hidden, [&](int64_t begin, int64_t end) {   \
        isa::topz_gate_gradient_rows<Acc>(p, dtype, begin, end,                            \
                                          thread_scratch<Acc>(p.width + p.hidden));        \
      });                                                                                  \
    if (p.d_w1) {                                                                          \
      std::vector<Acc> slope(p.rows * p.hidden);                                           \
      isa::topz_gate_gradient_sums<Acc>(p, slope.data());                                  \
      const int64_t blocks = (p.width + kGateColumns - 1) / kGateColumns;                  \
      for_rows(blocks, p.rows * p.hidden * 8, [&](int64_t begin, int64_t end) {            \
        for (int64_t b = begin; b < end; b++)                                              \
          isa::topz_gate_gradient_columns<Acc>(p, slope.data(), b * kGateColumns,          \
                                               std::min((b + 1) * kGateColumns, p.width)); \
      });                                                                                  \
    }                                                                                      \
    break;                                                                                 \
  }
    LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
  }
}

// `like` has the dtype and the shape of the logits, no matter what memory, where their gradient is
// asked for.
Backward topz_gate_backward(const Tensor& upstream, const Tensor& given_feature, const Tensor& w1,
                            const Tensor& w2, const Tensor& top, const Tensor& index,
                            const Tensor& units, const Tensor& inverse_norm, const Tensor& like,
                            bool logits_gradient, bool feature_gradient, bool weight_gradient) {
  const Tensor feature = rows_of(given_feature, "feature");
  const DType dtype = dtype_of(like), feature_dtype = dtype_of(feature);
  check_dtypes(dtype, feature_dtype);
  STD_TORCH_CHECK(top.dim() == 2 && units.dim() == 2, "expected `top` and `units` to be 2-D");
  const int64_t n = feature.size(0), d = feature.size(1), z = top.size(1), h = units.size(1);
  const int64_t columns = logits_gradient ? like.size(1) : z;
  STD_TORCH_CHECK(!logits_gradient || (like.dim() == 2 && like.size(0) == n),
                  "expected `like` to be [N, C]");
  STD_TORCH_CHECK(index.scalar_type() == ScalarType::Int && index.is_contiguous() &&
                      index.numel() == n * z && index.get_device() == feature.get_device(),
                  "expected `index` to be contiguous int32 [N, z]");
  STD_TORCH_CHECK(z <= columns, "expected `top` to be [N, z] with z <= C");
  return dispatch_accumulate(dtype, [&](auto zero) -> Backward {
    using Acc = decltype(zero);
    constexpr ScalarType acc = scalar_type_of<Acc>();
    const Tensor none = no_tensor(feature);
    const Tensor d_logits =
        logits_gradient ? empty({n, columns}, like.scalar_type(), feature) : none;
    const Tensor d_feature =
        feature_gradient ? empty({n, d}, feature.scalar_type(), feature) : no_tensor(feature);
    const auto weight = [&](std::initializer_list<int64_t> sizes) {
      if (!weight_gradient) return no_tensor(feature);
      if (sizes.size() == 1) return empty({sizes.begin()[0]}, acc, feature);
      return empty({sizes.begin()[0], sizes.begin()[1]}, acc, feature);
    };
    const Tensor d_w1 = weight({h, d}), d_b1 = weight({h}), d_w2 = weight({1, z + h});
    const Tensor d_b2 = weight({1});

    TopzGateGradientParams<Acc> p{};
    p.rows = n;
    p.columns = columns;
    p.width = d;
    p.hidden = h;
    p.z = z;
    p.upstream = data_or_null<Acc>(Given(upstream), n, "upstream", feature);
    p.feature = feature.const_data_ptr();
    p.feature_stride = feature.stride(0);
    p.feature_dtype = feature_dtype;
    p.w1 = data_or_null<Acc>(Given(w1), h * d, "w1", feature);
    p.w2 = data_or_null<Acc>(Given(w2), z + h, "w2", feature);
    p.top = data_or_null<Acc>(Given(top), n * z, "top", feature);
    p.index = static_cast<const int32_t*>(index.const_data_ptr());
    p.units = data_or_null<Acc>(Given(units), n * h, "units", feature);
    p.inverse_norm = data_or_null<Acc>(Given(inverse_norm), n, "inverse_norm", feature);
    if (logits_gradient) p.d_logits = d_logits.mutable_data_ptr();
    if (feature_gradient) p.d_feature = d_feature.mutable_data_ptr();
    if (weight_gradient) {
      p.d_w1 = data<Acc>(d_w1);
      p.d_b1 = data<Acc>(d_b1);
      p.d_w2 = data<Acc>(d_w2);
      p.d_b2 = data<Acc>(d_b2);
    }
#ifdef LTK_WITH_CUDA
    if (feature.is_cuda()) {
      const CudaCall call(feature);
      call.check("topz_gate_backward", topz_gate_gradient_cuda<Acc>(p, dtype, call.launch()));
      return {d_logits, d_feature, d_w1, d_b1, d_w2, d_b2};
    }
#endif
    if (p.d_logits)
      for (int64_t i = 0; i < n * z; i++)
        STD_TORCH_CHECK(-1 <= p.index[i] && p.index[i] < columns, "expected `index` in -1..C-1");
    topz_gate_gradient_cpu(p, dtype);
    return {d_logits, d_feature, d_w1, d_b1, d_w2, d_b2};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ltkernels, m) {
  m.def(
      "topz_gate(Tensor logits, Tensor feature, Tensor w1, Tensor b1, Tensor w2, Tensor b2, int z, "
      "bool keep) -> (Tensor gate, Tensor top, Tensor index, Tensor units, Tensor inverse_norm)");
  m.def(
      "topz_gate_backward(Tensor upstream, Tensor feature, Tensor w1, Tensor w2, Tensor top, "
      "Tensor index, Tensor units, Tensor inverse_norm, Tensor like, "
      "bool logits_gradient, bool feature_gradient, bool weight_gradient) "
      "-> (Tensor d_logits, Tensor d_feature, Tensor d_w1, Tensor d_b1, Tensor d_w2, Tensor d_b2)");
}
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CPU, m) {
  m.impl("topz_gate", TORCH_BOX(&topz_gate));
  m.impl("topz_gate_backward", TORCH_BOX(&topz_gate_backward));
}
#ifdef LTK_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CUDA, m) {
  m.impl("topz_gate", TORCH_BOX(&topz_gate));
  m.impl("topz_gate_backward", TORCH_BOX(&topz_gate_backward));
}
#endif

}  // namespace ltk
