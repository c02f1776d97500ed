// One loop over a buffer in the first-level cache for each instruction set: exp2 alone.
#include "common/cpu/simd.h"

namespace ltk::LTK_ISA {

float sum_of_exp2(const float* x, int64_t n);

float sum_of_exp2(const float* x, int64_t n) {
  constexpr int L = kLanes<float>;
  Vec<float> sum[4] = {};
  for (int64_t i = 0; i + 4 * L <= n; i += 4 * L)
    for (int k = 0; k < 4; k++) sum[k] += exp2(load(x + i + k * L));
  return horizontal_sum<float>((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

}  // namespace ltk::LTK_ISA
