// Threads that share a row, and what they reduce together.
//
// A kernel says what it keeps of a row as a State (maxima, sums, an online softmax) and how two of
// them combine; `group.all_reduce(state, combine)` gives every thread of the row the State of the
// whole row. The order is fixed, so results are the same on every run.
#pragma once

#include "common/cuda/numeric.cuh"

namespace ltk::cuda {

template <class State>
__device__ __forceinline__ State shuffle_xor(const State& state, int lanes, int width) {
  static_assert(sizeof(State) % 4 == 0, "a State is made of whole words");
  constexpr int kWords = sizeof(State) / 4;
  uint32_t word[kWords];
  memcpy(word, &state, sizeof(State));
  LTK_UNROLL
  for (int i = 0; i < kWords; ++i) word[i] = __shfl_xor_sync(kAllLanes, word[i], lanes, width);
  State other;
  memcpy(&other, word, sizeof(State));
  return other;
}

struct Any {
  __device__ __forceinline__ int operator()(int a, int b) const { return a | b; }
};

// A row belongs to `kLanes` neighbouring lanes of a warp. All lanes of the warp must take part.
template <int kLanes>
struct LaneGroup {
  static_assert(kLanes <= kWarp && kWarp % kLanes == 0);

  __device__ __forceinline__ explicit LaneGroup(unsigned char* /*scratch*/) {}
  __device__ __forceinline__ int rank() const { return threadIdx.x % kLanes; }
  __device__ __forceinline__ int size() const { return kLanes; }

  template <class State, class Combine>
  __device__ __forceinline__ State all_reduce(State state, Combine combine) {
    LTK_UNROLL
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
      state = combine(state, shuffle_xor(state, lanes, kLanes));
    }
    return state;
  }
  // Whether it holds for some thread: one answer for all that must take part in what follows.
  __device__ __forceinline__ bool any(bool holds) const { return __any_sync(kAllLanes, holds); }
};

// A row belongs to a block, whose number of warps is a power of two.
struct BlockGroup {
  static constexpr int kStateBytes = 64;  // the largest State

  unsigned char* scratch;
  int turn = 0;

  __device__ __forceinline__ explicit BlockGroup(unsigned char* scratch) : scratch(scratch) {}
  __device__ __forceinline__ int rank() const { return threadIdx.x; }
  __device__ __forceinline__ int size() const { return blockDim.x; }

  // One barrier: two reductions in turn use two halves of the scratch, and a thread can only come
  // to the third when all have read the first.
  template <class State, class Combine>
  __device__ __forceinline__ State all_reduce(State state, Combine combine) {
    static_assert(sizeof(State) <= kStateBytes);
    const int warps = blockDim.x / kWarp;
    LTK_UNROLL
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      state = combine(state, shuffle_xor(state, lanes, kWarp));
    }
    State* slot = reinterpret_cast<State*>(scratch + turn * warps * kStateBytes);
    turn ^= 1;
    if (threadIdx.x % kWarp == 0) slot[threadIdx.x / kWarp] = state;
    __syncthreads();
    state = slot[threadIdx.x % warps];
    for (int lanes = warps / 2; lanes > 0; lanes /= 2) {
      state = combine(state, shuffle_xor(state, lanes, kWarp));
    }
    return state;
  }
  __device__ __forceinline__ bool any(bool holds) { return all_reduce(int{holds}, Any()) != 0; }
};

// What a block's reductions need at the start of its shared memory.
__host__ __device__ constexpr int scratch_bytes(int threads) {
  return 2 * (threads / kWarp) * BlockGroup::kStateBytes;
}

template <int kThreads>
using RowGroup = std::conditional_t<(kThreads <= kWarp), LaneGroup<kThreads>, BlockGroup>;

// Rows held in registers, 32 values a thread: threads of a block, and blocks of a multiprocessor
// that its registers must allow (168 registers a thread, 128 in blocks of 256).
__host__ __device__ constexpr int resident_block(int row_threads) {
  return row_threads <= kWarp ? 128 : row_threads;
}
__host__ __device__ constexpr int resident_blocks(int row_threads) {
  return row_threads < 256 ? 384 / resident_block(row_threads) : 2;
}

// ---- States that several kernels keep -----------------------------------------------------------

struct Max {
  template <class Acc>
  __device__ __forceinline__ Acc operator()(Acc a, Acc b) const {
    return std::fmax(a, b);  // of a NaN and a number the number: NaN comes back through the sums
  }
};

struct Sum {
  template <class Acc>
  __device__ __forceinline__ Acc operator()(Acc a, Acc b) const {
    return a + b;
  }
};

// Every value of an array by itself. Short arrays take one reduction together.
template <class Acc, int kSize>
struct Pack {
  Acc value[kSize];
};

template <class Group, class Acc, int kSize, class Combine>
__device__ __forceinline__ void all_reduce_each(Group& group, Acc (&value)[kSize],
                                                Combine combine) {
  if constexpr (kSize <= 8) {
    Pack<Acc, kSize> pack;
    memcpy(&pack, value, sizeof(pack));
    pack = group.all_reduce(pack, [&](const Pack<Acc, kSize>& a, const Pack<Acc, kSize>& b) {
      Pack<Acc, kSize> c;
      LTK_UNROLL
      for (int i = 0; i < kSize; ++i) c.value[i] = combine(a.value[i], b.value[i]);
      return c;
    });
    memcpy(value, &pack, sizeof(pack));
  } else {
    LTK_UNROLL_BY(1)
    for (int i = 0; i < kSize; ++i) value[i] = group.all_reduce(value[i], combine);
  }
}

// ---- The sum over the rows, in the same launch --------------------------------------------------

// True in the one block that comes here last, when all that the others wrote before is visible.
// Leaves the counter at zero: the launch can be replayed from a CUDA graph.
__device__ __forceinline__ bool is_last_block(unsigned* counter, unsigned char* scratch) {
  unsigned* arrived = reinterpret_cast<unsigned*>(scratch);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *arrived = atomicAdd(counter, 1u);
    if (*arrived == gridDim.x - 1) *counter = 0;
  }
  __syncthreads();
  const bool last = *arrived == gridDim.x - 1;
  __threadfence();
  __syncthreads();  // the scratch is free again
  return last;
}

// A class index that came from the caller, before it is used.
__device__ __forceinline__ int checked_column(int64_t column, int64_t columns) {
  device_assert(0 <= column && column < columns, "target out of range");
  return static_cast<int>(column);
}

// sum of value(n) over n < count, by a whole block, in double and in a fixed order.
template <class Value>
__device__ __forceinline__ double block_sum(int64_t count, unsigned char* scratch, Value value) {
  double sum = 0;
  for (int64_t n = threadIdx.x; n < count; n += blockDim.x) sum += value(n);
  return BlockGroup(scratch).all_reduce(sum, Sum());
}

// loss = factor * sum of row_loss [rows], by the block that finishes last; nothing for a null loss.
template <class Acc>
__device__ __forceinline__ void reduce_rows(const Acc* row_loss, int64_t rows, Acc factor,
                                            Acc* loss, unsigned* counter, unsigned char* scratch) {
  if (!loss || !is_last_block(counter, scratch)) return;
  const double sum =
      block_sum(rows, scratch, [&](int64_t n) { return double(__ldcg(row_loss + n)); });
  if (threadIdx.x == 0) *loss = static_cast<Acc>(factor * sum);
}

}  // namespace ltk::cuda
