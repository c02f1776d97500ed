// Rows in 16-byte pieces, wherever they start.
//
// A row of 8142 floats starts at a multiple of 16 bytes only every second time, yet a GPU moves
// memory at full speed only in aligned 16-byte accesses. So a row is covered by the aligned chunks
// that it touches; the first and the last chunk may stick out of it and are masked:
//
//        chunk 0         chunk 1                      chunk count-1
//     | -  -  0  1 | 2  3  4  5 | ...        | C-2 C-1  -  - |      head = 2 columns missing
//
// A second row with another alignment (a slice beside a contiguous tensor) is read at the columns
// of the first one, value by value: slower, never wrong.
#pragma once

#include "common/cuda/numeric.cuh"

namespace ltk::cuda {

// Values of a 16-byte chunk.
template <class Storage>
constexpr int kChunk = 16 / static_cast<int>(sizeof(Storage));

template <class Storage>
struct alignas(16) Chunk {
  Storage value[kChunk<Storage>];
};

// How far `row` lies behind a multiple of 16 bytes, in values.
template <class Storage>
__device__ __forceinline__ int row_head(const Storage* row) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(Storage));
}

// The most chunks that a row of a matrix touches: one more than its length asks for where rows
// start between multiples of 16 bytes.
template <class Storage>
int64_t most_chunks(const void* base, int64_t stride, int64_t columns) {
  const bool aligned = reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride % kChunk<Storage> == 0;
  const int64_t head = aligned ? 0 : kChunk<Storage> - 1;
  return (head + columns + kChunk<Storage> - 1) / kChunk<Storage>;
}

// Shared memory for one row, laid out as it lies in global memory, so that chunks copy.
template <class Storage>
__host__ __device__ constexpr int64_t shared_row_bytes(int64_t columns) {
  return (columns + 2 * (kChunk<Storage> - 1)) / kChunk<Storage> * 16;
}

// A row as one thread sees it: `column` is the first column of the thread's first chunk (negative
// where that chunk sticks out in front), `offset` counts columns from there. A thread that visits
// its chunks at constant offsets needs one address for all of them.
template <class Storage>
struct RowView {
  using Value = std::remove_const_t<Storage>;
  static constexpr int kCount = kChunk<Value>;

  Storage* at;
  int column;
  int columns;
  unsigned whole_below;  // chunks at columns 0 .. whole_below - 1 are one access

  __device__ __forceinline__ RowView(Storage* row, int column, int columns)
      : at(row + column), column(column), columns(columns) {
    const bool whole = reinterpret_cast<uintptr_t>(at) % 16 == 0 && columns >= kCount;
    whole_below = whole ? static_cast<unsigned>(columns - kCount + 1) : 0u;
  }

  __device__ __forceinline__ bool whole(int offset) const {
    return static_cast<unsigned>(column + offset) < whole_below;
  }
  __device__ __forceinline__ bool inside(int offset) const {
    return static_cast<unsigned>(column + offset) < static_cast<unsigned>(columns);
  }

  // A chunk of global memory that no thread of this launch writes; `fill` outside the row.
  __device__ __forceinline__ Chunk<Value> load_constant(int offset, Value fill) const {
    if (whole(offset)) return bit_cast<Chunk<Value>>(load16_constant(at + offset));
    return load_masked(offset, fill);
  }
  // A chunk of shared memory.
  __device__ __forceinline__ Chunk<Value> load(int offset, Value fill) const {
    if (whole(offset)) return bit_cast<Chunk<Value>>(load16(at + offset));
    return load_masked(offset, fill);
  }
  __device__ __forceinline__ void store(int offset, const Chunk<Value>& chunk) const {
    if (whole(offset)) {
      store16(at + offset, bit_cast<uint4>(chunk));
      return;
    }
    LTK_UNROLL
    for (int j = 0; j < kCount; ++j) {
      if (inside(offset + j)) at[offset + j] = chunk.value[j];
    }
  }

 private:
  __device__ __forceinline__ Chunk<Value> load_masked(int offset, Value fill) const {
    Chunk<Value> chunk;
    LTK_UNROLL
    for (int j = 0; j < kCount; ++j) chunk.value[j] = inside(offset + j) ? at[offset + j] : fill;
    return chunk;
  }
};

// A vector over the columns (class weights, a bias) at the columns of a chunk.
template <int kCount, class Acc>
__device__ __forceinline__ void load_vector(const Acc* vector, int column, int columns, Acc fill,
                                            Acc (&out)[kCount]) {
  LTK_UNROLL
  for (int j = 0; j < kCount; ++j) {
    const bool inside = column + j >= 0 && column + j < columns;
    out[j] = inside ? __ldg(vector + column + j) : fill;
  }
}

}  // namespace ltk::cuda
