// The z largest values of a row in descending order, NaN first; of equal values the lowest column.
//
// Values become unsigned keys that order as they do. Up to 64: a warp keeps its best so far sorted
// in registers, two items a lane. What exceeds the z-th of them is rare after the first columns; it
// is collected in shared memory and merged 64 at a time by a bitonic network. Several warps of a
// row merge their lists in the end. More than 64: the whole row is sorted in global memory, slower
// by an order of magnitude.
#pragma once

#include "common/cuda/chunk.cuh"
#include "common/cuda/reduce.cuh"

namespace ltk::cuda {

constexpr int kListed = 64;  // the most that a warp keeps in registers

template <class Acc>
struct KeyOf {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
};
template <class Acc>
using Key = typename KeyOf<Acc>::type;

// Both of one width, so that no byte is padding.
template <class Acc>
struct Item {
  Key<Acc> key;
  Key<Acc> column;
};

// No value has the key 0: -inf has more, and NaN the largest.
template <class Acc>
__device__ __forceinline__ Item<Acc> no_item() {
  return {0, ~Key<Acc>(0)};
}

template <class Acc>
__device__ __forceinline__ Key<Acc> key_of(Acc x) {
  constexpr Key<Acc> kSign = Key<Acc>(1) << (8 * sizeof(Acc) - 1);
  if (x != x) return ~Key<Acc>(0);
  if (x == 0) return kSign;  // -0, too
  const Key<Acc> bits = bit_cast<Key<Acc>>(x);
  return bits & kSign ? ~bits : bits | kSign;
}
template <class Acc>
__device__ __forceinline__ Acc value_of(Key<Acc> key) {
  constexpr Key<Acc> kSign = Key<Acc>(1) << (8 * sizeof(Acc) - 1);
  if (key == ~Key<Acc>(0)) return kNaN<Acc>;
  return bit_cast<Acc>(static_cast<Key<Acc>>(key & kSign ? key ^ kSign : ~key));
}

template <class Acc>
__device__ __forceinline__ bool comes_before(const Item<Acc>& a, const Item<Acc>& b) {
  return a.key > b.key || (a.key == b.key && a.column < b.column);
}

// The 64 best items of a warp, sorted: lane l has those of places l and l + 32.
template <class Acc>
struct WarpList {
  Item<Acc> low, high;

  __device__ __forceinline__ WarpList() : low(no_item<Acc>()), high(no_item<Acc>()) {}

  __device__ __forceinline__ static int lane() { return threadIdx.x % kWarp; }

  // Of an item and its partner `stride` places away: the one that comes first if `first`.
  __device__ __forceinline__ static Item<Acc> exchanged(const Item<Acc>& own, int stride,
                                                        bool first) {
    const Item<Acc> other = shuffle_xor(own, stride, kWarp);
    return comes_before(own, other) == first ? own : other;
  }

  // Sorts 64 items of which the places 0..63 are one rise and one fall.
  __device__ __forceinline__ void sort_bitonic() {
    if (comes_before(high, low)) {
      const Item<Acc> before = high;
      high = low;
      low = before;
    }
    LTK_UNROLL
    for (int stride = kWarp / 2; stride > 0; stride /= 2) {
      const bool first = (lane() & stride) == 0;
      low = exchanged(low, stride, first);
      high = exchanged(high, stride, first);
    }
  }

  __device__ __forceinline__ void sort() {
    LTK_UNROLL
    for (int size = 2; size <= kWarp; size *= 2) {
      LTK_UNROLL
      for (int stride = size / 2; stride > 0; stride /= 2) {
        const bool first = (lane() & stride) == 0;
        // Runs of `size` fall and rise in turn; the last of 32, `low` falls and `high` rises.
        const bool falls = size == kWarp || (lane() & size) == 0;
        const bool high_falls = size == kWarp ? false : falls;
        low = exchanged(low, stride, first == falls);
        high = exchanged(high, stride, first == high_falls);
      }
    }
    sort_bitonic();
  }

  // Takes in another sorted list, handed over from its last place to its first: the best of each
  // pair of places are the best of all, one fall and one rise.
  __device__ __forceinline__ void merge_reversed(const Item<Acc>& for_low,
                                                 const Item<Acc>& for_high) {
    if (comes_before(for_low, low)) low = for_low;
    if (comes_before(for_high, high)) high = for_high;
    sort_bitonic();
  }
  __device__ __forceinline__ void merge(const WarpList& other) {
    merge_reversed(shuffle_xor(other.high, kWarp - 1, kWarp),
                   shuffle_xor(other.low, kWarp - 1, kWarp));
  }

  // The key at place z - 1, in every lane.
  __device__ __forceinline__ Key<Acc> last_key(int z) const {
    return __shfl_sync(kAllLanes, z > kWarp ? high.key : low.key, (z - 1) % kWarp);
  }
};

// The best z <= 64 of the chunks rank, rank + warps, .. of a row; `pending` are 64 items of shared
// memory of this warp. A row that this kernel has written must not be read as a constant.
template <bool kConstant, class Storage>
__device__ __forceinline__ WarpList<Accumulate<Storage>> warp_top(
    const Storage* row, int columns, int z, int rank, int warps,
    Item<Accumulate<Storage>>* pending) {
  using Acc = Accumulate<Storage>;
  constexpr int kCount = kChunk<Storage>;
  constexpr int kStep = kWarp * kCount;
  const int lane = threadIdx.x % kWarp;
  const int head = row_head(row);
  const int start = rank * kStep - head;  // of the warp
  const RowView<const Storage> view(row, start + lane * kCount, columns);
  WarpList<Acc> best;
  Key<Acc> last = 0;
  int count = 0;
  const auto merge_pending = [&] {
    __syncwarp();
    WarpList<Acc> batch;
    if (lane < count) batch.low = pending[lane];
    if (lane + kWarp < count) batch.high = pending[lane + kWarp];
    __syncwarp();
    batch.sort();
    best.merge(batch);
    count = 0;
  };

  for (int offset = 0; start + offset < columns; offset += warps * kStep) {
    const auto raw = kConstant ? view.load_constant(offset, narrow<Storage>(Acc(0)))
                               : view.load(offset, narrow<Storage>(Acc(0)));
    Key<Acc> key[kCount];
    bool any = false;
    LTK_UNROLL
    for (int j = 0; j < kCount; ++j) {
      key[j] = view.inside(offset + j) ? key_of<Acc>(widen(raw.value[j])) : 0;
      any |= key[j] > last;
    }
    if (!__any_sync(kAllLanes, any)) continue;
    // `last` stays for this chunk: of equal keys in it, the lowest column need not come first.
    // Those of later chunks have higher columns.
    LTK_UNROLL
    for (int j = 0; j < kCount; ++j) {
      const unsigned taken = __ballot_sync(kAllLanes, key[j] > last);
      if (taken == 0) continue;
      if (count > kListed - kWarp) merge_pending();
      if (taken >> lane & 1u) {
        const int place = count + __popc(taken & ((1u << lane) - 1u));
        pending[place] = {key[j], static_cast<Key<Acc>>(view.column + offset + j)};
      }
      count += __popc(taken);
    }
    if (count > kListed - kWarp) {
      merge_pending();
      last = best.last_key(z);
    }
  }
  if (count > 0) merge_pending();
  return best;
}

// What the gate makes of a largest value; `first` is the row's largest.
template <class Acc>
__device__ __forceinline__ Acc without_infinity(Acc x, Acc first) {
  if (x != -kInfinity<Acc>) return x;
  return first == -kInfinity<Acc> ? kNaN<Acc> : Acc(0);
}

// A warp's list as the gate takes it.
template <class Acc>
__device__ __forceinline__ void write_top(const WarpList<Acc>& best, int z, Acc* values,
                                          int32_t* index) {
  const int lane = threadIdx.x % kWarp;
  const Acc first = value_of<Acc>(__shfl_sync(kAllLanes, best.low.key, 0));
  LTK_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int k = lane + half * kWarp;
    const Item<Acc> item = half ? best.high : best.low;
    if (k < z) {
      const Acc x = value_of<Acc>(item.key);
      values[k] = without_infinity(x, first);
      if (index) index[k] = x == -kInfinity<Acc> ? -1 : static_cast<int32_t>(item.column);
    }
  }
}

constexpr int kTopThreads = 256;
constexpr int kTopWarps = kTopThreads / kWarp;

// Items in a row's part of the workspace: sorted as a power of two.
__host__ __device__ constexpr int64_t wide_items(int64_t columns) {
  int64_t size = 2;
  while (size < columns) size *= 2;
  return size;
}
// Blocks of a launch that sorts whole rows: each needs its workspace.
template <class Acc>
int64_t wide_blocks(int64_t rows, int64_t columns) {
  constexpr int64_t kMostBytes = int64_t{64} << 20;
  const int64_t fit = kMostBytes / (wide_items(columns) * static_cast<int64_t>(sizeof(Item<Acc>)));
  return std::max<int64_t>(1, std::min<int64_t>(rows, std::min<int64_t>(fit, 256)));
}

// The best z of a row by a whole block, into values[z] and index[z] (may be null). All threads see
// them. Up to 64: `pending` are 64 items a warp of shared memory. More: wide_items(C) items of
// global memory.
template <bool kWide, bool kConstant, class Storage>
__device__ __forceinline__ void block_top(const Storage* row, int columns, int z,
                                          Item<Accumulate<Storage>>* pending,
                                          Accumulate<Storage>* values, int32_t* index) {
  using Acc = Accumulate<Storage>;
  if constexpr (kWide) {
    const int64_t size = wide_items(columns);
    for (int64_t c = threadIdx.x; c < size; c += kTopThreads) {
      const bool inside = c < columns;
      pending[c] =
          inside ? Item<Acc>{key_of<Acc>(widen(row[c])), static_cast<Key<Acc>>(c)} : no_item<Acc>();
    }
    __syncthreads();
    for (int64_t run = 2; run <= size; run *= 2) {
      for (int64_t stride = run / 2; stride > 0; stride /= 2) {
        for (int64_t i = threadIdx.x; i < size / 2; i += kTopThreads) {
          const int64_t a = 2 * i - (i & (stride - 1)), b = a + stride;
          const Item<Acc> x = pending[a], y = pending[b];
          if (comes_before(y, x) == ((a & run) == 0)) {
            pending[a] = y;
            pending[b] = x;
          }
        }
        __syncthreads();
      }
    }
    const Acc first = value_of<Acc>(pending[0].key);
    for (int k = threadIdx.x; k < z; k += kTopThreads) {
      const Acc x = value_of<Acc>(pending[k].key);
      values[k] = without_infinity(x, first);
      if (index) {
        index[k] = x == -kInfinity<Acc> ? -1 : static_cast<int32_t>(pending[k].column);
      }
    }
  } else {
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    WarpList<Acc> best =
        warp_top<kConstant>(row, columns, z, warp, kTopWarps, pending + warp * kListed);
    pending[warp * kListed + lane] = best.low;
    pending[warp * kListed + lane + kWarp] = best.high;
    __syncthreads();
    if (warp == 0) {
      for (int w = 1; w < kTopWarps; ++w) {
        const Item<Acc>* const other = pending + w * kListed;
        best.merge_reversed(other[kListed - 1 - lane], other[kWarp - 1 - lane]);
      }
      write_top(best, z, values, index);
    }
  }
  __syncthreads();
}

}  // namespace ltk::cuda
