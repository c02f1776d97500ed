// Backward of every fused loss: the gradient saved by the forward pass times what comes from above.
//
//   out[n, c] = gradient[n, c] * (upstream[n or 0] * scale[n])
//
// in the arithmetic of Acc. The saved gradient is not touched: backward can run twice. Bytes that
// must move: the gradient read once, the result written once.
#pragma once

#include "common/dtype.h"

namespace ltk {

template <class Acc>
struct ScaleGradientParams {
  int64_t rows;     // N
  int64_t columns;  // C

  const void* gradient;     // [N, C] contiguous
  const Acc* upstream;      // [N], or [1] with stride 0
  int64_t upstream_stride;  // 1 or 0
  const Acc* scale;         // [N] or null
  void* out;                // [N, C] contiguous
};

}  // namespace ltk
