// Host entry of the CUDA subset distillation kernels. Every pointer of `params` lies on
// `launch.device`.
#pragma once

#include "common/cuda/launch.h"
#include "ops/subset_distillation/subset_distillation.h"

namespace ltk {

// Queues one kernel on the stream. `dtype` is the element type of student, teachers and gradients.
// Returns null, or the reason why nothing was queued.
template <class Acc>
const char* subset_distillation_cuda(const SubsetDistillationParams<Acc>& params, DType dtype,
                                     const CudaLaunch& launch);

template <>
const char* subset_distillation_cuda(const SubsetDistillationParams<float>&, DType,
                                     const CudaLaunch&);
template <>
const char* subset_distillation_cuda(const SubsetDistillationParams<double>&, DType,
                                     const CudaLaunch&);

}  // namespace ltk
