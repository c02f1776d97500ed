// Host entry of the CUDA kernels of experts. Every pointer of `params` lies on `launch.device`.
#pragma once

#include "common/cuda/launch.h"
#include "ops/experts/experts.h"

namespace ltk {

// Queues one kernel on the stream. `dtype` is the element type of logits and gradients. Returns
// null, or the reason why nothing was queued.
template <class Acc>
const char* experts_cuda(const ExpertsParams<Acc>& params, DType dtype, const CudaLaunch& launch);

template <>
const char* experts_cuda(const ExpertsParams<float>&, DType, const CudaLaunch&);
template <>
const char* experts_cuda(const ExpertsParams<double>&, DType, const CudaLaunch&);

}  // namespace ltk
