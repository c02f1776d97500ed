// topz_gate on CUDA. The formulas are in topz_gate.h.
//
// Forward, bytes: logits and features once. Few columns: a warp a row, eight rows a block, which
// share each load of w1. Many: a block a row. z > 64: a block a row that sorts it.
//
// Backward is one launch of blocks with three roles: tiles of d_w1 (32 columns of 4 units), the
// other weights' gradients (32 of them), and rows of d_logits and d_feature. Sums over the rows are
// taken by eight warps, each every eighth row in order, and added up in the order of the warps.
#pragma once

#include "ops/topz_gate/topz_gate_row_cuda.cuh"

namespace ltk::cuda {

// ---- Forward ------------------------------------------------------------------------------------

// What backward wants of the hidden layer of kRows rows.
template <int kRows, class Acc>
__device__ __forceinline__ void keep_hidden(const TopzGateParams<Acc>& p, int64_t first,
                                            const GateShared<Acc>& shared) {
  const int hidden = static_cast<int>(p.hidden);
  const int64_t rows = p.rows - first < kRows ? p.rows - first : kRows;
  if (p.units) {
    for (int i = threadIdx.x; i < rows * hidden; i += kTopThreads) {
      p.units[first * hidden + i] = shared.units[i];
    }
  }
  if (p.inverse_norm && static_cast<int>(threadIdx.x) < rows) {
    p.inverse_norm[first + threadIdx.x] = shared.inverse_norm[threadIdx.x];
  }
}

template <int kRows, class Acc>
__device__ __forceinline__ void hidden_layer(const TopzGateParams<Acc>& p, int64_t first,
                                             const GateShared<Acc>& shared) {
  with_feature<Acc>(p.feature, p.feature_dtype, [&](const auto* feature) {
    using Feature = std::remove_const_t<std::remove_pointer_t<decltype(feature)>>;
    const FeatureRows<Feature, kRows> v(feature, p.feature_stride, first, p.rows);
    const int width = static_cast<int>(p.width);
    inverse_norms(v, width, shared.inverse_norm);
    __syncthreads();
    hidden_units(v, width, p.w1, p.b1, static_cast<int>(p.hidden), shared.inverse_norm,
                 shared.units);
  });
  __syncthreads();
  keep_hidden<kRows>(p, first, shared);
}

template <class Storage>
__global__ void __launch_bounds__(kTopThreads, 2)
    topz_gate_warp(const __grid_constant__ TopzGateParams<Accumulate<Storage>> p) {
  using Acc = Accumulate<Storage>;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int z = static_cast<int>(p.z), hidden = static_cast<int>(p.hidden);
  const GateShared<Acc> shared(kTopWarps);
  for (int64_t first = int64_t{blockIdx.x} * kTopWarps; first < p.rows;
       first += int64_t{gridDim.x} * kTopWarps) {
    const int64_t row = first + warp;
    if (row < p.rows) {
      const Storage* const logits = static_cast<const Storage*>(p.logits) + row * p.logits_stride;
      const WarpList<Acc> best = warp_top<true>(logits, static_cast<int>(p.columns), z, 0, 1,
                                                shared.pending + warp * kListed);
      Acc* const top = shared.top + warp * kListed;
      write_top(best, z, top, p.index ? p.index + row * z : nullptr);
      __syncwarp();
      for (int k = lane; p.top && k < z; k += kWarp) p.top[row * z + k] = top[k];
    }
    hidden_layer<kTopWarps>(p, first, shared);
    if (row < p.rows) {
      const Acc gate =
          gate_of(shared.top + warp * kListed, z, shared.units + warp * hidden, hidden, p.w2, p.b2);
      if (lane == 0) p.gate[row] = gate;
    }
    __syncthreads();  // the shared memory is free again
  }
}

// `workspace` holds, a block, wide_items(C) items, and z values for a row whose top is not kept.
template <class Storage, bool kWide>
__global__ void __launch_bounds__(kTopThreads, 2)
    topz_gate_block(const __grid_constant__ TopzGateParams<Accumulate<Storage>> p,
                    Item<Accumulate<Storage>>* __restrict__ workspace) {
  using Acc = Accumulate<Storage>;
  const int z = static_cast<int>(p.z), columns = static_cast<int>(p.columns);
  const GateShared<Acc> shared(1);
  Item<Acc>* pending = shared.pending;
  Acc* top = shared.top;
  if constexpr (kWide) {
    const int64_t items = wide_items(columns);
    pending = workspace + blockIdx.x * (items + z);
    top = reinterpret_cast<Acc*>(pending + items);
  }
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const Storage* const logits = static_cast<const Storage*>(p.logits) + row * p.logits_stride;
    block_top<kWide, true>(logits, columns, z, pending, top, p.index ? p.index + row * z : nullptr);
    for (int k = threadIdx.x; p.top && k < z; k += kTopThreads) p.top[row * z + k] = top[k];
    hidden_layer<1>(p, row, shared);
    if (threadIdx.x < kWarp) {
      const Acc gate = gate_of(top, z, shared.units, static_cast<int>(p.hidden), p.w2, p.b2);
      if (threadIdx.x == 0) p.gate[row] = gate;
    }
    __syncthreads();  // lists, units and top are free again
  }
}

// ---- Backward -----------------------------------------------------------------------------------

constexpr int kUnitsATile = 4;

template <class Acc>
__device__ __forceinline__ Acc unit_slope(const TopzGateGradientParams<Acc>& p, int64_t n, int j) {
  return p.units[n * p.hidden + j] <= 0 ? Acc(0) : p.upstream[n] * p.w2[p.z + j];
}

// out(i, lane, sum over all rows n of term(n)[i]).
template <int kTerms, class Acc, class Term, class Out>
__device__ __forceinline__ void sum_over_rows(int64_t rows, Term term, Out out) {
  Acc* const shared = reinterpret_cast<Acc*>(dynamic_shared());  // [kTopWarps, kTerms, kWarp]
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  Acc sum[kTerms] = {};
  for (int64_t n = warp; n < rows; n += kTopWarps) term(n, sum);
  LTK_UNROLL
  for (int i = 0; i < kTerms; ++i) shared[(warp * kTerms + i) * kWarp + lane] = sum[i];
  __syncthreads();
  if (warp < kTerms) {
    Acc total = 0;
    for (int w = 0; w < kTopWarps; ++w) total += shared[(w * kTerms + warp) * kWarp + lane];
    out(warp, total);
  }
}

template <class Acc>
__device__ __forceinline__ void d_w1_tile(const TopzGateGradientParams<Acc>& p, int tile) {
  const int across = static_cast<int>((p.width + kWarp - 1) / kWarp);
  const int64_t d = int64_t{tile % across} * kWarp + threadIdx.x % kWarp;
  const int first = tile / across * kUnitsATile;
  const bool inside = d < p.width;
  with_feature<Acc>(p.feature, p.feature_dtype, [&](const auto* feature) {
    sum_over_rows<kUnitsATile, Acc>(
        p.rows,
        [&](int64_t n, Acc(&sum)[kUnitsATile]) {
          const Acc x = inside ? widen(feature[n * p.feature_stride + d]) : Acc(0);
          const Acc unit = x * std::fabs(p.inverse_norm[n]);
          LTK_UNROLL
          for (int u = 0; u < kUnitsATile; ++u) {
            if (first + u < p.hidden) sum[u] += unit_slope(p, n, first + u) * unit;
          }
        },
        [&](int u, Acc total) {
          if (inside && first + u < p.hidden) p.d_w1[(first + u) * p.width + d] = total;
        });
  });
}

// d_w2, d_b1 and d_b2, one after the other.
template <class Acc>
__device__ __forceinline__ void d_vectors_tile(const TopzGateGradientParams<Acc>& p, int64_t tile) {
  const int64_t at = tile * kWarp + threadIdx.x % kWarp;
  const int64_t of_w2 = p.z + p.hidden, of_b1 = of_w2 + p.hidden;
  sum_over_rows<1, Acc>(
      p.rows,
      [&](int64_t n, Acc(&sum)[1]) {
        if (at < p.z) {
          sum[0] += p.upstream[n] * p.top[n * p.z + at];
        } else if (at < of_w2) {
          sum[0] += p.upstream[n] * p.units[n * p.hidden + at - p.z];
        } else if (at < of_b1) {
          sum[0] += unit_slope(p, n, static_cast<int>(at - of_w2));
        } else {
          sum[0] += p.upstream[n];
        }
      },
      [&](int, Acc total) {
        if (at < of_w2) {
          p.d_w2[at] = total;
        } else if (at < of_b1) {
          p.d_b1[at - of_w2] = total;
        } else if (at == of_b1) {
          *p.d_b2 = total;
        }
      });
}

template <class Storage, class Acc>
__device__ __forceinline__ void d_logits_row(const TopzGateGradientParams<Acc>& p, int64_t n) {
  Storage* const row = static_cast<Storage*>(p.d_logits) + n * p.columns;
  constexpr int kCount = kChunk<Storage>;
  const RowView<Storage> out(row, static_cast<int>(threadIdx.x) * kCount - row_head(row),
                             static_cast<int>(p.columns));
  const Chunk<Storage> zeros = {};
  for (int offset = 0; out.column + offset < p.columns; offset += kTopThreads * kCount) {
    out.store(offset, zeros);
  }
  __syncthreads();
  for (int64_t k = threadIdx.x; k < p.z; k += kTopThreads) {
    const int32_t c = p.index[n * p.z + k];
    if (c >= 0) row[c] = narrow<Storage>(p.upstream[n] * p.w2[k]);
  }
}

template <class Acc>
__device__ __forceinline__ void d_feature_row(const TopzGateGradientParams<Acc>& p, int64_t n) {
  BlockGroup group(dynamic_shared());
  Acc* const slope = reinterpret_cast<Acc*>(dynamic_shared() + scratch_bytes(kTopThreads));
  const int width = static_cast<int>(p.width), hidden = static_cast<int>(p.hidden);
  for (int j = threadIdx.x; j < hidden; j += kTopThreads) slope[j] = unit_slope(p, n, j);
  __syncthreads();
  const auto of_unit = [&](int d) {
    Acc sum = 0;
    for (int j = 0; j < hidden; ++j) sum += slope[j] * __ldg(p.w1 + int64_t{j} * width + d);
    return sum;
  };
  const bool least = p.inverse_norm[n] < 0;
  const Acc r = std::fabs(p.inverse_norm[n]);
  with_feature<Acc>(p.feature, p.feature_dtype, [&](const auto* feature) {
    using Feature = std::remove_const_t<std::remove_pointer_t<decltype(feature)>>;
    const Feature* const v = feature + n * p.feature_stride;
    Feature* const out = static_cast<Feature*>(p.d_feature) + n * width;
    Acc along = 0;
    for (int d = threadIdx.x; d < width && !least; d += kTopThreads) {
      along += widen(v[d]) * r * of_unit(d);
    }
    along = group.all_reduce(along, Sum());
    for (int d = threadIdx.x; d < width; d += kTopThreads) {
      const Acc a = of_unit(d);
      out[d] = narrow<Feature>(r * (least ? a : a - widen(v[d]) * r * along));
    }
  });
  __syncthreads();  // slope and scratch are free again
}

// Blocks 0 .. w1_tiles - 1 of the grid, then `vector_tiles`, then the rows.
template <class Storage>
__global__ void __launch_bounds__(kTopThreads, 2)
    topz_gate_gradient(const __grid_constant__ TopzGateGradientParams<Accumulate<Storage>> p,
                       int64_t w1_tiles, int64_t vector_tiles) {
  const int64_t block = blockIdx.x, tiles = w1_tiles + vector_tiles;
  if (block < w1_tiles) return d_w1_tile(p, static_cast<int>(block));
  if (block < tiles) return d_vectors_tile(p, block - w1_tiles);
  for (int64_t n = block - tiles; n < p.rows; n += gridDim.x - tiles) {
    if (p.d_logits) d_logits_row<Storage>(p, n);
    if (p.d_feature) d_feature_row(p, n);
  }
}

constexpr int sum_bytes(int size) { return kTopWarps * kUnitsATile * kWarp * size; }

}  // namespace ltk::cuda
