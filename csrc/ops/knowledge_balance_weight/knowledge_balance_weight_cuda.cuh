// The weights of knowledge_balance_weight.h on CUDA, both heads of a row in one visit.
//
//   kernel       columns             a row is                               threads of a row
//   resident     up to 8192          held in registers: read once           8, 32, 256
//   stream       any, and float64    read three times, two of them from L2  512
//
// Three reductions a head: sum, count and maximum; squared distances from the mean; exponentials.
// What is -inf, what lies outside the row included, takes part in none of them.
#pragma once

#include "common/cuda/chunk.cuh"
#include "common/cuda/reduce.cuh"
#include "ops/knowledge_balance_weight/knowledge_balance_weight.h"

namespace ltk::cuda {

template <class Acc>
struct HeadSums {
  Acc sum = 0, count = 0, maximum = -kInfinity<Acc>;
};

struct AddHeadSums {
  template <class Acc>
  __device__ __forceinline__ HeadSums<Acc> operator()(const HeadSums<Acc>& a,
                                                      const HeadSums<Acc>& b) const {
    return {a.sum + b.sum, a.count + b.count, std::fmax(a.maximum, b.maximum)};
  }
};

// The cross-entropy of one head at unit deviation. `each(f)` calls f(z) for the thread's share of
// the row; `target` is the target's logit.
template <class Acc, class Group, class Each>
__device__ __forceinline__ Acc head_cross_entropy(const KnowledgeBalanceWeightParams<Acc>& p,
                                                  Acc target, Group& group, const Each& each) {
  HeadSums<Acc> sums;
  each([&](Acc z) {
    const bool kept = z != -kInfinity<Acc>;
    sums.sum += kept ? z : Acc(0);
    sums.count += kept ? 1 : 0;
    sums.maximum = std::fmax(sums.maximum, z);
  });
  sums = group.all_reduce(sums, AddHeadSums());
  const Acc mean = sums.sum / sums.count;
  Acc squares = 0;
  each([&](Acc z) {
    const Acc distance = z != -kInfinity<Acc> ? z - mean : Acc(0);
    squares = std::fma(distance, distance, squares);
  });
  squares = group.all_reduce(squares, Sum());
  const Acc variance = squares / (sums.count > 2 ? sums.count - 1 : Acc(1));
  const Acc deviation =
      std::sqrt(variance < p.smallest_variance ? p.smallest_variance : variance);  // NaN stays
  const Acc inverse = 1 / deviation, scale = inverse * kLog2E<Acc>;
  Acc exponentials = 0;
  each([&](Acc z) {
    // Where the deviation is infinite -inf is no multiple of it, and must not become NaN.
    exponentials += z != -kInfinity<Acc> ? fast_exp2((z - sums.maximum) * scale) : Acc(0);
  });
  exponentials = group.all_reduce(exponentials, Sum());
  return std::log(exponentials) + (sums.maximum - target) * inverse;
}

template <class Storage>
struct Heads {
  using Acc = Accumulate<Storage>;
  const KnowledgeBalanceWeightParams<Acc>& p;

  __device__ __forceinline__ const Storage* ref(int64_t n) const {
    return static_cast<const Storage*>(p.ref_logits) + n * p.ref_stride;
  }
  __device__ __forceinline__ const Storage* cls(int64_t n) const {
    return static_cast<const Storage*>(p.cls_logits) + n * p.cls_stride;
  }
  __device__ __forceinline__ int64_t target(int64_t n) const {
    const int64_t y = p.target[n];
    device_assert(0 <= y && y < p.columns, "target out of range");
    return y;
  }
  __device__ __forceinline__ Acc weight(Acc of_cls, Acc of_ref) const {
    return of_cls / (of_ref < p.eps ? p.eps : of_ref);  // NaN stays
  }
};

// kRowThreads threads share a row; each holds kHeld chunks of each of its heads.
template <class Storage, int kRowThreads, int kHeld>
__global__ void __launch_bounds__(resident_block(kRowThreads), resident_blocks(kRowThreads))
    knowledge_balance_weight_resident(
        const __grid_constant__ KnowledgeBalanceWeightParams<float> p) {
  constexpr int kRows = resident_block(kRowThreads) / kRowThreads;
  constexpr int kCount = kChunk<Storage>;
  constexpr int kStep = kRowThreads * kCount;
  const Heads<Storage> heads{p};
  const int columns = static_cast<int>(p.columns);
  RowGroup<kRowThreads> group(dynamic_shared());

  for (int64_t first = int64_t{blockIdx.x} * kRows; first < p.rows;
       first += int64_t{gridDim.x} * kRows) {
    // Lanes without a row repeat the last one and keep the result for themselves.
    const int64_t row = first + threadIdx.x / kRowThreads;
    const int64_t n = row < p.rows ? row : p.rows - 1;
    const Storage* const source[2] = {heads.ref(n), heads.cls(n)};
    Chunk<Storage> raw[2][kHeld];  // all loads before the first use: all in flight
    LTK_UNROLL
    for (int h = 0; h < 2; ++h) {
      const RowView<const Storage> view(source[h], group.rank() * kCount - row_head(source[h]),
                                        columns);
      LTK_UNROLL
      for (int i = 0; i < kHeld; ++i) {
        raw[h][i] = view.load_constant(i * kStep, narrow<Storage>(-kInfinity<float>));
      }
    }
    const int64_t y = heads.target(n);
    float of_head[2];
    LTK_UNROLL
    for (int h = 0; h < 2; ++h) {
      of_head[h] = head_cross_entropy(p, widen(source[h][y]), group, [&](auto f) {
        LTK_UNROLL
        for (int i = 0; i < kHeld; ++i) {
          LTK_UNROLL
          for (int j = 0; j < kCount; ++j) f(widen(raw[h][i].value[j]));
        }
      });
    }
    if (row < p.rows && group.rank() == 0) p.weight[row] = heads.weight(of_head[1], of_head[0]);
  }
}

constexpr int kStreamThreads = 512;

template <class Storage>
__global__ void __launch_bounds__(kStreamThreads, 1) knowledge_balance_weight_stream(
    const __grid_constant__ KnowledgeBalanceWeightParams<Accumulate<Storage>> p) {
  using Acc = Accumulate<Storage>;
  constexpr int kCount = kChunk<Storage>;
  const Heads<Storage> heads{p};
  const int columns = static_cast<int>(p.columns);
  BlockGroup group(dynamic_shared());

  for (int64_t n = blockIdx.x; n < p.rows; n += gridDim.x) {
    const int64_t y = heads.target(n);
    const auto of_head = [&](const Storage* source) {
      const int first = group.rank() * kCount - row_head(source);
      const RowView<const Storage> view(source, first, columns);
      return head_cross_entropy(p, widen(source[y]), group, [&](auto f) {
        for (int offset = 0; first + offset < columns; offset += kStreamThreads * kCount) {
          const Chunk<Storage> raw = view.load_constant(offset, narrow<Storage>(-kInfinity<Acc>));
          LTK_UNROLL
          for (int j = 0; j < kCount; ++j) f(widen(raw.value[j]));
        }
      });
    };
    const Acc of_ref = of_head(heads.ref(n)), of_cls = of_head(heads.cls(n));
    if (group.rank() == 0) p.weight[n] = heads.weight(of_cls, of_ref);
  }
}

}  // namespace ltk::cuda
