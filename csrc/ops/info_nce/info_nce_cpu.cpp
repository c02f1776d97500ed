// InfoNCE and the gradient of its query on the CPU (info_nce.h has the formulas).
//
// The lanes of the vectors are rows of the query: maxima, exponentials, sums and corrections of a
// softmax are then vertical operations, and both products take the same form, a broadcast value of
// the queue times two vectors of rows:
//
//   similarities[j][lanes] = sum_d queue[j][d] * query[d][lanes]      query transposed once a call
//   acc[d][lanes]         += sum_j queue[j][d] * e[j][lanes]
//
// with 8 (AVX-512) or 4 x 2 accumulators in registers: one load for each 1.6 multiply-adds, which
// two load units sustain. A block of 64 queue rows is staged as float in panels of 64 columns,
//   block[d / 64][j][d % 64],
// so that whatever a tile reads lies at a constant distance, and no power-of-two row length maps it
// all to one cache set. The next block is prefetched meanwhile. All tiles of a range pass over a
// block before the next one is staged.
#include "ops/info_nce/info_nce_cpu.h"

#include "common/cpu/row.h"

namespace ltk::LTK_ISA {
namespace {

constexpr int64_t kBlock = kQueueBlock;
constexpr int64_t kPanel = 64;  // columns
// Values of the queue that are multiplied at once: as many pairs of accumulators fit in registers.
constexpr int kAtOnce = LTK_VECTOR_BYTES == 64 ? 8 : 4;
template <class Acc>
constexpr int64_t kTile = 2 * kLanes<Acc>;

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// f(Storage{}) for the type of a matrix.
template <class F>
inline void with_storage(DType dtype, const F& f) {
  switch (dtype) {
    case DType::Float32: return f(float{});
    case DType::Float64: return f(double{});
    case DType::Float16: return f(Half{});
    case DType::BFloat16: return f(BFloat16{});
  }
}

// Two vectors: the lanes of a tile.
template <class Acc>
struct Pair {
  Vec<Acc> a, b;
};
template <class Acc>
inline Pair<Acc> load_pair(const Acc* p) {
  return {load(p), load(p + kLanes<Acc>)};
}
template <class Acc>
inline void store_pair(Acc* p, const Pair<Acc>& x) {
  store(p, x.a);
  store(p + kLanes<Acc>, x.b);
}

template <class Acc>
struct Workspace {
  static constexpr int64_t R = kTile<Acc>;
  const InfoNceParams<Acc>& p;
  int64_t tiles() const { return (p.rows + R - 1) / R; }
  // [D + 1][R]: the transposed query, and log2(e) / T of each row.
  int64_t query_size() const { return (p.columns + 1) * R; }
  // [D + 2][R]: the accumulator, maxima and sums; without gradient [2][R].
  int64_t state_size() const { return (accumulated() + 2) * R; }
  int64_t accumulated() const { return p.grad != nullptr ? p.columns : 0; }
  int64_t size() const { return tiles() * (query_size() + p.parts * state_size()); }
  Acc* query(int64_t tile) const { return p.workspace + tile * query_size(); }
  Acc* state(int64_t part, int64_t tile) const {
    return p.workspace + tiles() * query_size() + (part * tiles() + tile) * state_size();
  }
};

// ---- The queue, block by block ------------------------------------------------------------------

template <class Storage, class Acc>
inline void stage_rows(const StridedMatrix& m, int64_t first, int64_t count, int64_t columns,
                       Acc* block) {
  const Storage* const rows = static_cast<const Storage*>(m.data) + first * m.row_stride;
  for (int64_t d = 0; d < columns; d += kPanel, block += kBlock * kPanel) {
    const int64_t width = smaller(kPanel, columns - d);
    if (m.column_stride == 1) {
      for (int64_t j = 0; j < count; j++) {
        const Storage* const in = rows + j * m.row_stride + d;
        Acc* const out = block + j * kPanel;
        int64_t i = 0;
        if constexpr (same_type<Accumulate<Storage>, Acc>)
          for (; i + kLanes<Acc> <= width; i += kLanes<Acc>) store(out + i, load(in + i));
        for (; i < width; i++) out[i] = Acc(to_float(in[i]));
      }
    } else {
      // A queue kept as [D, Q]: neighbours in memory are rows.
      for (int64_t i = 0; i < width; i++) {
        const Storage* const in = rows + (d + i) * m.column_stride;
        for (int64_t j = 0; j < count; j++)
          block[j * kPanel + i] = Acc(to_float(in[j * m.row_stride]));
      }
    }
  }
}

inline int64_t bytes_of(DType dtype) {
  return dtype == DType::Float64 ? 8 : dtype == DType::Float32 ? 4 : 2;
}

// Brings a row of the next block into the second-level cache while this one is worked on.
inline void prefetch_row(const StridedMatrix& m, int64_t row, int64_t columns) {
  if (m.column_stride != 1) return;
  const int64_t size = bytes_of(m.dtype);
  const uintptr_t at = reinterpret_cast<uintptr_t>(m.data) + row * m.row_stride * size;
  for (int64_t i = 0; i < columns * size; i += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(at + i), 0, 2);
}

// ---- The two products ---------------------------------------------------------------------------

// out[j][lanes] = sum_d block[j][d] query[d][lanes] for J rows of the block, and their maxima.
template <int J, class Acc>
inline void similarities(const Acc* block, const Acc* query, int64_t columns, Acc* out,
                         Pair<Acc>& top) {
  constexpr int64_t R = kTile<Acc>;
  Vec<Acc> a[J] = {}, b[J] = {};
  for (int64_t d = 0; d < columns; d += kPanel, block += kBlock * kPanel) {
    const int64_t width = smaller(kPanel, columns - d);
    for (int64_t i = 0; i < width; i++, query += R) {
      const Pair<Acc> x = load_pair(query);
#pragma GCC unroll 8
      for (int j = 0; j < J; j++) {
        const Vec<Acc> u = broadcast(block[j * kPanel + i]);
        a[j] += u * x.a;
        b[j] += u * x.b;
      }
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; j++) {
    store_pair<Acc>(out + j * R, {a[j], b[j]});
    top = {max(a[j], top.a), max(b[j], top.b)};
  }
}

// acc[d][lanes] = acc * correction + sum_j block[j][d] e[j][lanes] for J columns of the block. The
// block's sum is made first: the accumulator sees a rounding a block, not one a row.
template <int J, class Acc>
inline void accumulate(const Acc* block, const Acc* e, int64_t count, const Pair<Acc>& correction,
                       Acc* acc) {
  constexpr int64_t R = kTile<Acc>;
  Vec<Acc> a[J] = {}, b[J] = {};
  for (int64_t j = 0; j < count; j++) {
    const Pair<Acc> x = load_pair(e + j * R);
#pragma GCC unroll 8
    for (int d = 0; d < J; d++) {
      const Vec<Acc> u = broadcast(block[j * kPanel + d]);
      a[d] += u * x.a;
      b[d] += u * x.b;
    }
  }
#pragma GCC unroll 8
  for (int d = 0; d < J; d++) {
    const Pair<Acc> before = load_pair(acc + d * R);
    store_pair<Acc>(acc + d * R, {before.a * correction.a + a[d], before.b * correction.b + b[d]});
  }
}

template <int N>
struct Number {
  static constexpr int value = N;
};

// f(i, J) over i in 0..count in steps of kAtOnce, the rest in halves of that.
template <int J, class F>
inline void in_steps(int64_t i, int64_t count, const F& f) {
  for (; i + J <= count; i += J) f(i, Number<J>{});
  if constexpr (J > 1) in_steps<J / 2>(i, count, f);
}

// ---- One tile of rows and one block of the queue ------------------------------------------------

template <class Acc>
inline Vec<Acc> raise(Vec<Acc> before, Vec<Acc> now, Vec<Acc> scale) {
  // Where both are infinite their difference is none.
  return before == now ? broadcast(Acc(1)) : exp2((before - now) * scale);
}

template <class Acc>
inline void visit(const Workspace<Acc>& w, int64_t tile, Acc* state, const Acc* block,
                  int64_t count, Acc* e) {
  constexpr int64_t R = kTile<Acc>;
  const int64_t columns = w.p.columns;
  const Acc* const query = w.query(tile);
  Acc* const maximum = state + w.accumulated() * R;
  Acc* const sums = maximum + R;

  const Vec<Acc> lowest = broadcast(-kInf<Acc>);
  Pair<Acc> top = {lowest, lowest};
  in_steps<kAtOnce>(0, count, [&](int64_t j, auto many) {
    similarities<many.value>(block + j * kPanel, query, columns, e + j * R, top);
  });

  const Pair<Acc> scale = load_pair(query + columns * R), before = load_pair(maximum);
  const Pair<Acc> now = {max(top.a, before.a), max(top.b, before.b)};
  const Pair<Acc> correction = {raise<Acc>(before.a, now.a, scale.a),
                                raise<Acc>(before.b, now.b, scale.b)};
  // Before the first similarity above -inf every exponential is 0 anyhow.
  const Pair<Acc> origin = {now.a == lowest ? Vec<Acc>{} : now.a,
                            now.b == lowest ? Vec<Acc>{} : now.b};
  Pair<Acc> sum = {};
  for (int64_t j = 0; j < count; j++) {
    const Pair<Acc> s = load_pair(e + j * R);
    const Pair<Acc> x = {exp2((s.a - origin.a) * scale.a), exp2((s.b - origin.b) * scale.b)};
    sum = {sum.a + x.a, sum.b + x.b};
    store_pair(e + j * R, x);
  }
  const Pair<Acc> earlier = load_pair(sums);
  store_pair(maximum, now);
  store_pair<Acc>(sums, {earlier.a * correction.a + sum.a, earlier.b * correction.b + sum.b});

  for (int64_t d = 0; d < w.accumulated(); d += kPanel, block += kBlock * kPanel) {
    const int64_t width = smaller(kPanel, columns - d);
    in_steps<kAtOnce>(0, width, [&](int64_t i, auto many) {
      accumulate<many.value>(block + i, e, count, correction, state + (d + i) * R);
    });
  }
}

// ---- Loss and gradient --------------------------------------------------------------------------

template <class Acc>
inline void gather_row(const StridedMatrix& m, int64_t row, int64_t columns, Acc* out) {
  with_storage(m.dtype, [&](auto type) {
    using Storage = decltype(type);
    const Storage* const in = static_cast<const Storage*>(m.data) + row * m.row_stride;
    for (int64_t d = 0; d < columns; d++) out[d] = Acc(to_float(in[d * m.column_stride]));
  });
}

// Merges the parts of a tile into the first one: its sums and accumulator are then relative to
// `maximum`, which takes in the similarity to the key.
template <class Acc>
inline void merge(const Workspace<Acc>& w, int64_t tile, const Acc* similar, Acc* maximum,
                  Acc* others) {
  constexpr int64_t R = kTile<Acc>, L = kLanes<Acc>;
  const int64_t rows = w.accumulated();
  for (int64_t half = 0; half < R; half += L) {
    const Vec<Acc> lowest = broadcast(-kInf<Acc>);
    const Vec<Acc> scale = load(w.query(tile) + w.p.columns * R + half);
    Vec<Acc> top = load(similar + half);
    for (int64_t part = 0; part < w.p.parts; part++)
      top = max(load(w.state(part, tile) + rows * R + half), top);
    store(maximum + half, top);
    const Vec<Acc> origin = top == lowest ? Vec<Acc>{} : top;
    Acc* const first = w.state(0, tile) + half;
    Vec<Acc> sum{};
    for (int64_t part = 0; part < w.p.parts; part++) {
      const Acc* const state = w.state(part, tile) + half;
      const Vec<Acc> share = raise<Acc>(load(state + rows * R), origin, scale);
      sum += share * load(state + (rows + 1) * R);
      for (int64_t d = 0; d < rows; d++) {
        const Vec<Acc> x = share * load(state + d * R);
        store(first + d * R, part == 0 ? x : load(first + d * R) + x);
      }
    }
    store(others + half, sum);
  }
}

template <class Storage, class Acc>
inline void finish(const InfoNceParams<Acc>& p, int64_t begin, int64_t end, Acc* key) {
  constexpr int64_t R = kTile<Acc>;
  const Workspace<Acc> w{p};
  for (int64_t tile = begin; tile < end; tile++) {
    const int64_t count = smaller(R, p.rows - tile * R);
    Acc* const query = w.query(tile);
    Acc similar[R] = {}, maximum[R], others[R];
    for (int64_t r = 0; r < count; r++) {
      gather_row(p.key, tile * R + r, p.columns, key);
      for (int64_t d = 0; d < p.columns; d++) similar[r] += query[d * R + r] * key[d];
    }
    merge(w, tile, similar, maximum, others);
    for (int64_t r = 0; r < count; r++) {
      const int64_t n = tile * R + r;
      const Acc inverse = 1 / (p.row_temperature ? p.row_temperature[n] : p.temperature);
      // Of an infinite maximum the difference is NaN, and with it the row.
      const Acc ahead = (maximum[r] - similar[r]) * inverse;
      const Acc own = std::exp(-ahead);
      p.row_loss[n] = ahead + (ahead > 0 ? std::log(others[r] + own) : std::log1p(others[r]));
      if (p.grad == nullptr) continue;
      const Acc unit = p.factor * inverse / (others[r] + own), missing = unit * others[r];
      gather_row(p.key, n, p.columns, key);
      const Acc* const acc = w.state(0, tile) + r;
      Acc largest = 0;
      for (int64_t d = 0; d < p.columns; d++) {
        key[d] = unit * acc[d * R] - missing * key[d];
        const Acc size = std::fabs(key[d]);
        if (size > largest && size < kInf<Acc>) largest = size;
      }
      Acc half = 1;
      if (p.grad_scale != nullptr) p.grad_scale[n] = half = half_scale(float(largest));
      Storage* const out = static_cast<Storage*>(p.grad) + n * p.columns;
      for (int64_t d = 0; d < p.columns; d++)
        from_float(Accumulate<Storage>(key[d] / half), out + d);
    }
  }
}

}  // namespace

template <class Acc>
int64_t info_nce_tile() {
  return kTile<Acc>;
}
template <class Acc>
int64_t info_nce_workspace(const InfoNceParams<Acc>& p) {
  return Workspace<Acc>{p}.size();
}
template <class Acc>
int64_t info_nce_scratch(const InfoNceParams<Acc>& p) {
  return kBlock * (panels(p.columns) * kPanel + kTile<Acc>);
}

template <class Acc>
void info_nce_pack(const InfoNceParams<Acc>& p, int64_t begin, int64_t end) {
  constexpr int64_t R = kTile<Acc>;
  for (int64_t tile = begin; tile < end; tile++) {
    Acc* const query = Workspace<Acc>{p}.query(tile);
    for (int64_t r = 0; r < R; r++) {
      const int64_t n = tile * R + r;
      const bool real = n < p.rows;  // rows that are none are 0
      const Acc temperature = p.row_temperature && real ? p.row_temperature[n] : p.temperature;
      query[p.columns * R + r] = kLog2e<Acc> / temperature;
      with_storage(p.query.dtype, [&](auto type) {
        using Storage = decltype(type);
        const Storage* const in =
            static_cast<const Storage*>(p.query.data) + (real ? n * p.query.row_stride : 0);
        for (int64_t d = 0; d < p.columns; d++)
          query[d * R + r] = real ? Acc(to_float(in[d * p.query.column_stride])) : Acc(0);
      });
    }
  }
}

template <class Acc>
void info_nce_tasks(const InfoNceParams<Acc>& p, int64_t begin, int64_t end, Acc* scratch) {
  constexpr int64_t R = kTile<Acc>;
  const Workspace<Acc> w{p};
  const int64_t tiles = w.tiles();
  Acc* const e = scratch;
  Acc* const block = scratch + kBlock * R;
  for (int64_t task = begin; task < end;) {
    const int64_t part = task / tiles, first = task % tiles;
    const int64_t last = smaller(tiles, first + end - task);
    for (int64_t tile = first; tile < last; tile++) {
      Acc* const state = w.state(part, tile);
      std::memset(state, 0, sizeof(Acc) * w.state_size());
      for (int64_t r = 0; r < R; r++) state[w.accumulated() * R + r] = -kInf<Acc>;
    }
    const int64_t stop = smaller(p.queue_rows, (part + 1) * p.part_rows);
    for (int64_t at = part * p.part_rows; at < stop; at += kBlock) {
      const int64_t count = smaller(kBlock, stop - at);
      with_storage(p.queue.dtype, [&](auto type) {
        stage_rows<decltype(type)>(p.queue, at, count, p.columns, block);
      });
      for (int64_t j = at + kBlock; j < smaller(stop, at + 2 * kBlock); j++)
        prefetch_row(p.queue, j, p.columns);
      for (int64_t tile = first; tile < last; tile++)
        visit(w, tile, w.state(part, tile), block, count, e);
    }
    task += last - first;
  }
}

template <class Acc>
void info_nce_finish(const InfoNceParams<Acc>& p, int64_t begin, int64_t end, Acc* scratch) {
  if constexpr (same_type<Acc, double>) {
    finish<double>(p, begin, end, scratch);
  } else {
    if (p.query.dtype == DType::Float32) finish<float>(p, begin, end, scratch);
    if (p.query.dtype == DType::Float16) finish<Half>(p, begin, end, scratch);
    if (p.query.dtype == DType::BFloat16) finish<BFloat16>(p, begin, end, scratch);
  }
}

#define LTK_INSTANTIATE(Acc)                                                            \
  template int64_t info_nce_tile<Acc>();                                                \
  template int64_t info_nce_workspace<Acc>(const InfoNceParams<Acc>&);                  \
  template int64_t info_nce_scratch<Acc>(const InfoNceParams<Acc>&);                    \
  template void info_nce_pack<Acc>(const InfoNceParams<Acc>&, int64_t, int64_t);        \
  template void info_nce_tasks<Acc>(const InfoNceParams<Acc>&, int64_t, int64_t, Acc*); \
  template void info_nce_finish<Acc>(const InfoNceParams<Acc>&, int64_t, int64_t, Acc*);
LTK_INSTANTIATE(float)
LTK_INSTANTIATE(double)
#undef LTK_INSTANTIATE

}  // namespace ltk::LTK_ISA
