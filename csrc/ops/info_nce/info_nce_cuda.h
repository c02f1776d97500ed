// Host entries of the CUDA kernels of info_nce. Every pointer lies on `launch.device`.
#pragma once

#include "common/cuda/launch.h"
#include "ops/info_nce/info_nce.h"

namespace ltk {

// Sets `parts` for the device: with what is else in the params, before the other two.
template <class Acc>
const char* info_nce_cuda_plan(InfoNceParams<Acc>& params, int device);

// Values that `workspace` must hold.
template <class Acc>
int64_t info_nce_cuda_workspace(const InfoNceParams<Acc>& params);

// Queues two kernels on the stream. Returns null, or the reason why they were not queued.
template <class Acc>
const char* info_nce_cuda(const InfoNceParams<Acc>& params, const CudaLaunch& launch);

#define LTK_DECLARE(Acc)                                      \
  template <>                                                 \
  const char* info_nce_cuda_plan(InfoNceParams<Acc>&, int);   \
  template <>                                                 \
  int64_t info_nce_cuda_workspace(const InfoNceParams<Acc>&); \
  template <>                                                 \
  const char* info_nce_cuda(const InfoNceParams<Acc>&, const CudaLaunch&);
LTK_DECLARE(float)
LTK_DECLARE(double)
#undef LTK_DECLARE

}  // namespace ltk
