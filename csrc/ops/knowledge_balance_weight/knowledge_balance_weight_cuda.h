// Host entry of the CUDA kernels of knowledge_balance_weight. Every pointer lies on
// `launch.device`.
#pragma once

#include "common/cuda/launch.h"
#include "ops/knowledge_balance_weight/knowledge_balance_weight.h"

namespace ltk {

// Queues one kernel on the stream (`launch.counter` is not used). `dtype` is the element type of
// both logits. Returns null, or the reason why nothing was queued.
template <class Acc>
const char* knowledge_balance_weight_cuda(const KnowledgeBalanceWeightParams<Acc>& params,
                                          DType dtype, const CudaLaunch& launch);

template <>
const char* knowledge_balance_weight_cuda(const KnowledgeBalanceWeightParams<float>&, DType,
                                          const CudaLaunch&);
template <>
const char* knowledge_balance_weight_cuda(const KnowledgeBalanceWeightParams<double>&, DType,
                                          const CudaLaunch&);

}  // namespace ltk
