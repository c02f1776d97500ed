// Host entries of the CUDA kernels of topz_gate. Every pointer lies on `launch.device`.
#pragma once

#include "common/cuda/launch.h"
#include "ops/topz_gate/topz_gate.h"

namespace ltk {

// Each queues one kernel on the stream (`launch.counter` is not used) and returns null, or the
// reason why nothing was queued. `dtype` is the element type of the logits. `workspace` are
// topz_gate_workspace(params) bytes.
template <class Acc>
int64_t topz_gate_workspace(const TopzGateParams<Acc>& params);
template <class Acc>
const char* topz_gate_cuda(const TopzGateParams<Acc>& params, DType dtype, void* workspace,
                           const CudaLaunch& launch);
template <class Acc>
const char* topz_gate_gradient_cuda(const TopzGateGradientParams<Acc>& params, DType dtype,
                                    const CudaLaunch& launch);

}  // namespace ltk
