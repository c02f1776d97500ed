// The backward pass of the fused losses on the CPU: one multiplication an element.
#include "ops/scale_gradient/scale_gradient_cpu.h"

#include "common/cpu/simd.h"

namespace ltk::LTK_ISA {
namespace {

template <class Storage>
void rows(const ScaleGradientParams<Accumulate<Storage>>& p, int64_t begin, int64_t end) {
  using Acc = Accumulate<Storage>;
  constexpr int L = kLanes<Acc>;
  for (int64_t n = begin; n < end; n++) {
    const Storage* in = static_cast<const Storage*>(p.gradient) + n * p.columns;
    Storage* out = static_cast<Storage*>(p.out) + n * p.columns;
    const Acc factor = p.upstream[n * p.upstream_stride] * (p.scale ? p.scale[n] : Acc(1));
    const int64_t whole = p.columns - p.columns % L;
    for (int64_t i = 0; i < whole; i += L) store(out + i, load(in + i) * factor);
    for (int64_t i = whole; i < p.columns; i++) from_float(to_float(in[i]) * factor, out + i);
  }
}

}  // namespace

template <>
void scale_gradient_rows<float>(const ScaleGradientParams<float>& p, DType dtype, int64_t begin,
                                int64_t end) {
  if (dtype == DType::Float32) rows<float>(p, begin, end);
  if (dtype == DType::Float16) rows<Half>(p, begin, end);
  if (dtype == DType::BFloat16) rows<BFloat16>(p, begin, end);
}

template <>
void scale_gradient_rows<double>(const ScaleGradientParams<double>& p, DType, int64_t begin,
                                 int64_t end) {
  rows<double>(p, begin, end);
}

}  // namespace ltk::LTK_ISA
