// The z largest values of a row in descending order, NaN first; of equal values the lowest column.
//
// Two looks at a row instead of a heap. The first takes maxima of small groups of columns: the z-th
// largest of the maxima is at most the z-th largest value, and close to it. The second goes only
// where a group's maximum reaches that bound, and finds little more than z candidates. They are
// sorted by counting, for each, the candidates before it: no branch depends on the data.
#pragma once

#include "common/cpu/simd.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ltk::LTK_ISA {

template <class Acc>
using Ints = typename Simd<Acc>::I;

// A bit for each lane of a comparison's result that holds.
template <class Acc>
inline uint64_t lane_bits(Ints<Acc> mask) {
#if defined(__AVX512DQ__)
  if constexpr (sizeof(Acc) == 4) return _mm512_movepi32_mask(__m512i(mask));
  if constexpr (sizeof(Acc) == 8) return _mm512_movepi64_mask(__m512i(mask));
#elif defined(__AVX2__)
  if constexpr (sizeof(Acc) == 4) return static_cast<unsigned>(_mm256_movemask_ps(__m256(mask)));
  if constexpr (sizeof(Acc) == 8) return static_cast<unsigned>(_mm256_movemask_pd(__m256d(mask)));
#elif defined(__SSE2__)
  if constexpr (sizeof(Acc) == 4) return static_cast<unsigned>(_mm_movemask_ps(__m128(mask)));
  if constexpr (sizeof(Acc) == 8) return static_cast<unsigned>(_mm_movemask_pd(__m128d(mask)));
#endif
  uint64_t bits = 0;
  for (int i = 0; i < kLanes<Acc>; i++) bits |= static_cast<uint64_t>(mask[i] != 0) << i;
  return bits;
}

// Integers in the order of the sort: NaN above all, -0 equal to 0.
template <class Acc>
struct Order;
template <>
struct Order<float> {
  using Key = int32_t;
  static constexpr Key lowest = INT32_MIN, nan = INT32_MAX;
  static Key flipped(Key bits) { return bits ^ (bits >> 31 & INT32_MAX); }
};
template <>
struct Order<double> {
  using Key = int64_t;
  static constexpr Key lowest = INT64_MIN, nan = INT64_MAX;
  static Key flipped(Key bits) { return bits ^ (bits >> 63 & INT64_MAX); }
};
template <class Acc>
using Key = typename Order<Acc>::Key;

template <class Acc>
inline Key<Acc> key_of(Acc x) {
  const Acc positive = x + Acc(0);  // -0 becomes 0
  return x != x ? Order<Acc>::nan : Order<Acc>::flipped(load_bytes<Key<Acc>>(&positive));
}
template <class Acc>
inline Acc value_of(Key<Acc> key) {
  const Key<Acc> bits = Order<Acc>::flipped(key);
  return load_bytes<Acc>(&bits);
}

template <class Acc>
inline int64_t sum_of_lanes(Ints<Acc> x) {
  int64_t sum = 0;
  for (int i = 0; i < kLanes<Acc>; i++) sum += x[i];
  return sum;
}

// The largest key of low..high that at least z of the counted values reach, or one that between z
// and `enough` of them do. `low` must be reached by z.
template <class Acc, class Count>
inline Key<Acc> largest_reached(Key<Acc> low, Key<Acc> high, int64_t z, int64_t enough,
                                Count count) {
  while (low < high) {
    // Unsigned: the distance of two keys may not fit a signed number.
    const uint64_t distance = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
    const Key<Acc> middle =
        static_cast<Key<Acc>>(static_cast<uint64_t>(low) + distance / 2 + distance % 2);
    const int64_t reached = count(middle);
    if (reached >= z) {
      low = middle;
      if (reached <= enough) break;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

template <class Acc>
class TopZ {
  static constexpr int L = kLanes<Acc>;
  using V = Vec<Acc>;
  using I = Ints<Acc>;

 public:
  // Values of Acc that the constructor's `scratch` must hold.
  static constexpr int64_t scratch(int64_t columns) {
    return 4 * ((columns + 2 * kMostLanes) / kMostLanes * kMostLanes);
  }
  TopZ(int64_t columns, int64_t z, Acc* scratch) : columns_(columns), z_(z) {
    const int64_t part = TopZ::scratch(columns) / 4;
    maxima_ = scratch;
    merged_ = scratch + part;
    keys_ = reinterpret_cast<Key<Acc>*>(scratch + 2 * part);
    index_ = reinterpret_cast<int32_t*>(scratch + 3 * part);
  }

  // The z largest of row[0 .. columns) and their columns.
  template <class Storage>
  void select(const Storage* row, Acc* values, int32_t* indices) {
    count_ = 0;
    // Groups of eight values, or of fewer where that leaves too few groups.
    const auto enough = [&](int group) { return columns_ / (group * L) * L >= 3 * z_; };
    const bool found = enough(8)   ? bounded<8>(row)
                       : enough(4) ? bounded<4>(row)
                                   : enough(2) && bounded<2>(row);
    if (!found) take_all(row);
    if (count_ > z_ + z_ / 2 + 16) narrow();
    if (count_ <= kRanked)
      sort_by_rank(values, indices);
    else
      sort_by_merging(values, indices);
  }

 private:
  static constexpr int64_t kMostLanes = 16, kRanked = 384;

  // False where there is a NaN, which has no place among maxima.
  template <int Group, class Storage>
  bool bounded(const Storage* row) {
    constexpr int64_t kColumns = Group * L;
    const int64_t groups = columns_ / kColumns;  // each with L maxima
    V sums{};                                    // NaN if a value is
    for (int64_t g = 0; g < groups; g++) {
      const Storage* x = row + g * kColumns;
      V top = load(x), top2 = load(x + L), sum = top, sum2 = top2;
      top = max(top, broadcast(-kInf<Acc>));
      top2 = max(top2, broadcast(-kInf<Acc>));
      for (int i = 2; i < Group; i += 2) {
        const V a = load(x + i * L), b = load(x + i * L + L);
        top = max(a, top);
        top2 = max(b, top2);
        sum += a;
        sum2 += b;
      }
      store(maxima_ + g * L, max(top, top2));
      sums += sum + sum2;
    }
    if (lane_bits<Acc>(sums != sums) != 0) return false;
    collect<Group>(row, groups, bound(groups));
    return true;
  }

  // A number that at least z values reach, and not many more.
  Acc bound(int64_t groups) {
    // Maxima of maxima, where there are many.
    const int64_t wanted = groups * L / (8 * z_), together = wanted < groups ? wanted : groups;
    const Acc* of = maxima_;
    int64_t vectors = groups;
    if (together >= 2) {
      vectors = groups / together;
      for (int64_t i = 0; i < vectors; i++) {
        const int64_t end = i + 1 == vectors ? groups : (i + 1) * together;
        V top = load(maxima_ + i * together * L);
        for (int64_t g = i * together + 1; g < end; g++) top = max(load(maxima_ + g * L), top);
        store(merged_ + i * L, top);
      }
      of = merged_;
    }
    V low = load(of), high = low;
    for (int64_t i = 1; i < vectors; i++) {
      const V x = load(of + i * L);
      low = x < low ? x : low;
      high = max(x, high);
    }
    Acc least = low[0], most = high[0];
    for (int i = 1; i < L; i++) {
      least = low[i] < least ? low[i] : least;
      most = high[i] > most ? high[i] : most;
    }
    const auto reached = [&](Key<Acc> key) {
      const V t = broadcast(value_of<Acc>(key));
      I count{}, count2{};
      int64_t i = 0;
      for (; i + 2 <= vectors; i += 2) {
        count -= load(of + i * L) >= t;
        count2 -= load(of + i * L + L) >= t;
      }
      if (i < vectors) count -= load(of + i * L) >= t;
      return sum_of_lanes<Acc>(count + count2);
    };
    return value_of<Acc>(
        largest_reached<Acc>(key_of(least), key_of(most), z_, z_ + z_ / 4 + 4, reached));
  }

  void take(int64_t column, Acc x) {
    keys_[count_] = key_of(x);
    index_[count_++] = static_cast<int32_t>(column);
  }

  // What reaches `bound`, or is NaN (behind the groups), in the order of the columns.
  template <int Group, class Storage>
  void collect(const Storage* row, int64_t groups, Acc bound) {
    constexpr int kTogether = Group < 4 ? Group : 4;
    const V t = broadcast(bound);
    int32_t* const hit = reinterpret_cast<int32_t*>(merged_);
    int64_t hits = 0;
    for (int64_t g = 0; g < groups; g++) {
      hit[hits] = static_cast<int32_t>(g);
      hits += lane_bits<Acc>(load(maxima_ + g * L) >= t) != 0;
    }
    const auto look = [&](int64_t column, int vectors) {
      uint64_t bits = 0;
      for (int i = 0; i < vectors; i++)
        bits |= lane_bits<Acc>(~(load(row + column + i * L) < t)) << (i * L);
      for (; bits != 0; bits &= bits - 1) {
        const int64_t c = column + __builtin_ctzll(bits);
        take(c, to_float(row[c]));
      }
    };
    for (int64_t h = 0; h < hits; h++)
      for (int i = 0; i < Group; i += kTogether) look((hit[h] * Group + i) * L, kTogether);
    int64_t c = groups * Group * L;
    for (; c + L <= columns_; c += L) look(c, 1);
    for (; c < columns_; c++) {
      const Acc x = to_float(row[c]);
      if (!(x < bound)) take(c, x);
    }
  }

  template <class Storage>
  void take_all(const Storage* row) {
    for (int64_t c = 0; c < columns_; c++) {
      keys_[c] = key_of<Acc>(to_float(row[c]));
      index_[c] = static_cast<int32_t>(c);
    }
    count_ = columns_;
  }

  void pad() {
    for (int64_t i = count_; i % L != 0; i++) keys_[i] = Order<Acc>::lowest;
  }

  // Leaves the z largest candidates.
  void narrow() {
    pad();
    Key<Acc> low = keys_[0], high = keys_[0];
    for (int64_t i = 1; i < count_; i++) {
      low = keys_[i] < low ? keys_[i] : low;
      high = keys_[i] > high ? keys_[i] : high;
    }
    const Key<Acc> least = largest_reached<Acc>(low, high, z_, z_, [&](Key<Acc> key) {
      const I t = I{} + key;
      I count{};
      for (int64_t i = 0; i < count_; i += L) count -= load_bytes<I>(keys_ + i) >= t;
      return sum_of_lanes<Acc>(count);
    });
    int64_t above = 0, kept = 0;
    for (int64_t i = 0; i < count_; i++) above += keys_[i] > least;
    for (int64_t i = 0, equal = z_ - above; i < count_; i++) {
      const bool keep = keys_[i] > least || (keys_[i] == least && equal > 0);
      equal -= keys_[i] == least;
      keys_[kept] = keys_[i];
      index_[kept] = index_[i];
      kept += keep;
    }
    count_ = kept;
  }

  // Candidates come in the order of their columns: of equal ones the first stays first.
  void sort_by_rank(Acc* values, int32_t* indices) {
    pad();
    I lane;
    for (int i = 0; i < L; i++) lane[i] = i;
    for (int64_t j = 0; j < count_; j += L) {
      const I x = load_bytes<I>(keys_ + j);
      I rank{};
      const int64_t own = j + L < count_ ? j + L : count_;
      for (int64_t i = 0; i < j; i++) rank -= keys_[i] >= x;
      for (int64_t i = j; i < own; i++)
        rank -= (keys_[i] > x) | ((keys_[i] == x) & (lane > static_cast<Key<Acc>>(i - j)));
      for (int64_t i = own; i < count_; i++) rank -= keys_[i] > x;
      for (int64_t i = j; i < own; i++) {
        const int64_t place = rank[i - j];
        if (place >= z_) continue;
        values[place] = value_of<Acc>(keys_[i]);
        indices[place] = index_[i];
      }
    }
  }

  void sort_by_merging(Acc* values, int32_t* indices) {
    Key<Acc>* keys = keys_;
    Key<Acc>* other_keys = reinterpret_cast<Key<Acc>*>(maxima_);
    int32_t* index = index_;
    int32_t* other_index = reinterpret_cast<int32_t*>(merged_);
    for (int64_t run = 1; run < count_; run *= 2) {
      for (int64_t begin = 0; begin < count_; begin += 2 * run) {
        const int64_t middle = begin + run < count_ ? begin + run : count_;
        const int64_t end = begin + 2 * run < count_ ? begin + 2 * run : count_;
        for (int64_t a = begin, b = middle, out = begin; out < end; out++) {
          const bool first = b >= end || (a < middle && keys[a] >= keys[b]);
          const int64_t from = first ? a++ : b++;
          other_keys[out] = keys[from];
          other_index[out] = index[from];
        }
      }
      Key<Acc>* const sorted_keys = other_keys;
      int32_t* const sorted_index = other_index;
      other_keys = keys;
      other_index = index;
      keys = sorted_keys;
      index = sorted_index;
    }
    for (int64_t i = 0; i < z_; i++) {
      values[i] = value_of<Acc>(keys[i]);
      indices[i] = index[i];
    }
  }

  int64_t columns_, z_, count_ = 0;
  Acc* maxima_;
  Acc* merged_;
  Key<Acc>* keys_;
  int32_t* index_;
};

}  // namespace ltk::LTK_ISA
