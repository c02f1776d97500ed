// Row machinery shared by the CPU kernels: staging chunks of a row, softmax state, float16 scales.
//
// A row is worked on in chunks that stay in the first-level cache. `stage` brings a chunk there: it
// converts to the arithmetic type, scales and shifts, and takes the maximum on the way, so
// that everything after it sees one kind of data: contiguous, padded with -inf to whole vectors.
#pragma once

#include "common/cpu/simd.h"

namespace ltk::LTK_ISA {

constexpr int64_t kChunk = 1024;  // 4 KiB of float a stream

constexpr int64_t padded(int64_t n) { return (n + kChunk - 1) / kChunk * kChunk; }
constexpr int64_t chunks(int64_t n) { return (n + kChunk - 1) / kChunk; }

// x[i] = source[i] * scale[i] + shift[i] * shift_factor; null means 1 and 0.
template <class Acc>
struct Transform {
  const Acc* scale;
  const Acc* shift;
  Acc shift_factor;
  bool identity() const { return scale == nullptr && shift == nullptr; }
  Transform at(int64_t i) const {
    return {scale ? scale + i : nullptr, shift ? shift + i : nullptr, shift_factor};
  }
};

template <class Acc>
struct Staged {
  const Acc* x;  // n values, then -inf up to a whole vector
  Acc max;       // NaN is passed over; it comes back out of the exponentials
};

template <class Acc>
inline Acc max_of(const Acc* x, int64_t n) {
  constexpr int L = kLanes<Acc>;
  Vec<Acc> a = broadcast(-kInf<Acc>), b = a;
  int64_t i = 0;
  for (; i + 2 * L <= n; i += 2 * L) {
    a = max(load(x + i), a);
    b = max(load(x + i + L), b);
  }
  for (; i < n; i += L) a = max(load(x + i), a);
  return horizontal_max<Acc>(max(a, b));
}

template <class Acc>
inline Acc sum_of(const Acc* x, int64_t n) {
  constexpr int L = kLanes<Acc>;
  Vec<Acc> sum{};
  int64_t i = 0;
  for (; i + L <= n; i += L) sum += load(x + i);
  Acc rest = 0;
  for (; i < n; i++) rest += x[i];
  return horizontal_sum<Acc>(sum) + rest;
}

// sum of w (x - origin); a weight of 0 takes its term out, even an infinite one.
template <class Acc>
inline Acc weighted_distance(const Acc* w, const Acc* x, int64_t n, Acc origin) {
  constexpr int L = kLanes<Acc>;
  const Vec<Acc> from = broadcast(origin);
  Vec<Acc> sum{};
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    const Vec<Acc> v = load(w + i);
    sum += v * (v == Vec<Acc>{} ? Vec<Acc>{} : load(x + i) - from);
  }
  Acc rest = 0;
  for (; i < n; i++) rest += w[i] == 0 ? Acc(0) : w[i] * (x[i] - origin);
  return horizontal_sum<Acc>(sum) + rest;
}

// sum over a row of w (max - x) and of w, chunk by chunk. Distances from the maximum, not the
// values: a common offset of large logits must not cancel in the end.
template <class Acc>
struct WeightedDistance {
  Acc weight = 0, distance = 0, from = 0;
  void add(Acc chunk_weight, Acc chunk_distance_from_origin, Acc origin) {
    distance += (origin - from) * weight - chunk_distance_from_origin;
    weight += chunk_weight;
    from = origin;
  }
};

// Compile-time choice of a generic lambda's body.
template <bool B>
struct Bool {
  static constexpr bool value = B;
};

template <class Acc>
inline void pad(Acc* x, int64_t n) {
  for (int64_t i = n; i % kLanes<Acc> != 0; i++) x[i] = -kInf<Acc>;
}

template <class T, class U>
inline constexpr bool same_type = false;
template <class T>
inline constexpr bool same_type<T, T> = true;

// Chunk of n <= kChunk values from `source`, in `buffer` or, where nothing has to be done to it, in
// place. The pointer of an in-place chunk must be a whole number of vectors.
template <class Storage, class Acc>
inline Staged<Acc> stage(const Storage* source, int64_t n, const Transform<Acc>& f, Acc* buffer) {
  constexpr int L = kLanes<Acc>;
  const int64_t whole = n - n % L;
  if (f.identity()) {
    if constexpr (same_type<Storage, Acc>)
      if (whole == n) return {source, max_of(source, n)};
    Vec<Acc> top = broadcast(-kInf<Acc>), top2 = top;
    int64_t i = 0;
    for (; i + 2 * L <= whole; i += 2 * L) {
      const Vec<Acc> x = load(source + i), y = load(source + i + L);
      store(buffer + i, x);
      store(buffer + i + L, y);
      top = max(x, top);
      top2 = max(y, top2);
    }
    for (; i < whole; i += L) {
      const Vec<Acc> x = load(source + i);
      store(buffer + i, x);
      top = max(x, top);
    }
    if (whole < n) {
      const Vec<Acc> x = load_tail(source + whole, n - whole, -kInf<Acc>);
      store(buffer + whole, x);
      top = max(x, top);
    }
    return {buffer, horizontal_max<Acc>(max(top, top2))};
  }
  Vec<Acc> top = broadcast(-kInf<Acc>);
  const Vec<Acc> factor = broadcast(f.shift_factor);
  // Each case without a branch: where the compiler fuses a product with a sum, and so how the
  // result is rounded, must not depend on the code around it.
  const auto all = [&](auto scaled, auto shifted) {
    const auto vector = [&](int64_t i, const auto& read) {
      Vec<Acc> x = read(source + i, -kInf<Acc>);
      if constexpr (decltype(scaled)::value) x *= read(f.scale + i, Acc(1));
      if constexpr (decltype(shifted)::value) x += read(f.shift + i, Acc(0)) * factor;
      store(buffer + i, x);
      top = max(x, top);
    };
    for (int64_t i = 0; i < whole; i += L) vector(i, [](const auto* p, Acc) { return load(p); });
    if (whole < n)
      vector(whole, [&](const auto* p, Acc fill) { return load_tail(p, n - whole, fill); });
  };
  if (f.shift == nullptr)
    all(Bool<true>{}, Bool<false>{});
  else if (f.scale == nullptr)
    all(Bool<false>{}, Bool<true>{});
  else
    all(Bool<true>{}, Bool<true>{});
  return {buffer, horizontal_max<Acc>(top)};
}

// Lines that the memory system fetches while the arithmetic of a chunk keeps the core busy: those
// of the logits two chunks ahead, and the gradient's for writing. Without, waiting for memory takes
// longer than the arithmetic (cycles an element of kd at 512 x 8142, float: 2.8 without, 1.6 one
// chunk ahead, 1.4 two). Addresses past the end are computed as integers and only ever prefetched,
// which is harmless anywhere.
template <class Storage, bool Write = false>
class Prefetch {
 public:
  Prefetch(const Storage* base, int64_t offset)
      : address_(reinterpret_cast<uintptr_t>(base) + offset * sizeof(Storage)) {}
  void operator()(int64_t i) const {
    __builtin_prefetch(reinterpret_cast<const void*>(address_ + i * sizeof(Storage)), Write);
  }

 private:
  uintptr_t address_;
};
template <class Storage>
using PrefetchForWriting = Prefetch<Storage, true>;

// Where in a row of `size` columns the lines lie that are fetched while the chunk at `at` is worked
// on; past the end the next row begins.
constexpr int64_t ahead_of(int64_t at, int64_t size, int64_t stride) {
  const int64_t next = at + 2 * kChunk;
  return next < size ? next : next - size + stride;
}

// The maximum of the chunks so far: what a softmax's kept exponentials and sums refer to.
template <class Acc>
struct RunningMax {
  Acc max = -kInf<Acc>;
  // Takes a chunk's maximum in; returns what sums made so far must be multiplied by.
  Acc raise(Acc chunk_max, Acc log2_scale) {
    if (!(chunk_max > max)) return 1;
    const Acc correction = max == -kInf<Acc> ? 0 : Acc(std::exp2((max - chunk_max) * log2_scale));
    max = chunk_max;
    return correction;
  }
  // What exponents refer to. Before the first finite logit every term is exp(-inf) = 0 anyhow.
  Acc origin() const { return max == -kInf<Acc> ? Acc(0) : max; }
};

// exp(scale (then - now)): brings an exponential kept under an earlier maximum to the final one.
template <class Acc>
inline Acc correction(Acc then, Acc now, Acc log2_scale) {
  // `then` exceeds `now` only before the first finite logit: what was kept is 0 or NaN.
  return then < now ? Acc(std::exp2((then - now) * log2_scale)) : Acc(1);
}

// A power of two of at least `magnitude` / 2^12: float16 holds gradients divided by it with a
// margin of 2^4 above and 2^-36 below. Of a gradient that nearly underflows it is no less than
// 2^-112, so that its inverse is finite.
inline float half_scale(float magnitude) {
  if (!(magnitude > 0) || magnitude > 1e30f) return 1;
  int exponent;
  std::frexp(magnitude, &exponent);
  return std::ldexp(1.0f, (exponent < -100 ? -100 : exponent) - 12);
}

}  // namespace ltk::LTK_ISA
