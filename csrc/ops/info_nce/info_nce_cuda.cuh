// InfoNCE and the gradient of its query on CUDA. The formulas are in info_nce.h.
//
// Both products are made in one kernel, block of the queue by block of the queue, so that neither
// similarities nor exponentials leave the multiprocessor:
//
//   kernel     a block of threads is                            writes
//   partial    16 kRows rows x a part of the queue              maximum, sum, accumulator of a part
//   finish     a row                                            loss and gradient, parts merged
//
// partial, 256 threads as 16 x 16: 64 rows of the queue at a time, columns in chunks of 64 through
// shared memory. A thread has kRows x 4 similarities, then kRows x kWide / 16 columns of the
// accumulator, all in registers. 16 lanes share a row, so its maximum is four shuffles.
//
// Why plain multiply-adds and not cuBLAS: cuBLAS in blocks writes and reads the similarities and
// exponentials, and can neither be linked nor run here; this kernel can be run on the CPU (simt.h).
// What it costs, from the instruction counts (not measured, there was no GPU): 4 N Q D operations
// at half to two thirds of the FP32 peak, shared memory being the limit; at D > 512 the
// similarities are made again for every 512 columns: 6 N Q D at D = 1024. TF32 tensor cores
// have several times that rate, at a relative error of 2^-11. Global memory: the queue is read
// twice (once for D <= 64), the second time from L2, and once more for each further tile of rows.
#pragma once

#include "common/cuda/reduce.cuh"
#include "ops/info_nce/info_nce.h"

namespace ltk::cuda {

constexpr int kPartialThreads = 256;
constexpr int kSide = 16;            // the threads are kSide x kSide
constexpr int kDepth = 64;           // columns at a time
constexpr int kStride = kDepth + 4;  // 16-byte accesses of neighbouring rows hit different banks
static_assert(kQueueBlock == kDepth, "exponentials take the place of the query's columns");

template <class Acc>
struct alignas(16) Four {
  Acc value[4];
};
// From shared memory.
__device__ __forceinline__ Four<float> load_four(const float* p) {
  return bit_cast<Four<float>>(load16(p));
}
__device__ __forceinline__ Four<double> load_four(const double* p) {
  const uint4 words[2] = {load16(p), load16(p + 2)};
  Four<double> x;
  memcpy(&x, words, sizeof(x));
  return x;
}

// Parts of the workspace: maxima and sums [parts][N] each, accumulators [parts][N][D].
template <class Acc>
struct InfoNceWorkspace {
  const InfoNceParams<Acc>& p;
  __host__ __device__ int64_t size() const {
    return p.parts * p.rows * (2 + (p.grad ? p.columns : 0));
  }
  __device__ __forceinline__ Acc* maximum(int64_t part, int64_t n) const {
    return p.workspace + part * p.rows + n;
  }
  __device__ __forceinline__ Acc* sum(int64_t part, int64_t n) const {
    return maximum(p.parts + part, n);
  }
  __device__ __forceinline__ Acc* acc(int64_t part, int64_t n) const {
    return p.workspace + 2 * p.parts * p.rows + (part * p.rows + n) * p.columns;
  }
};

// f(Storage{}) for the type of a matrix. Float64 comes with double alone.
template <class Acc, class F>
__device__ __forceinline__ void with_storage(DType dtype, F f) {
  if (std::is_same_v<Acc, double> && dtype == DType::Float64) return f(double{});
  if (dtype == DType::Float16) return f(Half{});
  if (dtype == DType::BFloat16) return f(BFloat16{});
  f(float{});
}

// kRows x kDepth values of a matrix, from row `first` and column `column` on, into shared memory;
// 0 beyond `rows` and `columns`. Neighbouring threads read neighbouring memory.
template <int kRows, class Acc>
__device__ __forceinline__ void stage(const StridedMatrix& m, int64_t first, int64_t rows,
                                      int64_t column, int64_t columns, Acc* shared) {
  constexpr int kEach = kRows * kDepth / kPartialThreads, kBatch = kEach < 8 ? kEach : 8;
  const bool by_row = m.row_stride == 1 && m.column_stride != 1;
  with_storage<Acc>(m.dtype, [&](auto type) {
    using Storage = decltype(type);
    const Storage* const data = static_cast<const Storage*>(m.data);
    for (int i = 0; i < kEach; i += kBatch) {
      Acc value[kBatch];
      LTK_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        const int at = threadIdx.x + (i + b) * kPartialThreads;
        const int row = by_row ? at % kRows : at / kDepth, d = by_row ? at / kRows : at % kDepth;
        const bool inside = first + row < rows && column + d < columns;
        value[b] =
            inside ? Acc(widen(data[(first + row) * m.row_stride + (column + d) * m.column_stride]))
                   : Acc(0);
      }
      LTK_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        const int at = threadIdx.x + (i + b) * kPartialThreads;
        const int row = by_row ? at % kRows : at / kDepth, d = by_row ? at / kRows : at % kDepth;
        shared[row * kStride + d] = value[b];
      }
    }
  });
}

template <class Acc>
__device__ __forceinline__ Acc row_scale(const InfoNceParams<Acc>& p, int64_t n) {
  return kLog2E<Acc> / (p.row_temperature && n < p.rows ? p.row_temperature[n] : p.temperature);
}
// What sums under an earlier maximum are multiplied by. Where both are infinite there is no
// difference.
template <class Acc>
__device__ __forceinline__ Acc raised(Acc before, Acc now, Acc scale) {
  return before == now ? Acc(1) : fast_exp2((before - now) * scale);
}
// What exponents refer to. Before the first similarity above -inf all exponentials are 0 anyhow.
template <class Acc>
__device__ __forceinline__ Acc origin_of(Acc maximum) {
  return maximum == -kInfinity<Acc> ? Acc(0) : maximum;
}

template <class Acc>
constexpr int info_nce_shared(int rows) {
  return (16 * rows + kQueueBlock) * kStride * static_cast<int>(sizeof(Acc));
}

// kRows: rows of the query a thread has, kWide: columns of the accumulator a block has.
template <class Acc, int kRows, int kWide>
__global__ void __launch_bounds__(kPartialThreads,
                                  std::is_same_v<Acc, float>&& kWide <= 128 ? 2 : 1)
    info_nce_partial(const __grid_constant__ InfoNceParams<Acc> p) {
  constexpr int kTile = kSide * kRows, kPasses = kWide / kDepth;
  const InfoNceWorkspace<Acc> workspace{p};
  Acc* const query = reinterpret_cast<Acc*>(dynamic_shared());  // [kTile][kStride], then e
  Acc* const queue = query + kTile * kStride;                   // [kQueueBlock][kStride]
  Acc* const e = query;                                         // [kTile][kStride]
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;

  const int64_t slices = p.grad ? (p.columns + kWide - 1) / kWide : 1;
  const int64_t tiles = (p.rows + kTile - 1) / kTile;
  const int64_t slice = blockIdx.x % slices, tile = blockIdx.x / slices % tiles;
  const int64_t part = blockIdx.x / slices / tiles;
  const int64_t begin = part * p.part_rows;
  const int64_t end = begin + p.part_rows < p.queue_rows ? begin + p.part_rows : p.queue_rows;

  Acc maximum[kRows], sum[kRows], scale[kRows];
  Acc acc[kPasses][kRows][4];
  LTK_UNROLL
  for (int r = 0; r < kRows; ++r) {
    maximum[r] = -kInfinity<Acc>;
    sum[r] = 0;
    scale[r] = row_scale(p, tile * kTile + y + kSide * r);
    LTK_UNROLL
    for (int i = 0; i < kPasses; ++i) {
      LTK_UNROLL
      for (int c = 0; c < 4; ++c) acc[i][r][c] = 0;
    }
  }

  for (int64_t at = begin; at < end; at += kQueueBlock) {
    Acc s[kRows][4];  // rows y + 16 r against rows x + 16 j of the queue
    LTK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      LTK_UNROLL
      for (int j = 0; j < 4; ++j) s[r][j] = 0;
    }
    for (int64_t d = 0; d < p.columns; d += kDepth) {
      __syncthreads();  // what was staged before has been used
      stage<kTile>(p.query, tile * kTile, p.rows, d, p.columns, query);
      stage<kQueueBlock>(p.queue, at, end, d, p.columns, queue);
      __syncthreads();
      for (int k = 0; k < kDepth; k += 4) {
        Four<Acc> u[4];
        LTK_UNROLL
        for (int j = 0; j < 4; ++j) u[j] = load_four(queue + (x + kSide * j) * kStride + k);
        LTK_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const Four<Acc> v = load_four(query + (y + kSide * r) * kStride + k);
          LTK_UNROLL
          for (int j = 0; j < 4; ++j) {
            LTK_UNROLL
            for (int i = 0; i < 4; ++i) {
              s[r][j] = std::fma(v.value[i], u[j].value[i], s[r][j]);
            }
          }
        }
      }
    }

    Acc correction[kRows];
    LTK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      Acc top = maximum[r];
      LTK_UNROLL
      for (int j = 0; j < 4; ++j) {
        if (at + x + kSide * j >= end) s[r][j] = -kInfinity<Acc>;
        top = std::fmax(top, s[r][j]);
      }
      top = LaneGroup<kSide>(nullptr).all_reduce(top, Max());
      correction[r] = raised(maximum[r], top, scale[r]);
      maximum[r] = top;
      sum[r] *= correction[r];
      LTK_UNROLL
      for (int j = 0; j < 4; ++j) {
        s[r][j] = fast_exp2((s[r][j] - origin_of(top)) * scale[r]);
        sum[r] += s[r][j];
      }
    }
    if (!p.grad) continue;

    __syncthreads();  // the query's columns have been used
    LTK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      LTK_UNROLL
      for (int j = 0; j < 4; ++j) e[(y + kSide * r) * kStride + x + kSide * j] = s[r][j];
    }
    LTK_UNROLL
    for (int i = 0; i < kPasses; ++i) {
      const int64_t first = slice * kWide + i * kDepth;
      if (first < p.columns) {
        if (p.columns > kDepth) {  // else the queue's columns are still there
          if (i > 0) __syncthreads();
          stage<kQueueBlock>(p.queue, at, end, first, p.columns, queue);
        }
        __syncthreads();
        Acc added[kRows][4];  // columns first + 4 x + c
        LTK_UNROLL
        for (int r = 0; r < kRows; ++r) {
          LTK_UNROLL
          for (int c = 0; c < 4; ++c) added[r][c] = 0;
        }
        for (int j = 0; j < kQueueBlock; j += 4) {
          Four<Acc> u[4];
          LTK_UNROLL
          for (int k = 0; k < 4; ++k) u[k] = load_four(queue + (j + k) * kStride + 4 * x);
          LTK_UNROLL
          for (int r = 0; r < kRows; ++r) {
            const Four<Acc> v = load_four(e + (y + kSide * r) * kStride + j);
            LTK_UNROLL
            for (int k = 0; k < 4; ++k) {
              LTK_UNROLL
              for (int c = 0; c < 4; ++c) {
                added[r][c] = std::fma(v.value[k], u[k].value[c], added[r][c]);
              }
            }
          }
        }
        LTK_UNROLL
        for (int r = 0; r < kRows; ++r) {
          LTK_UNROLL
          for (int c = 0; c < 4; ++c) {
            acc[i][r][c] = std::fma(acc[i][r][c], correction[r], added[r][c]);
          }
        }
      }
    }
  }

  LTK_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const int64_t n = tile * kTile + y + kSide * r;
    const Acc total = LaneGroup<kSide>(nullptr).all_reduce(sum[r], Sum());
    if (n >= p.rows) continue;
    if (x == 0 && slice == 0) {
      *workspace.maximum(part, n) = maximum[r];
      *workspace.sum(part, n) = total;
    }
    if (!p.grad) continue;
    LTK_UNROLL
    for (int i = 0; i < kPasses; ++i) {
      LTK_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int64_t d = slice * kWide + i * kDepth + 4 * x + c;
        if (d < p.columns) workspace.acc(part, n)[d] = acc[i][r][c];
      }
    }
  }
}

// ---- finish -------------------------------------------------------------------------------------

constexpr int kFinishThreads = 128;
constexpr int64_t kMostParts = 256;

template <class Acc>
constexpr int finish_shared(int64_t parts) {
  return scratch_bytes(kFinishThreads) + static_cast<int>(parts * sizeof(Acc));
}

template <class Acc>
__device__ __forceinline__ Acc element(const StridedMatrix& m, int64_t row, int64_t column) {
  Acc x = 0;
  with_storage<Acc>(m.dtype, [&](auto type) {
    x = Acc(widen(
        static_cast<const decltype(type)*>(m.data)[row * m.row_stride + column * m.column_stride]));
  });
  return x;
}

template <class Acc>
__device__ __forceinline__ void store_gradient(const InfoNceParams<Acc>& p, int64_t at, Acc g) {
  if constexpr (std::is_same_v<Acc, double>) {
    static_cast<double*>(p.grad)[at] = g;
  } else {
    if (p.query.dtype == DType::Float32) static_cast<float*>(p.grad)[at] = g;
    if (p.query.dtype == DType::Float16) static_cast<Half*>(p.grad)[at] = narrow<Half>(g);
    if (p.query.dtype == DType::BFloat16) {
      static_cast<BFloat16*>(p.grad)[at] = narrow<BFloat16>(g);
    }
  }
}

template <class Acc>
__global__ void __launch_bounds__(kFinishThreads, 4)
    info_nce_finish(const __grid_constant__ InfoNceParams<Acc> p, unsigned* __restrict__ counter) {
  const InfoNceWorkspace<Acc> workspace{p};
  unsigned char* const scratch = dynamic_shared();
  Acc* const share = reinterpret_cast<Acc*>(scratch + scratch_bytes(kFinishThreads));  // [parts]
  BlockGroup group(scratch);

  for (int64_t n = blockIdx.x; n < p.rows; n += gridDim.x) {
    Acc similar = 0, top = -kInfinity<Acc>;
    for (int64_t d = threadIdx.x; d < p.columns; d += kFinishThreads) {
      similar = std::fma(element<Acc>(p.query, n, d), element<Acc>(p.key, n, d), similar);
    }
    similar = group.all_reduce(similar, Sum());
    for (int64_t part = threadIdx.x; part < p.parts; part += kFinishThreads) {
      top = std::fmax(top, *workspace.maximum(part, n));
    }
    top = std::fmax(group.all_reduce(top, Max()), similar);

    // Each part's share in what is relative to the highest maximum of all.
    Acc others = 0;
    for (int64_t part = threadIdx.x; part < p.parts; part += kFinishThreads) {
      share[part] = raised(*workspace.maximum(part, n), origin_of(top), row_scale(p, n));
      others += share[part] * *workspace.sum(part, n);
    }
    others = group.all_reduce(others, Sum());  // its barrier: all shares are there

    const Acc inverse = 1 / (p.row_temperature ? p.row_temperature[n] : p.temperature);
    // Of an infinite maximum, and of a NaN, the difference is NaN, and with it the row.
    const Acc ahead = (top - similar) * inverse, own = std::exp(-ahead);
    if (threadIdx.x == 0) {
      p.row_loss[n] = ahead + (ahead > 0 ? std::log(others + own) : std::log1p(others));
    }
    if (!p.grad) continue;
    const Acc unit = p.factor * inverse / (others + own), missing = unit * others;
    const auto gradient = [&](int64_t d) {
      Acc sum = 0;
      for (int64_t part = 0; part < p.parts; ++part) {
        sum = std::fma(share[part], workspace.acc(part, n)[d], sum);
      }
      return unit * sum - missing * element<Acc>(p.key, n, d);
    };
    if (!p.grad_scale) {
      for (int64_t d = threadIdx.x; d < p.columns; d += kFinishThreads) {
        store_gradient(p, n * p.columns + d, gradient(d));
      }
      continue;
    }
    // Kept in the place of the first part until the largest of the row is known.
    Acc* const kept = workspace.acc(0, n);
    Acc largest = 0;
    for (int64_t d = threadIdx.x; d < p.columns; d += kFinishThreads) {
      kept[d] = gradient(d);
      const Acc size = std::fabs(kept[d]);
      if (size > largest && size < kInfinity<Acc>) largest = size;
    }
    const Acc half = half_scale(group.all_reduce(largest, Max()));
    if (threadIdx.x == 0) p.grad_scale[n] = half;
    for (int64_t d = threadIdx.x; d < p.columns; d += kFinishThreads) {
      store_gradient(p, n * p.columns + d, kept[d] / half);
    }
  }

  if (p.reduction == Reduction::None || !is_last_block(counter, scratch)) return;
  const double sum =
      block_sum(p.rows, scratch, [&](int64_t n) { return double(__ldcg(p.row_loss + n)); });
  const double divisor = p.reduction == Reduction::Mean ? double(p.rows) : 1.;
  if (threadIdx.x == 0 && p.loss) *p.loss = static_cast<Acc>(sum / divisor);
}

}  // namespace ltk::cuda
