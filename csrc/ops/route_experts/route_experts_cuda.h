// Host entry of the CUDA kernels of route_experts. Every pointer lies on `launch.device`.
#pragma once

#include "common/cuda/launch.h"
#include "ops/route_experts/route_experts.h"

namespace ltk {

// Queues one kernel on the stream (`launch.counter` is not used) and returns null, or the reason
// why nothing was queued. `dtype` is the element type of the logits. `workspace` are
// route_experts_workspace(params) bytes.
template <class Acc>
int64_t route_experts_workspace(const RouteExpertsParams<Acc>& params);
template <class Acc>
const char* route_experts_cuda(const RouteExpertsParams<Acc>& params, DType dtype, void* workspace,
                               const CudaLaunch& launch);

}  // namespace ltk
