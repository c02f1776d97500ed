// Host entry of the CUDA kernels of adjusted_cross_entropy. Every pointer lies on `launch.device`.
#pragma once

#include "common/cuda/launch.h"
#include "ops/adjusted_cross_entropy/adjusted_cross_entropy.h"

namespace ltk {

// Queues one kernel on the stream. `dtype` is the element type of logits and gradient. With
// Reduction::Mean and a gradient, `grad_scale` must be given: it receives 1 / sum of the weights.
// Returns null, or the reason why nothing was queued.
template <class Acc>
const char* adjusted_cross_entropy_cuda(const AdjustedCrossEntropyParams<Acc>& params, DType dtype,
                                        const CudaLaunch& launch);

template <>
const char* adjusted_cross_entropy_cuda(const AdjustedCrossEntropyParams<float>&, DType,
                                        const CudaLaunch&);
template <>
const char* adjusted_cross_entropy_cuda(const AdjustedCrossEntropyParams<double>&, DType,
                                        const CudaLaunch&);

}  // namespace ltk
