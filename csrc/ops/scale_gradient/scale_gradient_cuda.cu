// Queues the kernel of scale_gradient_cuda.cuh.
#include "ops/scale_gradient/scale_gradient_cuda.cuh"
#include "ops/scale_gradient/scale_gradient_cuda.h"

namespace ltk {
namespace {

using namespace cuda;

template <class Storage>
const char* scale(const ScaleGradientParams<Accumulate<Storage>>& p, const CudaLaunch& where) {
  if (p.rows == 0 || p.columns == 0) return nullptr;
  Device device;
  if (const char* error = device_properties(where.device, device)) return error;
  constexpr int kValues = kScaleThreads * kChunk<Storage>;
  const int64_t blocks = (p.rows * p.columns + kChunk<Storage> - 1 + kValues - 1) / kValues;
  return launch(where, scale_gradient<Storage>,
                {grid_blocks(blocks, device, kScaleThreads), kScaleThreads}, p);
}

}  // namespace

template <>
const char* scale_gradient_cuda(const ScaleGradientParams<float>& params, DType dtype,
                                const CudaLaunch& where) {
  switch (dtype) {
    case DType::Float32: return scale<float>(params, where);
    case DType::Float16: return scale<Half>(params, where);
    case DType::BFloat16: return scale<BFloat16>(params, where);
    case DType::Float64: break;
  }
  return "float64 gradients need float64 parameters";
}

template <>
const char* scale_gradient_cuda(const ScaleGradientParams<double>& params, DType dtype,
                                const CudaLaunch& where) {
  if (dtype != DType::Float64) return "float64 parameters need float64 gradients";
  return scale<double>(params, where);
}

}  // namespace ltk
