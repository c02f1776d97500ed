// Losses of K experts and their gradients on the CPU (experts.h has the formulas).
//
// One pass over a sample: a chunk of all K logit rows is staged in the first-level cache with its
// maxima; exponentials are taken relative to the running maxima, summed, and kept; after the last
// chunk the kept exponentials, corrected for the maxima that grew meanwhile, become the gradients.
// The mean of the logits is one stream more, with its own, real maximum: where experts disagree, a
// bound made of theirs would let all its exponentials underflow.
//
// With x = logits / T, the running maxima m, a = x - m, e = exp(a) and Z = sum e:
//   Mean      KL(q || p^k) = sum e_q (a_q - a_k) / Z_q - ln Z_q + ln Z_k
//   Pairwise  sum_j v_j KL(p^i || p^j) = sum e_i (V b_i - y) / Z_i + sum_j v_j (ln Z_j - ln Z_i)
//             with b_i = a_i - max_j a_j and y = sum_j v_j b_j a class: 0 where experts are equal,
//             exactly, and never a difference of numbers larger than the a.
// K exponentials a class (and one for the mean). The cross-entropy's is a power of the tempered
// one where T is 1, 2 or 4; its margin concerns the target alone, which is kept out of its sum.
#include "ops/experts/experts_cpu.h"

#include "common/cpu/row.h"

namespace ltk::LTK_ISA {
namespace {

// How exp(logit) of the cross-entropy is had: a power of exp(logit / T), or by itself.
enum class Power { Same, Square, Fourth, Own };

// What goes into an expert's divergence besides its own exponentials. Holed is Pairwise in a chunk
// with logits of -inf, Second is Pairwise without gradient through the first distributions.
enum class Form { Alone, Mean, Pairwise, Second, Holed };

// Fills the last vector of a pairwise chunk: exponentials of 0, differences without NaN.
template <class Acc>
constexpr Acc kFar = static_cast<Acc>(-1e30);

template <class Acc>
struct Stream {      // an expert, or the mean of all
  Acc* staged;       // [kChunk] logits
  Acc* tempered;     // [kChunk] logits / column_temperature
  Acc* exps;         // [padded C] of logits / T
  Acc* raw_exps;     // [padded C] of logits, where no power of `exps` serves
  Acc* origins;      // [chunks] what the exponentials of each chunk refer to
  Acc* raw_origins;  // [chunks]

  const Acc* raw;  // the chunk at hand
  const Acc* x;    // the same, divided by column_temperature where there is one
  Acc before;      // origin before the chunk

  // Sums over the row so far.
  RunningMax<Acc> max, raw_max;
  Acc sum;         // of exps
  Acc divergence;  // see the top
  Acc others;      // of the cross-entropy's exponentials, all but the target's

  // Of the finished row.
  Acc log_sum;
  Power power;      // as all streams', or Own where the row needed exponentials of another range
  Acc total;        // others and the target's
  Acc target_miss;  // others / total = 1 - softmax_y
  bool impossible;  // an infinite cross-entropy
  // The largest logit / T of a class that another expert lacks: any other, with v > 0, with v < 0.
  Acc beside_hole, beside_positive, beside_negative;

  void start() {
    max = raw_max = RunningMax<Acc>{};
    sum = divergence = others = 0;
    beside_hole = beside_positive = beside_negative = -kInf<Acc>;
  }
};

template <class Acc>
struct Scratch {
  Stream<Acc> streams[kMostExperts + 1];  // the mean is the last
  Acc* highest;                           // [kChunk] Pairwise: max_j a_j
  Acc* weighted_sum;                      // [kChunk] Pairwise: y
  Acc* common;                            // [kChunk] Pairwise: sum_i u_i p^i
  Acc* of_mean;                           // [kChunk] OfMean: its gradient
  Acc* out;                               // [kChunk]
  Acc* holed;                             // [chunks] 1 where an expert has -inf

  Scratch(Acc* base, int64_t columns, int experts) {
    const int64_t row = padded(columns), n = padded(chunks(columns));
    auto take = [&base](int64_t count) {
      Acc* taken = base;
      base += count;
      return taken;
    };
    highest = take(kChunk);
    weighted_sum = take(kChunk);
    common = take(kChunk);
    of_mean = take(kChunk);
    out = take(kChunk);
    holed = take(n);
    for (int k = 0; k <= experts; k++) {
      Stream<Acc>& s = streams[k];
      s.staged = take(kChunk);
      s.tempered = take(kChunk);
      s.exps = take(row);
      s.raw_exps = take(row);
      s.origins = take(n);
      s.raw_origins = take(n);
    }
  }
  static int64_t size(int64_t columns, int experts) {
    const int64_t row = padded(columns), n = padded(chunks(columns));
    return 5 * kChunk + n + (experts + 1) * (2 * kChunk + 2 * row + 2 * n);
  }
};

template <Power P, class T>
inline T power(T e) {
  if constexpr (P == Power::Square) return e * e;
  if constexpr (P == Power::Fourth) return (e * e) * (e * e);
  return e;
}

// f(integral constant of the enumerator).
template <auto Value>
struct Constant {
  static constexpr auto value = Value;
};
template <class F>
inline auto with_power(Power power, F f) {
  switch (power) {
    case Power::Square: return f(Constant<Power::Square>{});
    case Power::Fourth: return f(Constant<Power::Fourth>{});
    case Power::Own: return f(Constant<Power::Own>{});
    default: return f(Constant<Power::Same>{});
  }
}
// f(constant K, to unroll loops over the experts), 0 where K is only known at run time.
template <class F>
inline auto with_experts(int experts, F f) {
  switch (experts) {
    case 2: return f(Constant<2>{});
    case 3: return f(Constant<3>{});
    case 4: return f(Constant<4>{});
    default: return f(Constant<0>{});
  }
}

// Prefetches that a loop over a chunk interleaves with its arithmetic.
template <class Storage>
struct Ahead {
  Prefetch<Storage> logits;
  PrefetchForWriting<Storage> grad;
  bool writes;
};

template <class Storage>
struct Row {
  using Acc = Accumulate<Storage>;
  using V = Vec<Acc>;
  static constexpr int L = kLanes<Acc>;

  const ExpertsParams<Acc>& p;
  const ExpertsTables<Acc>& tables;
  Scratch<Acc>& scratch;

  // The same for all rows.
  int experts = p.experts;
  bool gradients = p.grad != nullptr;
  bool by_column = tables.inverse_temperature != nullptr && p.divergence != ExpertDivergence::None;
  bool each = p.cross_entropy == ExpertCrossEntropy::Each;
  bool of_mean = p.cross_entropy == ExpertCrossEntropy::OfMean;
  bool to_mean = p.divergence == ExpertDivergence::Mean;
  bool pairwise = p.divergence == ExpertDivergence::Pairwise;
  bool uses_mean = of_mean || to_mean;
  bool uses_experts = each || to_mean || pairwise;
  Power shared_power = Power::Same;
  Stream<Acc>& mean = scratch.streams[experts];

  // Of the row at hand.
  int64_t n = 0;
  const Storage* logits[kMostExperts] = {};
  Acc inverse = 1, log2_scale = kLog2e<Acc>;
  Acc u[kMostExperts] = {}, v[kMostExperts] = {};
  bool drops_impossible = false;
  Acc compared_v[kMostExperts] = {}, sum_compared = 0;  // v of the y at hand

  Row(const ExpertsParams<Acc>& params, const ExpertsTables<Acc>& t, Scratch<Acc>& s)
      : p(params), tables(t), scratch(s) {
    const bool one_temperature = p.row_temperature == nullptr && !by_column;
    if (p.divergence == ExpertDivergence::None || (one_temperature && p.temperature == 1))
      shared_power = Power::Same;
    else if (one_temperature && p.temperature == 2)
      shared_power = Power::Square;
    else if (one_temperature && p.temperature == 4)
      shared_power = Power::Fourth;
    else
      shared_power = Power::Own;
  }

  // The mean's exponentials are of logits / T only where a divergence asks for them.
  Power power_of(const Stream<Acc>& s) const {
    return &s == &mean && !to_mean ? Power::Same : shared_power;
  }
  Acc log2_scale_of(const Stream<Acc>& s) const {
    return &s == &mean && !to_mean ? kLog2e<Acc> : log2_scale;
  }
  bool has_cross_entropy(const Stream<Acc>& s) const { return &s == &mean ? of_mean : each; }

  // ---- staging --------------------------------------------------------------------------------

  // Logits of a chunk; the maximum.
  Acc stage_raw(int k, int64_t at, int64_t count) {
    Stream<Acc>& s = scratch.streams[k];
    const Staged<Acc> chunk = stage(logits[k] + at, count, Transform<Acc>{}, s.staged);
    s.raw = s.x = chunk.x;
    if (pairwise) fill_far(s.staged, count);
    return chunk.max;
  }

  template <int K>
  Acc stage_mean_of(int64_t count) {
    const int size = K > 0 ? K : experts;
    const Stream<Acc>* s = scratch.streams;
    const V divisor = broadcast(Acc(size));
    V top = broadcast(-kInf<Acc>);
    for (int64_t i = 0; i < count; i += L) {
      V x = load(s[0].raw + i);
      for (int k = 1; k < size; k++) x += load(s[k].raw + i);
      x /= divisor;
      store(mean.staged + i, x);
      top = max(x, top);
    }
    mean.raw = mean.x = mean.staged;
    pad(mean.staged, count);
    return count % L == 0 ? horizontal_max<Acc>(top) : max_of(mean.staged, count);
  }
  Acc stage_mean(int64_t count) {
    return with_experts(experts, [&](auto k) { return stage_mean_of<k.value>(count); });
  }

  // x = raw / T of a chunk; the maximum.
  Acc stage_tempered(Stream<Acc>& s, int64_t at, int64_t count) {
    const Acc* scale = tables.inverse_temperature + at;
    V top = broadcast(-kInf<Acc>);
    for (int64_t i = 0; i < count; i += L) {
      const V x = load(s.raw + i) * load(scale + i);  // -inf * 0 beyond the last class
      store(s.tempered + i, x);
      top = max(x, top);
    }
    s.x = s.tempered;
    if (count % L == 0) return horizontal_max<Acc>(top);
    pad(s.tempered, count);
    const Acc largest = max_of(s.tempered, count);
    if (pairwise) fill_far(s.tempered, count);
    return largest;
  }

  static void fill_far(Acc* x, int64_t count) {
    for (int64_t i = count; i % L != 0; i++) x[i] = kFar<Acc>;
  }

  // ---- first pass -----------------------------------------------------------------------------

  struct Sums {
    Acc sum = 0, divergence = 0, raw = 0;
  };

  template <Form F, Power P>
  Sums exponentials(const Stream<Acc>& s, int64_t count, int64_t keep,
                    const Ahead<Storage>& ahead) const {
    const V scale = broadcast(log2_scale_of(s)), m = broadcast(s.max.origin());
    const V raw_m = broadcast(s.raw_max.origin()), log2e = broadcast(kLog2e<Acc>);
    const V mean_m = broadcast(F == Form::Mean ? mean.max.origin() : Acc(0));
    const V all = broadcast(sum_compared);
    const Acc* mean_exps = mean.exps + keep;
    const Acc* const mean_x = mean.x;
    const Acc* const highest = scratch.highest;
    const Acc* const weighted_sum = scratch.weighted_sum;
    Acc* const exps = s.exps + keep;
    Acc* const raw_exps = s.raw_exps + keep;
    const Acc* const xs = s.x;
    const Acc* const raws = s.raw;
    const bool writes = ahead.writes;
    V sum{}, divergence{}, raw{};
    for (int64_t i = 0; i < count; i += L) {
      ahead.logits(i);
      if (writes) ahead.grad(i);
      const V a = load(xs + i) - m, e = exp2(a * scale);
      sum += e;
      store(exps + i, e);
      if constexpr (F == Form::Mean) {
        const V q = load(mean_exps + i);
        // Terms without mass are 0, whatever the difference (-inf - -inf is NaN).
        divergence += q * (q == V{} ? V{} : (load(mean_x + i) - mean_m) - a);
      }
      if constexpr (F == Form::Pairwise)
        divergence += e * (all * (a - load(highest + i)) - load(weighted_sum + i));
      if constexpr (F == Form::Holed) {
        const V y = load(weighted_sum + i);
        const V term = e * (all * (a - load(highest + i)) - y);
        divergence += e == V{} ? V{} : (y != y ? V{} : term);
      }
      if constexpr (P == Power::Own) {
        const V r = exp2((load(raws + i) - raw_m) * log2e);
        store(raw_exps + i, r);
        raw += r;
      } else if constexpr (P != Power::Same) {
        raw += power<P>(e);
      }
    }
    Sums sums{horizontal_sum<Acc>(sum), horizontal_sum<Acc>(divergence), 0};
    sums.raw = P == Power::Same ? sums.sum : horizontal_sum<Acc>(raw);
    return sums;
  }

  template <Form F>
  void accumulate(Stream<Acc>& s, int64_t at, int64_t count, const Ahead<Storage>& ahead) {
    const bool cross_entropy = has_cross_entropy(s);
    const int64_t keep = gradients ? at : 0;
    const Power how = cross_entropy ? power_of(s) : Power::Same;
    const Sums chunk =
        with_power(how, [&](auto of) { return exponentials<F, of.value>(s, count, keep, ahead); });
    s.sum += chunk.sum;
    s.divergence += chunk.divergence;
    if (!cross_entropy) return;
    const int64_t y = p.target[n] - at;
    s.others += y < 0 || y >= count ? chunk.raw : sum_without(s, how, keep, count, y);
  }

  // Sum of the cross-entropy's exponentials of a chunk, all but that of column y.
  Acc sum_without(const Stream<Acc>& s, Power how, int64_t keep, int64_t count, int64_t y) const {
    Acc* const e = (how == Power::Own ? s.raw_exps : s.exps) + keep;
    const Acc kept = e[y];
    e[y] = 0;
    const Acc sum = with_power(how, [&](auto of) {
      V sum{};
      for (int64_t i = 0; i < count; i += L) sum += power<of.value>(load(e + i));
      return horizontal_sum<Acc>(sum);
    });
    e[y] = kept;
    return sum;
  }

  // Sums over the experts leave out the one that they are for where weights differ: its own,
  // however large, must not cost the others' digits. Equal ones cancel, so that one sum serves all.
  bool own_sums_of_v() const { return p.sample_weight != nullptr && p.weight_of_second; }
  bool own_sums_of_u() const { return p.sample_weight != nullptr && !p.weight_of_second; }
  void choose_compared(int left_out) {
    sum_compared = 0;
    for (int k = 0; k < experts; k++) sum_compared += compared_v[k] = k == left_out ? Acc(0) : v[k];
  }

  // max_j a_j and y of each class of a chunk, relative to `origins`; the lowest logit.
  template <int K>
  Acc compare_of(int64_t count, const Acc* origins) {
    const int size = K > 0 ? K : experts;
    const Stream<Acc>* s = scratch.streams;
    V low{};
    for (int64_t i = 0; i < count; i += L) {
      V a[K > 0 ? K : kMostExperts];
      V top = broadcast(-kInf<Acc>), y{};
      for (int k = 0; k < size; k++) {
        const V x = load(s[k].x + i);
        low = low > x ? x : low;
        a[k] = x - broadcast(origins[k]);
        top = max(a[k], top);
      }
      for (int k = 0; k < size; k++) y += broadcast(compared_v[k]) * (a[k] - top);
      store(scratch.highest + i, top);
      store(scratch.weighted_sum + i, y);
    }
    return -horizontal_max<Acc>(-low);
  }
  Acc compare(int64_t count, const Acc* origins, int left_out) {
    choose_compared(left_out);
    return with_experts(experts, [&](auto k) { return compare_of<k.value>(count, origins); });
  }

  // The same of a chunk in which an expert lacks a class: y is NaN where one with v != 0 does.
  void compare_holed(int64_t count, const Acc* origins, int left_out) {
    choose_compared(left_out);
    const Stream<Acc>* s = scratch.streams;
    for (int64_t i = 0; i < count; i++) {
      Acc top = -kInf<Acc>, y = 0;
      for (int k = 0; k < experts; k++) {
        const Acc a = s[k].x[i] - origins[k];
        top = a > top ? a : top;
      }
      for (int k = 0; k < experts; k++) {
        if (compared_v[k] == 0) continue;
        const Acc x = s[k].x[i];
        y += x == -kInf<Acc> ? kInf<Acc> - kInf<Acc> : compared_v[k] * ((x - origins[k]) - top);
      }
      scratch.highest[i] = top;
      scratch.weighted_sum[i] = y;
    }
    for (int64_t i = count; i % L != 0; i++) scratch.highest[i] = scratch.weighted_sum[i] = 0;
  }

  // What the experts have of classes that another lacks.
  void note_holes(int64_t count) {
    Stream<Acc>* s = scratch.streams;
    for (int64_t i = 0; i < count; i++) {
      bool any = false, positive = false, negative = false;
      for (int k = 0; k < experts; k++) {
        if (s[k].x[i] != -kInf<Acc>) continue;
        any = true;
        positive |= v[k] > 0;
        negative |= v[k] < 0;
      }
      for (int k = 0; any && k < experts; k++) {
        auto note = [x = s[k].x[i]](Acc& largest) { largest = x > largest ? x : largest; };
        note(s[k].beside_hole);
        if (positive) note(s[k].beside_positive);
        if (negative) note(s[k].beside_negative);
      }
    }
  }

  // Takes a chunk's maxima in; the sums follow. Returns the correction of `sum`.
  Acc raise(Stream<Acc>& s, Acc raw_top, Acc top, int64_t chunk) {
    s.before = s.max.origin();
    const Acc correction = s.max.raise(top, log2_scale_of(s));
    s.sum *= correction;
    s.origins[chunk] = s.max.origin();
    if (has_cross_entropy(s)) {
      s.others *= s.raw_max.raise(raw_top, kLog2e<Acc>);
      s.raw_origins[chunk] = s.raw_max.origin();
    }
    return correction;
  }

  void start(int64_t row) {
    n = row;
    for (int k = 0; k <= experts; k++) scratch.streams[k].start();
    for (int k = 0; k < experts; k++)
      logits[k] = static_cast<const Storage*>(p.logits[k]) + n * p.logits_stride[k];
    const Acc temperature = p.row_temperature ? p.row_temperature[n] : p.temperature;
    inverse = by_column || p.divergence == ExpertDivergence::None ? Acc(1) : 1 / temperature;
    log2_scale = inverse * kLog2e<Acc>;
    if (!pairwise) return;
    for (int k = 0; k < experts; k++) {
      const Acc weight = p.sample_weight ? p.sample_weight[k * p.rows + n] : Acc(1);
      u[k] = p.weight_of_second ? Acc(1) : weight;
      v[k] = p.weight_of_second ? weight : Acc(1);
    }
  }

  Ahead<Storage> ahead_of(int k, int64_t at, int64_t count) const {
    // The next chunk, or the next row's first one.
    const int64_t next = at + count == p.columns ? p.logits_stride[k] : at + count;
    return {{logits[k], next},
            {static_cast<Storage*>(p.grad), (k * p.rows + n) * p.columns + at},
            gradients};
  }

  void first_pass() {
    Stream<Acc>* const s = scratch.streams;
    for (int64_t chunk = 0, at = 0; at < p.columns; chunk++, at += kChunk) {
      const int64_t count = p.columns - at < kChunk ? p.columns - at : kChunk;
      Acc raw_top[kMostExperts + 1], top[kMostExperts + 1], corrections[kMostExperts];
      for (int k = 0; k < experts; k++) raw_top[k] = top[k] = stage_raw(k, at, count);
      if (uses_mean) raw_top[experts] = top[experts] = stage_mean(count);
      if (by_column)
        for (int k = 0; k < experts + uses_mean; k++)
          if (k < experts || to_mean) top[k] = stage_tempered(s[k], at, count);

      Acc mean_correction = 1;
      if (uses_mean) mean_correction = raise(mean, raw_top[experts], top[experts], chunk);
      if (uses_experts)
        for (int k = 0; k < experts; k++) corrections[k] = raise(s[k], raw_top[k], top[k], chunk);
      // The divergences follow in steps that are exact where the maxima are far apart, and cancel
      // where experts are equal.
      for (int k = 0; to_mean && k < experts; k++) {
        const Acc moved = (mean.before - mean.max.origin()) - (s[k].before - s[k].max.origin());
        s[k].divergence = mean_correction == 0 ? Acc(0) : s[k].divergence * mean_correction;
        s[k].divergence += mean.sum * moved;
      }
      for (int k = 0; pairwise && k < experts; k++) {
        Acc moved = 0;
        for (int j = 0; j < experts; j++)
          moved += v[j] * ((s[k].before - s[k].max.origin()) - (s[j].before - s[j].max.origin()));
        s[k].divergence = corrections[k] == 0 ? Acc(0) : s[k].divergence * corrections[k];
        s[k].divergence += s[k].sum * moved;
      }

      if (uses_mean) {
        const Ahead<Storage> nothing{{logits[0], at}, {nullptr, 0}, false};
        accumulate<Form::Alone>(mean, at, count, nothing);
      }
      bool holed = false;
      Acc origins[kMostExperts];
      if (pairwise) {
        for (int k = 0; k < experts; k++) origins[k] = s[k].max.origin();
        const Acc low = compare(count, origins, -1);
        holed = !(low > 2 * kFar<Acc>);
        if (holed) {
          note_holes(count);
          compare_holed(count, origins, -1);
        }
        scratch.holed[chunk] = holed;
      }
      for (int k = 0; uses_experts && k < experts; k++) {
        const Ahead<Storage> ahead = ahead_of(k, at, count);
        if (pairwise && own_sums_of_v())
          holed ? compare_holed(count, origins, k) : void(compare(count, origins, k));
        if (to_mean)
          accumulate<Form::Mean>(s[k], at, count, ahead);
        else if (holed)
          accumulate<Form::Holed>(s[k], at, count, ahead);
        else if (pairwise)
          accumulate<Form::Pairwise>(s[k], at, count, ahead);
        else
          accumulate<Form::Alone>(s[k], at, count, ahead);
      }
    }
  }

  // ---- the row's loss -------------------------------------------------------------------------

  // A row without a finite logit, or with NaN or +inf.
  static bool is_bad(const Stream<Acc>& s) { return !(s.sum > 0); }

  Acc logit_of(const Stream<Acc>& s, int64_t c) const {
    if (&s != &mean) return to_float(logits[&s - scratch.streams][c]);
    Acc sum = to_float(logits[0][c]);
    for (int k = 1; k < experts; k++) sum += to_float(logits[k][c]);
    return sum / Acc(experts);
  }

  // -log softmax of the target under its margin.
  Acc cross_entropy(Stream<Acc>& s) {
    const int64_t y = p.target[n];
    const Acc margin = p.margin ? p.margin[y] : Acc(0), z = logit_of(s, y);
    s.power = power_of(s);
    Acc distance = (z - s.raw_max.max) - margin;  // of the target from the origin
    Acc e = std::exp(distance);
    s.total = s.others + e;
    // A margin so large that the others' exponentials have lost digits, or that e has overflown.
    if (!(s.total > Acc(0x1p-32) && s.total < Acc(0x1p32))) {
      const Acc origin = take_own_exponentials(s, z - margin);
      distance = (z - origin) - margin;
      e = std::exp(distance);
      s.total = s.others + e;
    }
    s.target_miss = s.others / s.total;
    s.impossible = z == -kInf<Acc>;
    // The first form keeps the digits of a loss near 0.
    return e > Acc(0x1p-100) ? std::log1p(s.others / e) : std::log(s.total) - distance;
  }

  // Exponentials of all logits but the target's relative to the largest under the margin, in
  // raw_exps. Rare: the row is staged once more.
  Acc take_own_exponentials(Stream<Acc>& s, Acc target) {
    const int k = static_cast<int>(&s - scratch.streams);
    Acc origin = target;
    auto each_chunk = [&](auto body) {
      for (int64_t at = 0; at < p.columns; at += kChunk) {
        const int64_t count = p.columns - at < kChunk ? p.columns - at : kChunk;
        for (int j = k < experts ? k : 0; j < (k < experts ? k + 1 : experts); j++)
          stage_raw(j, at, count);
        if (k == experts) stage_mean(count);
        for (int64_t i = 0; i < count; i++) scratch.out[i] = s.raw[i];
        pad(scratch.out, count);
        const int64_t y = p.target[n] - at;
        if (y >= 0 && y < count) scratch.out[y] = -kInf<Acc>;
        body(at, count);
      }
    };
    each_chunk([&](int64_t, int64_t count) {
      const Acc top = max_of(scratch.out, count);
      origin = top > origin ? top : origin;
    });
    s.others = 0;
    each_chunk([&](int64_t at, int64_t count) {
      Acc* const raw_exps = s.raw_exps + (gradients ? at : 0);
      V sum{};
      for (int64_t i = 0; i < count; i += L) {
        const V e = exp2((load(scratch.out + i) - broadcast(origin)) * broadcast(kLog2e<Acc>));
        store(raw_exps + i, e);
        sum += e;
      }
      s.others += horizontal_sum<Acc>(sum);
      s.raw_origins[at / kChunk] = origin;
    });
    s.raw_max.max = origin;
    s.power = Power::Own;
    return origin;
  }

  // sum_j v_j KL(p^k || p^j)
  Acc divergence_from_others(const Stream<Acc>& s) const {
    Acc d = inverse * (s.divergence / s.sum);
    for (int j = 0; j < experts; j++) d += v[j] * (scratch.streams[j].log_sum - s.log_sum);
    // Probability that another lacks; the definition's has the range of Acc, subnormals included.
    auto held = [&](Acc x) { return std::exp(inverse * (x - s.max.max) - s.log_sum) > 0; };
    if (held(s.beside_positive)) d += kInf<Acc>;
    if (held(s.beside_negative)) d -= kInf<Acc>;
    return d;
  }

  bool is_infinite() const {
    for (int k = 0; k < experts; k++) {
      const Stream<Acc>& s = scratch.streams[k];
      if (std::exp(inverse * (s.beside_hole - s.max.max) - s.log_sum) > 0) return true;
    }
    return false;
  }

  void run(int64_t row) {
    start(row);
    first_pass();
    Stream<Acc>* const s = scratch.streams;
    const Acc nan = kInf<Acc> - kInf<Acc>;

    bool one_bad = uses_mean && is_bad(mean);
    for (int k = 0; uses_experts && k < experts; k++) one_bad |= is_bad(s[k]);
    Acc classification = 0;
    const Acc weight = p.class_weight && p.target ? p.class_weight[p.target[n]] : Acc(1);
    for (int k = 0; each && k < experts; k++)
      classification += is_bad(s[k]) ? nan : cross_entropy(s[k]);
    if (of_mean) classification = is_bad(mean) ? nan : cross_entropy(mean);
    // A class without weight is out, even where its logit is -inf (0 * inf).
    drops_impossible = weight == 0;
    if (drops_impossible && classification == kInf<Acc>) classification = 0;
    const Acc ce_unit = p.ce_factor * p.ce_reduction * weight;
    Acc loss = each || of_mean ? ce_unit * classification : Acc(0);

    const Acc kl_unit = p.kl_factor * p.kl_reduction *
                        (p.row_factor ? p.row_factor[n * p.row_factor_stride] : Acc(1));
    Acc divergence = 0;
    if (to_mean || pairwise)
      for (int k = 0; k < experts; k++) s[k].log_sum = std::log(s[k].sum);
    if (to_mean) {
      const Acc log_sum = std::log(mean.sum);
      for (int k = 0; k < experts; k++)
        divergence += inverse * (s[k].divergence / mean.sum) + (s[k].log_sum - log_sum);
    } else if (pairwise) {
      for (int k = 0; k < experts; k++)
        if (u[k] != 0) divergence += u[k] * divergence_from_others(s[k]);
    }
    if (to_mean || pairwise) loss += kl_unit * (one_bad ? nan : divergence);
    p.row_loss[n] = loss;
    if (!gradients) return;

    const bool one_for_all = of_mean || to_mean || pairwise;
    bool any_good = false;
    for (int k = 0; k < experts; k++) {
      if (one_for_all ? one_bad : is_bad(s[k])) {
        fill(k, nan);
        bad_[k] = true;
      } else {
        bad_[k] = false;
        any_good = true;
      }
    }
    if (any_good) gradient(ce_unit, kl_unit);
  }

  // ---- gradients ------------------------------------------------------------------------------

  bool bad_[kMostExperts];

  Storage* grad_of(int k) const {
    return static_cast<Storage*>(p.grad) + (k * p.rows + n) * p.columns;
  }

  void fill(int k, Acc value) {
    Storage* out = grad_of(k);
    for (int64_t c = 0; c < p.columns; c++) from_float(value, out + c);
    if (p.grad_scale != nullptr) p.grad_scale[k * p.rows + n] = 1;
  }

  // Of one expert in one chunk:
  //   g = e (u + first (V b - y)) - v common, divided by T [C], + w * the cross-entropy's e
  struct Factors {
    Acc u, v, first, w, origin;
  };
  struct Inputs {
    const Acc *e, *raw_e, *x, *common, *of_mean, *inverse_temperature;
  };

  template <Form F, Power P, bool ByColumn, bool OfMean>
  V gradient_vector(const Factors& f, const Inputs& in, int64_t i) const {
    V g{};
    if constexpr (F != Form::Alone || !OfMean) {
      const V e = load(in.e + i);
      if constexpr (F == Form::Pairwise || F == Form::Holed) {
        const V b = (load(in.x + i) - broadcast(f.origin)) - load(scratch.highest + i);
        const V y = load(scratch.weighted_sum + i);
        V slope = broadcast(f.first) * (broadcast(sum_compared) * b - y);
        if constexpr (F == Form::Holed)
          slope = e == V{} || y != y || broadcast(f.first) == V{} ? V{} : slope;
        g = e * (broadcast(f.u) + slope);
      } else {
        g = broadcast(f.u) * e;
      }
      if constexpr (F != Form::Alone) g -= broadcast(f.v) * load(in.common + i);
      if constexpr (ByColumn) g *= load(in.inverse_temperature + i);
      if constexpr (P == Power::Own)
        g += broadcast(f.w) * load(in.raw_e + i);
      else if constexpr (P != Power::Same)
        g += broadcast(f.w) * power<P>(e);
    }
    if constexpr (OfMean) g += broadcast(f.w) * load(in.of_mean + i);
    if constexpr (F == Form::Holed) g = load(in.x + i) == broadcast(-kInf<Acc>) ? V{} : g;
    return g;
  }

  template <Form F, Power P, bool ByColumn, bool OfMean>
  void gradient_chunk(Storage* out, int64_t count, const Factors& given, const Inputs& in,
                      const Factors& of_divergence, int64_t y, Acc y_share) const {
    const Factors f = given;
    const int64_t whole = count - count % L;
    for (int64_t i = 0; i < whole; i += L)
      store(out + i, gradient_vector<F, P, ByColumn, OfMean>(f, in, i));
    if (whole < count) {
      Acc rest[L];
      store(rest, gradient_vector<F, P, ByColumn, OfMean>(f, in, whole));
      for (int64_t i = whole; i < count; i++) from_float(rest[i - whole], out + i);
    }
    if (y < 0) return;
    // The target's: p_y - 1 without the cancellation, and before rounding.
    Acc lanes[L];
    store(lanes, gradient_vector<F, Power::Same, ByColumn, false>(of_divergence, in, y - y % L));
    from_float(lanes[y % L] + y_share, out + y);
  }

  template <Form F>
  void gradient_form(Power how, Storage* out, int64_t count, const Factors& f, const Inputs& in,
                     const Factors& of_divergence, int64_t y, Acc y_share) const {
    auto call = [&](auto of, auto column, auto mean_too) {
      gradient_chunk<F, of.value, column.value, mean_too.value>(out, count, f, in, of_divergence, y,
                                                                y_share);
    };
    using No = Constant<false>;
    using Yes = Constant<true>;
    using Same = Constant<Power::Same>;
    if (of_mean)
      by_column ? call(Same{}, Yes{}, Yes{}) : call(Same{}, No{}, Yes{});
    else if (by_column && how == Power::Own)
      call(Constant<Power::Own>{}, Yes{}, No{});
    else if (by_column)
      call(Same{}, Yes{}, No{});
    else
      with_power(how, [&](auto of) { call(of, No{}, No{}); });
  }

  // softmax(mean) - [c = y] of a chunk, times `share`.
  void mean_gradient(int64_t chunk, int64_t at, int64_t count, Acc share) {
    const bool own = mean.power == Power::Own;
    const Acc w = share / mean.total *
                  correction(mean.raw_origins[chunk], mean.raw_max.origin(), kLog2e<Acc>);
    const Acc* const e = (own ? mean.raw_exps : mean.exps) + at;
    with_power(mean.power, [&](auto of) {
      for (int64_t i = 0; i < count; i += L)
        store(scratch.of_mean + i, broadcast(w) * power<of.value>(load(e + i)));
    });
    const int64_t y = p.target[n] - at;
    if (y >= 0 && y < count)
      scratch.of_mean[y] =
          logit_of(mean, p.target[n]) == -kInf<Acc> ? Acc(0) : -share * mean.target_miss;
  }

  // sum_i u_i p^i of a chunk, and sum_i u_i.
  template <int K>
  void mix_of(int64_t at, int64_t count, const Acc* share) {
    const int size = K > 0 ? K : experts;
    const Stream<Acc>* s = scratch.streams;
    for (int64_t i = 0; i < count; i += L) {
      V sum = broadcast(share[0]) * load(s[0].exps + at + i);
      for (int k = 1; k < size; k++) sum += broadcast(share[k]) * load(s[k].exps + at + i);
      store(scratch.common + i, sum);
    }
  }

  Acc mix(int64_t at, int64_t count, const Acc* moved, int left_out) {
    Acc share[kMostExperts], sum = 0;
    for (int k = 0; k < experts; k++) {
      const Acc weight = k == left_out ? Acc(0) : u[k];
      share[k] = weight / scratch.streams[k].sum * moved[k];
      sum += weight;
    }
    with_experts(experts, [&](auto of) { mix_of<of.value>(at, count, share); });
    return sum;
  }

  // sum_j |v_j| KL(p || p^j) is at most this, whatever p. Rare: the row is staged once more.
  Acc largest_divergence() {
    Acc lowest[kMostExperts] = {};
    for (int64_t at = 0; at < p.columns; at += kChunk) {
      const int64_t count = p.columns - at < kChunk ? p.columns - at : kChunk;
      for (int k = 0; k < experts; k++) {
        Stream<Acc>& s = scratch.streams[k];
        stage_raw(k, at, count);
        if (by_column) stage_tempered(s, at, count);
        for (int64_t i = 0; i < count; i++) {
          const Acc a = s.x[i] - s.max.max;
          lowest[k] = a < lowest[k] && a > -kInf<Acc> ? a : lowest[k];
        }
      }
    }
    Acc d = 0;
    for (int k = 0; k < experts; k++)
      d += std::abs(v[k]) * (scratch.streams[k].log_sum - inverse * lowest[k]);
    return d;
  }

  // At most as large as float16 gradients of an expert get.
  Acc magnitude(int k, Acc ce_unit, Acc kl_unit, bool first) {
    const Acc steepest = by_column ? tables.largest_inverse_temperature : inverse;
    Acc of_divergence = to_mean ? Acc(1) : Acc(0);  // |p - q|
    if (pairwise) {
      Acc sum_u = 0, sum_v = 0;
      bool negative = false;
      for (int j = 0; j < experts; j++) {
        sum_u += std::abs(u[j]);
        sum_v += std::abs(v[j]);
        negative |= v[j] < 0;
      }
      if (p.second_gradient) of_divergence += std::abs(v[k]) * sum_u;
      if (first && u[k] != 0) {
        // |p (h - sum p h)| <= D + V for weights v >= 0. half_scale's margin takes 8 of it.
        const Acc d = negative ? largest_divergence() : divergence_from_others(scratch.streams[k]);
        const Acc bound = (d + sum_v) / 8;
        of_divergence += std::abs(u[k]) * (bound > sum_v ? bound : sum_v);
      }
    }
    return std::abs(ce_unit) + std::abs(kl_unit) * steepest * of_divergence;
  }

  void gradient(Acc ce_unit, Acc kl_unit) {
    Stream<Acc>* const s = scratch.streams;
    const Acc kl = kl_unit * inverse;
    const bool first = pairwise && p.first_gradient && !is_infinite();
    const bool second = pairwise && p.second_gradient;
    Acc unit[kMostExperts], origins[kMostExperts];
    for (int k = 0; k < experts; k++) {
      unit[k] = 1;
      origins[k] = s[k].max.origin();
      if (p.grad_scale != nullptr && !bad_[k]) {
        const Acc scale = half_scale(float(magnitude(k, ce_unit, kl_unit, first)));
        p.grad_scale[k * p.rows + n] = scale;
        unit[k] = 1 / scale;
      }
    }
    const int64_t target = p.target != nullptr ? p.target[n] : -1;
    for (int64_t chunk = 0, at = 0; at < p.columns; chunk++, at += kChunk) {
      const int64_t count = p.columns - at < kChunk ? p.columns - at : kChunk;
      if (of_mean) {
        const bool dropped = drops_impossible && mean.impossible;
        mean_gradient(chunk, at, count, dropped ? Acc(0) : ce_unit / Acc(experts));
      }
      const bool holed = pairwise && scratch.holed[chunk] != 0;
      Acc moved[kMostExperts];  // from the chunk's origin to the row's
      for (int k = 0; uses_experts && k < experts; k++)
        moved[k] = correction(s[k].origins[chunk], s[k].max.origin(), log2_scale);
      if (holed || first) {
        for (int k = 0; k < experts; k++) {
          stage_raw(k, at, count);
          if (by_column) stage_tempered(s[k], at, count);
        }
        if (!own_sums_of_v())
          holed ? compare_holed(count, origins, -1) : void(compare(count, origins, -1));
      }
      Acc sum_u = 0;
      if (second && !own_sums_of_u()) sum_u = mix(at, count, moved, -1);
      if (pairwise && !second) std::memset(scratch.common, 0, sizeof(Acc) * kChunk);
      for (int k = 0; k < experts; k++) {
        if (bad_[k]) continue;
        const Stream<Acc>& z = s[k];
        const bool here = each && target >= at && target < at + count;
        Factors f{0, 0, 0, of_mean ? unit[k] : Acc(0), origins[k]};
        Inputs in{
            z.exps + at,    z.raw_exps + at, z.x,
            scratch.common, scratch.of_mean, by_column ? tables.inverse_temperature + at : nullptr};
        const Acc share = uses_experts ? unit[k] * kl * moved[k] / z.sum : Acc(0);
        if (to_mean) {
          f.u = share;
          f.v = unit[k] * kl / mean.sum *
                correction(mean.origins[chunk], mean.max.origin(), log2_scale);
          in.common = mean.exps + at;
        } else if (pairwise) {
          if (first && own_sums_of_v())
            holed ? compare_holed(count, origins, k) : void(compare(count, origins, k));
          if (second && own_sums_of_u()) sum_u = mix(at, count, moved, k);
          f.u = second ? share * v[k] * sum_u : Acc(0);
          f.v = second ? unit[k] * kl * v[k] : Acc(0);
          if (first) {
            f.first = share * u[k] * inverse;
            f.u -= f.first * (z.divergence / z.sum);
          }
        }
        const Factors of_divergence = f;
        Power how = Power::Same;
        const Acc ce_share = drops_impossible && each && z.impossible ? Acc(0) : ce_unit;
        if (each) {
          how = z.power;
          f.w = unit[k] * ce_share / z.total *
                correction(z.raw_origins[chunk], z.raw_max.origin(), kLog2e<Acc>);
          if (how == Power::Same) f.u += f.w;
        }
        const bool constant = here && to_float(logits[k][target]) == -kInf<Acc>;
        const Acc y_share = constant ? Acc(0) : -unit[k] * ce_share * z.target_miss;
        auto write = [&](auto form) {
          gradient_form<form.value>(how, grad_of(k) + at, count, f, in, of_divergence,
                                    here ? target - at : -1, here ? y_share : Acc(0));
        };
        if (holed)
          write(Constant<Form::Holed>{});
        else if (first)
          write(Constant<Form::Pairwise>{});
        else if (pairwise)
          write(Constant<Form::Second>{});
        else if (to_mean)
          write(Constant<Form::Mean>{});
        else
          write(Constant<Form::Alone>{});
      }
    }
  }
};

template <class Storage>
void rows(const ExpertsParams<Accumulate<Storage>>& p,
          const ExpertsTables<Accumulate<Storage>>& tables, int64_t begin, int64_t end,
          Accumulate<Storage>* memory) {
  Scratch<Accumulate<Storage>> scratch(memory, p.columns, p.experts);
  Row<Storage> row(p, tables, scratch);
  for (int64_t n = begin; n < end; n++) row.run(n);
}

}  // namespace

template <class Acc>
int64_t experts_scratch(const ExpertsParams<Acc>& p) {
  return Scratch<Acc>::size(p.columns, p.experts);
}

template <>
void experts_rows<float>(const ExpertsParams<float>& p, const ExpertsTables<float>& t, DType dtype,
                         int64_t begin, int64_t end, float* scratch) {
  if (dtype == DType::Float32) rows<float>(p, t, begin, end, scratch);
  if (dtype == DType::Float16) rows<Half>(p, t, begin, end, scratch);
  if (dtype == DType::BFloat16) rows<BFloat16>(p, t, begin, end, scratch);
}

template <>
void experts_rows<double>(const ExpertsParams<double>& p, const ExpertsTables<double>& t, DType,
                          int64_t begin, int64_t end, double* scratch) {
  rows<double>(p, t, begin, end, scratch);
}

template int64_t experts_scratch<float>(const ExpertsParams<float>&);
template int64_t experts_scratch<double>(const ExpertsParams<double>&);

}  // namespace ltk::LTK_ISA
