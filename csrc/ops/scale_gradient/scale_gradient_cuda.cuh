// scale_gradient on CUDA. The formula is in scale_gradient.h.
//
// Bytes: the gradient is read once, the result is written once. The matrix is one flat array of
// 16-byte chunks, a chunk a thread, whatever the number of columns; the row of a chunk costs one
// division, none where the factor is the same for all rows.
#pragma once

#include "common/cuda/chunk.cuh"
#include "ops/scale_gradient/scale_gradient.h"

namespace ltk::cuda {

constexpr int kScaleThreads = 256;

template <class Storage>
__global__ void __launch_bounds__(kScaleThreads)
    scale_gradient(const __grid_constant__ ScaleGradientParams<Accumulate<Storage>> p) {
  using Acc = Accumulate<Storage>;
  constexpr int kCount = kChunk<Storage>;
  const Storage* const gradient = static_cast<const Storage*>(p.gradient);
  Storage* const out = static_cast<Storage*>(p.out);
  const int64_t size = p.rows * p.columns;
  const int head = row_head(out);
  const bool whole_chunks = row_head(gradient) == head;
  const bool by_row = p.upstream_stride != 0 || p.scale;
  const auto factor = [&](int64_t row) {
    const Acc upstream = p.upstream[row * p.upstream_stride];
    return p.scale ? upstream * p.scale[row] : upstream;
  };

  const int64_t step = int64_t{gridDim.x} * kScaleThreads * kCount;
  int64_t first = (int64_t{blockIdx.x} * kScaleThreads + threadIdx.x) * kCount - head;
  for (; first < size; first += step) {
    const int64_t begin = first < 0 ? 0 : first;
    int64_t row = 0, next_row = size;  // where the factor changes
    if (by_row) {
      row = size < (int64_t{1} << 31)
                ? static_cast<uint32_t>(begin) / static_cast<uint32_t>(p.columns)
                : begin / p.columns;
      next_row = (row + 1) * p.columns;
    }
    Acc f = factor(row);
    const auto scaled = [&](int64_t i, Storage g) {
      if (i >= next_row) {
        f = factor(++row);
        next_row += p.columns;
      }
      return narrow<Storage>(widen(g) * f);
    };
    if (whole_chunks && first >= 0 && first + kCount <= size) {
      Chunk<Storage> chunk = bit_cast<Chunk<Storage>>(load16_constant(gradient + first));
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) chunk.value[j] = scaled(first + j, chunk.value[j]);
      store16(out + first, bit_cast<uint4>(chunk));
    } else {
      for (int64_t i = begin; i < first + kCount && i < size; ++i) out[i] = scaled(i, gradient[i]);
    }
  }
}

}  // namespace ltk::cuda
