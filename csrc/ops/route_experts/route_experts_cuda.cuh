// RIDE at test time on CUDA. The formulas are in route_experts.h.
//
// A block a row. It goes from expert to expert and stops where the gate says so; the sum of the
// logits stays in the output row, in L1 or L2.
#pragma once

#include "ops/route_experts/route_experts.h"
#include "ops/topz_gate/topz_gate_row_cuda.cuh"

namespace ltk::cuda {

// kWide: z > 64, in `workspace` as in topz_gate_block.
template <class Storage, bool kWide>
__global__ void __launch_bounds__(kTopThreads, 2)
    route_experts(const __grid_constant__ RouteExpertsParams<Accumulate<Storage>> p,
                  Item<Accumulate<Storage>>* __restrict__ workspace) {
  using Acc = Accumulate<Storage>;
  const int z = static_cast<int>(p.z), columns = static_cast<int>(p.columns);
  const int hidden = static_cast<int>(p.hidden), width = static_cast<int>(p.width);
  const GateShared<Acc> shared(1);
  Item<Acc>* pending = shared.pending;
  Acc* top = shared.top;
  if constexpr (kWide) {
    const int64_t items = wide_items(columns);
    pending = workspace + blockIdx.x * (items + z);
    top = reinterpret_cast<Acc*>(pending + items);
  }
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    Acc* const sum = p.mean + row * p.columns;
    const auto logits = [&](int expert) {
      return static_cast<const Storage*>(p.logits[expert]) + row * p.logits_stride[expert];
    };
    int used = 1;
    for (; used < p.experts; ++used) {
      const int router = used - 1;
      if (used == 1) {
        block_top<kWide, true>(logits(0), columns, z, pending, top, nullptr);
      } else {
        // The largest means are the largest sums, divided: division keeps the order.
        block_top<kWide, false>(static_cast<const Acc*>(sum), columns, z, pending, top, nullptr);
        for (int k = threadIdx.x; k < z; k += kTopThreads) top[k] /= static_cast<Acc>(used);
      }
      with_feature<Acc>(p.feature[router], p.feature_dtype, [&](const auto* feature) {
        using Feature = std::remove_const_t<std::remove_pointer_t<decltype(feature)>>;
        const FeatureRows<Feature, 1> v(feature, p.feature_stride[router], row, p.rows);
        inverse_norms(v, width, shared.inverse_norm);
        __syncthreads();
        hidden_units(v, width, p.w1 + router * p.hidden * p.width, p.b1 + router * p.hidden, hidden,
                     shared.inverse_norm, shared.units);
      });
      __syncthreads();
      // Every warp for itself, so that all threads know without another barrier.
      const Acc gate = gate_of(top, z, shared.units, hidden, p.w2 + router * p.w2_stride,
                               p.b2 + router * p.b2_stride);
      if (!(gate > p.threshold)) break;
      const Storage* const next = logits(used);
      const Storage* const first = logits(0);
      for (int c = threadIdx.x; c < columns; c += kTopThreads) {
        sum[c] = (used == 1 ? widen(first[c]) : sum[c]) + widen(next[c]);
      }
      __syncthreads();  // the sums are there, and the shared memory is free again
    }
    const Storage* const first = logits(0);
    for (int c = threadIdx.x; c < columns; c += kTopThreads) {
      sum[c] = used == 1 ? widen(first[c]) : sum[c] / static_cast<Acc>(used);
    }
    if (threadIdx.x == 0) p.used[row] = used;
    __syncthreads();
  }
}

}  // namespace ltk::cuda
