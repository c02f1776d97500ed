// Host entry of the CUDA kernel of scale_gradient. Every pointer lies on `launch.device`.
#pragma once

#include "common/cuda/launch.h"
#include "ops/scale_gradient/scale_gradient.h"

namespace ltk {

// Queues one kernel on the stream (`launch.counter` is not used). `dtype` is the element type of
// gradient and out. Returns null, or the reason why nothing was queued.
template <class Acc>
const char* scale_gradient_cuda(const ScaleGradientParams<Acc>& params, DType dtype,
                                const CudaLaunch& launch);

template <>
const char* scale_gradient_cuda(const ScaleGradientParams<float>&, DType, const CudaLaunch&);
template <>
const char* scale_gradient_cuda(const ScaleGradientParams<double>&, DType, const CudaLaunch&);

}  // namespace ltk
