// Host entries of the CUDA kernels of routing.h. Every pointer lies on `launch.device`.
#pragma once

#include "common/cuda/launch.h"
#include "ops/routing/routing.h"

namespace ltk {

// Each queues one kernel on the stream and returns null, or the reason why nothing was queued.
// `dtype` is the element type of the gates, of the logits. routing_target does not use the counter.
template <class Acc>
const char* routing_loss_cuda(const RoutingLossParams<Acc>& params, DType dtype,
                              const CudaLaunch& launch);
const char* routing_target_cuda(const RoutingTargetParams& params, DType dtype,
                                const CudaLaunch& launch);

}  // namespace ltk
