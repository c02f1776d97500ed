// The hidden layer of the gate on CUDA: what topz_gate and route_experts share.
#pragma once

#include "common/cuda/topz.cuh"
#include "ops/topz_gate/topz_gate.h"

namespace ltk::cuda {

// f(row 0 of the features in their own type).
template <class Acc, class F>
__device__ __forceinline__ void with_feature(const void* feature, DType dtype, F f) {
  if constexpr (sizeof(Acc) == 8) {
    f(static_cast<const double*>(feature));
  } else {
    if (dtype == DType::Float32) f(static_cast<const float*>(feature));
    if (dtype == DType::Float16) f(static_cast<const Half*>(feature));
    if (dtype == DType::BFloat16) f(static_cast<const BFloat16*>(feature));
  }
}

// Rows of features that a block's hidden layer takes together.
template <class Storage, int kRows>
struct FeatureRows {
  const Storage* row[kRows];

  // Rows that are missing at the end repeat the last one.
  __device__ __forceinline__ FeatureRows(const Storage* feature, int64_t stride, int64_t first,
                                         int64_t rows) {
    LTK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      row[r] = feature + (first + r < rows ? first + r : rows - 1) * stride;
    }
  }
};

// inverse_norm[r], as topz_gate.h has it: a warp a row.
template <class Storage, int kRows>
__device__ __forceinline__ void inverse_norms(const FeatureRows<Storage, kRows>& v, int width,
                                              Accumulate<Storage>* inverse_norm) {
  using Acc = Accumulate<Storage>;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  LTK_UNROLL
  for (int r = 0; r < kRows; ++r) {
    if (warp != r) continue;
    Acc sum = 0;
    for (int d = lane; d < width; d += kWarp) {
      const Acc x = widen(v.row[r][d]);
      sum += x * x;
    }
    const Acc norm = std::sqrt(LaneGroup<kWarp>(nullptr).all_reduce(sum, Sum()));
    if (lane == 0) {
      inverse_norm[r] = norm < Acc(kLeastNorm) ? -1 / Acc(kLeastNorm) : 1 / norm;
    }
  }
}

// units[r, j] = relu(b1[j] + |inverse_norm[r]| w1[j] . v[r]): a warp a unit, for all rows at once.
template <class Storage, int kRows, class Acc>
__device__ __forceinline__ void hidden_units(const FeatureRows<Storage, kRows>& v, int width,
                                             const Acc* w1, const Acc* b1, int hidden,
                                             const Acc* inverse_norm, Acc* units) {
  const int lane = threadIdx.x % kWarp;
  for (int j = threadIdx.x / kWarp; j < hidden; j += kTopWarps) {
    Acc sum[kRows] = {};
    for (int d = lane; d < width; d += kWarp) {
      const Acc w = __ldg(w1 + static_cast<int64_t>(j) * width + d);
      LTK_UNROLL
      for (int r = 0; r < kRows; ++r) sum[r] += w * widen(v.row[r][d]);
    }
    LTK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Acc x =
          LaneGroup<kWarp>(nullptr).all_reduce(sum[r], Sum()) * std::fabs(inverse_norm[r]) + b1[j];
      if (lane == 0) units[r * hidden + j] = x <= 0 ? Acc(0) : x;  // NaN stays
    }
  }
}

// The gate of a row, in every lane of a warp.
template <class Acc>
__device__ __forceinline__ Acc gate_of(const Acc* top, int z, const Acc* units, int hidden,
                                       const Acc* w2, const Acc* b2) {
  const int lane = threadIdx.x % kWarp;
  Acc sum = 0;
  for (int k = lane; k < z; k += kWarp) sum += w2[k] * top[k];
  for (int j = lane; j < hidden; j += kWarp) sum += w2[z + j] * units[j];
  return LaneGroup<kWarp>(nullptr).all_reduce(sum, Sum()) + *b2;
}

// Shared memory of a block that works on kRows rows: lists, units, norms, the top values.
template <class Acc>
struct GateShared {
  Item<Acc>* pending;
  Acc* inverse_norm;  // [rows]
  Acc* top;           // [rows, 64]
  Acc* units;         // [rows, h]

  static __host__ __device__ int64_t bytes(int rows, int64_t hidden) {
    return static_cast<int64_t>(sizeof(Item<Acc>)) * kTopWarps * kListed +
           static_cast<int64_t>(sizeof(Acc)) * rows * (kListed + 2 + hidden);
  }
  __device__ __forceinline__ explicit GateShared(int rows) {
    unsigned char* const shared = dynamic_shared();
    pending = reinterpret_cast<Item<Acc>*>(shared);
    top = reinterpret_cast<Acc*>(pending + kTopWarps * kListed);
    inverse_norm = top + rows * kListed;
    units = inverse_norm + 2 * rows;
  }
};

}  // namespace ltk::cuda
