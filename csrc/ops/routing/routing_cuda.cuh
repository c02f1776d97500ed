// The routers' loss and labels on CUDA. The formulas are in routing.h.
//
// The loss: a thread an element; the block that finishes last adds them up in their order. The
// labels: a warp a row of few columns, a block a row of many; every logit is read once, in 16-byte
// chunks, and compared with the sum at the target.
#pragma once

#include "common/cuda/chunk.cuh"
#include "common/cuda/reduce.cuh"
#include "ops/routing/routing.h"

namespace ltk::cuda {

constexpr int kRoutingThreads = 256;

template <class Acc>
__device__ __forceinline__ Acc weighted(Acc weight, Acc term) {
  return weight == 0 && term == kInfinity<Acc> ? Acc(0) : weight * term;
}

template <class Storage>
__global__ void __launch_bounds__(kRoutingThreads)
    routing_loss(const __grid_constant__ RoutingLossParams<Accumulate<Storage>> p,
                 unsigned* __restrict__ counter) {
  using Acc = Accumulate<Storage>;
  const Storage* const gate = static_cast<const Storage*>(p.gate);
  const Acc factor = p.reduction == Reduction::Mean ? 1 / static_cast<Acc>(p.count) : Acc(1);
  const int64_t step = int64_t{gridDim.x} * kRoutingThreads;
  for (int64_t i = int64_t{blockIdx.x} * kRoutingThreads + threadIdx.x; i < p.count; i += step) {
    const Acc g = widen(gate[i]);
    const Acc y = p.help_flag ? static_cast<Acc>(p.help_flag[i]) : p.help_share[i];
    const Acc e = std::exp(-std::fabs(g)), rest = std::log1p(e);
    const Acc up = p.pos_weight * y, down = 1 - y;
    const Acc of_negative = (g < 0 ? -g : Acc(0)) + rest;  // softplus(-g)
    const Acc of_positive = (g < 0 ? Acc(0) : g) + rest;
    p.each[i] = weighted(up, of_negative) + weighted(down, of_positive);
    if (p.grad) {
      const Acc larger = 1 / (1 + e), smaller = e / (1 + e);
      p.grad[i] = factor * (down * (g < 0 ? smaller : larger) - up * (g < 0 ? larger : smaller));
    }
  }
  unsigned char* const scratch = dynamic_shared();
  if (p.reduction == Reduction::None || !is_last_block(counter, scratch)) return;
  const double sum =
      block_sum(p.count, scratch, [&](int64_t i) { return double(__ldcg(p.each + i)); });
  if (threadIdx.x == 0) {
    *p.loss = static_cast<Acc>(p.reduction == Reduction::Mean ? sum / double(p.count) : sum);
  }
}

struct Or {
  __device__ __forceinline__ unsigned operator()(unsigned a, unsigned b) const { return a | b; }
};

// kRowThreads share a row. kExperts 0: any number, at the price of local memory. The least number
// of blocks keeps ptxas from saving registers that nobody needs, and spilling for it.
template <class Storage, int kRowThreads, int kExperts>
__global__ void __launch_bounds__(kRoutingThreads, 2)
    routing_target(const __grid_constant__ RoutingTargetParams p) {
  using Acc = Accumulate<Storage>;
  constexpr int kRows = kRoutingThreads / kRowThreads;
  constexpr int kCount = kChunk<Storage>;
  constexpr int kMost = kExperts ? kExperts : kMostRoutedExperts;
  RowGroup<kRowThreads> group(dynamic_shared());
  const int experts = kExperts ? kExperts : p.experts;
  const int columns = static_cast<int>(p.columns);

  for (int64_t first = int64_t{blockIdx.x} * kRows; first < p.rows;
       first += int64_t{gridDim.x} * kRows) {
    // Lanes without a row repeat the last one and keep the result for themselves.
    const int64_t mine = first + threadIdx.x / kRowThreads;
    const int64_t row = mine < p.rows ? mine : p.rows - 1;
    const int64_t y = p.target[row];
    device_assert(0 <= y && y < p.columns, "target out of range");
    const auto logits = [&](int k) {
      return static_cast<const Storage*>(p.logits[k]) + row * p.logits_stride[k];
    };
    Acc of_target[kMost];
    LTK_UNROLL
    for (int k = 0; k < kMost; ++k) {
      if (k >= experts) break;
      of_target[k] = widen(logits(k)[y]);
      if (k > 0) of_target[k] += of_target[k - 1];
    }
    unsigned wrong = 0;
    const int start = group.rank() * kCount - row_head(logits(0));
    for (int at = start; at < columns; at += kRowThreads * kCount) {
      Acc sum[kCount] = {};
      LTK_UNROLL
      for (int k = 0; k < kMost; ++k) {
        if (k >= experts) break;
        const RowView<const Storage> view(logits(k), at, columns);
        const auto chunk = view.load_constant(0, narrow<Storage>(Acc(0)));
        LTK_UNROLL
        for (int j = 0; j < kCount; ++j) {
          const Acc x = widen(chunk.value[j]);
          sum[j] = k == 0 ? x : sum[j] + x;
          const int c = at + j;
          const bool inside = static_cast<unsigned>(c) < static_cast<unsigned>(columns);
          // What is as large before the target, larger behind it; NaN is the largest.
          const bool larger = of_target[k] == of_target[k] && !(sum[j] <= of_target[k]);
          const bool as_large =
              !(sum[j] < of_target[k]) && (of_target[k] == of_target[k] || sum[j] != sum[j]);
          const bool beats = inside && c != y && (c < y ? as_large : larger);
          wrong |= static_cast<unsigned>(beats) << k;
        }
      }
    }
    wrong = group.all_reduce(wrong, Or());
    const unsigned right = ~wrong & ((1u << experts) - 1u);
    for (int k = group.rank(); k + 1 < experts && mine < p.rows; k += kRowThreads) {
      // Wrong itself, and a later one right.
      p.needs_help[k * p.rows + row] = (right >> k & 1u) == 0 && right >> k != 0;
    }
  }
}

}  // namespace ltk::cuda
