// Host entry of the CUDA distillation kernels. Every pointer of `params` lies on `launch.device`.
#pragma once

#include "common/cuda/launch.h"
#include "ops/distillation/distillation.h"

namespace ltk {

// Queues one kernel on the stream. `dtype` is the element type of student, teacher and gradients.
// Returns null, or the reason why nothing was queued.
template <class Acc>
const char* distillation_cuda(const DistillationParams<Acc>& params, DType dtype,
                              const CudaLaunch& launch);

template <>
const char* distillation_cuda(const DistillationParams<float>&, DType, const CudaLaunch&);
template <>
const char* distillation_cuda(const DistillationParams<double>&, DType, const CudaLaunch&);

}  // namespace ltk
