// Cross-entropy of adjusted logits and its gradient on the CPU (adjusted_cross_entropy.h has the
// formulas).
//
// One pass over a row: chunks of the logits are adjusted while they are staged in the first-level
// cache; their exponentials, relative to the running maximum, are summed and kept; corrected for
// the maximum's growth they become the gradient. One exponential an element.
#include "ops/adjusted_cross_entropy/adjusted_cross_entropy_cpu.h"

#include "common/cpu/row.h"

namespace ltk::LTK_ISA {
namespace {

template <class Storage, bool Gradient>
struct Row {
  using Acc = Accumulate<Storage>;
  using V = Vec<Acc>;
  static constexpr int L = kLanes<Acc>;

  const AdjustedCrossEntropyParams<Acc>& p;
  Acc factor;
  Acc* staged;  // [kChunk]
  Acc* exps;    // [padded C]
  Acc* maxima;  // [chunks]
  Acc* ones;    // [kChunk] the weights of label smoothing where there are none

  // z of one chunk: scale x + bias, and the target's margin taken off.
  Staged<Acc> adjusted(const Storage* logits, int64_t at, int64_t count, int64_t y) const {
    if (p.scale == 1 && p.bias == nullptr && p.margin == nullptr)
      return stage(logits + at, count, Transform<Acc>{}, staged);
    Staged<Acc> z = p.bias != nullptr ? affine<true>(logits + at, count, p.bias + at)
                                      : affine<false>(logits + at, count, nullptr);
    if (p.margin != nullptr && y >= at && y < at + count) {
      staged[y - at] -= p.scale * p.margin[y];
      z.max = max_of(staged, count);
    }
    return z;
  }

  template <bool Biased>
  Staged<Acc> affine(const Storage* logits, int64_t count, const Acc* bias) const {
    const int64_t whole = count - count % L;
    const V scale = broadcast(p.scale);
    Acc* const to = staged;
    V top = broadcast(-kInf<Acc>);
    for (int64_t i = 0; i < whole; i += L) {
      V x = load(logits + i) * scale;
      if constexpr (Biased) x += load(bias + i);
      store(to + i, x);
      top = max(x, top);
    }
    if (whole < count) {
      V x = load_tail(logits + whole, count - whole, -kInf<Acc>) * scale;
      if constexpr (Biased) x += load_tail(bias + whole, count - whole, Acc(0));
      store(staged + whole, x);
      top = max(x, top);
    }
    return {staged, horizontal_max<Acc>(top)};
  }

  void run(int64_t n) const {
    const int64_t y = p.target[n], size = p.columns;
    Storage* out = static_cast<Storage*>(p.grad) + (Gradient ? n * size : 0);
    if (y == p.ignore_index) {
      p.row_loss[n] = 0;
      if constexpr (Gradient) std::memset(static_cast<void*>(out), 0, sizeof(Storage) * size);
      if (p.grad_scale != nullptr) p.grad_scale[n] = 1;
      return;
    }
    const Storage* logits = static_cast<const Storage*>(p.logits) + n * p.logits_stride;
    RunningMax<Acc> row_max;
    Acc sum = 0;
    WeightedDistance<Acc> smooth;  // of all logits from their maximum, for label smoothing
    for (int64_t k = 0, at = 0; at < size; k++, at += kChunk) {
      const int64_t count = size - at < kChunk ? size - at : kChunk;
      const Staged<Acc> z = adjusted(logits, at, count, y);
      sum *= row_max.raise(z.max, kLog2e<Acc>);
      maxima[k] = row_max.origin();
      sum += exponentials(z.x, count, row_max.origin(), at,
                          {logits, ahead_of(at, size, p.logits_stride)}, {out, at});
      if (p.label_smoothing > 0) {
        const Acc* w = p.class_weight ? p.class_weight + at : ones;
        smooth.add(sum_of(w, count), weighted_distance(w, z.x, count, row_max.origin()),
                   row_max.origin());
      }
    }
    const Acc log_sum = std::log(sum);
    const Acc margin = p.margin ? p.margin[y] : Acc(0), bias = p.bias ? p.bias[y] : Acc(0);
    const Acc z_y = to_float(logits[y]) * p.scale + bias - p.scale * margin;
    const Acc hard = (1 - p.label_smoothing) * (p.class_weight ? p.class_weight[y] : Acc(1));
    const Acc soft = p.label_smoothing / Acc(size);
    // A class without weight is out, even where its logit is -inf (0 * inf).
    Acc loss = hard == 0 ? Acc(0) * log_sum : hard * ((row_max.max - z_y) + log_sum);
    if (p.label_smoothing > 0) loss += soft * (smooth.distance + smooth.weight * log_sum);
    Acc slope = 1;  // of the focal factor
    if (p.focal_gamma > 0) {
      loss = loss < 0 ? Acc(0) : loss;                             // rounding of a loss of 0
      const Acc gamma = p.focal_gamma, miss = -std::expm1(-loss);  // 1 - exp(-loss)
      const Acc power = std::pow(miss, gamma);
      // exp(-l) l vanishes faster than (1 - exp(-l))^(gamma - 1) grows as l goes to infinity or 0.
      const Acc growth = loss > 0 && loss < kInf<Acc>
                             ? gamma * loss * std::exp(-loss) * std::pow(miss, gamma - 1)
                             : Acc(0);
      slope = power + growth;
      loss *= power;
    }
    p.row_loss[n] = loss;
    if constexpr (Gradient) {
      Acc unit = factor * slope * p.scale;
      const Acc mass = hard + soft * smooth.weight;
      if (p.grad_scale != nullptr) {
        p.grad_scale[n] = half_scale(float(std::abs(unit * mass)));
        unit /= p.grad_scale[n];
      }
      gradient(out, logits, y, unit * mass / sum, row_max.max, unit * hard, unit * soft);
    }
  }

  Acc exponentials(const Acc* z, int64_t count, Acc origin, int64_t at,
                   const Prefetch<Storage>& logits_ahead,
                   const PrefetchForWriting<Storage>& grad_ahead) const {
    const V m = broadcast(origin), log2e = broadcast(kLog2e<Acc>);
    V sum{}, sum2{};
    int64_t i = 0;
    for (; i + 2 * L <= count; i += 2 * L) {
      logits_ahead(i);
      logits_ahead(i + L);
      const V e = exp2((load(z + i) - m) * log2e), f = exp2((load(z + i + L) - m) * log2e);
      sum += e;
      sum2 += f;
      if constexpr (Gradient) {
        grad_ahead(i);
        grad_ahead(i + L);
        store(exps + at + i, e);
        store(exps + at + i + L, f);
      }
    }
    for (; i < count; i += L) {
      const V e = exp2((load(z + i) - m) * log2e);
      sum += e;
      if constexpr (Gradient) store(exps + at + i, e);
    }
    return horizontal_sum<Acc>(sum + sum2);
  }

  void gradient(Storage* out, const Storage* logits, int64_t y, Acc share, Acc row_max, Acc hard,
                Acc soft) const {
    for (int64_t k = 0, at = 0; at < p.columns; k++, at += kChunk) {
      const int64_t count = p.columns - at < kChunk ? p.columns - at : kChunk;
      const Acc u = share * correction(maxima[k], row_max, kLog2e<Acc>);
      const V us = broadcast(u);
      Acc* e = exps + at;
      if (p.label_smoothing > 0) {
        for (int64_t i = 0; i < count; i++) {
          const Acc w = p.class_weight ? p.class_weight[at + i] : Acc(1);
          const bool constant =
              to_float(logits[at + i]) == -kInf<Acc> || (p.bias && p.bias[at + i] == -kInf<Acc>);
          from_float(constant ? Acc(0) * u : u * e[i] - soft * w - (at + i == y ? hard : Acc(0)),
                     out + at + i);
        }
        continue;
      }
      const int64_t whole = count - count % L;
      for (int64_t i = 0; i < whole; i += L) store(out + at + i, us * load(e + i));
      if (whole < count) store_tail(out + at + whole, us * load(e + whole), count - whole);
      // From the unrounded probability: a 16-bit p would keep none of the digits of p - 1.
      if (y >= at && y < at + count && to_float(logits[y]) != -kInf<Acc> &&
          !(p.bias && p.bias[y] == -kInf<Acc>))
        from_float(u * e[y - at] - hard, out + y);
    }
  }
};

template <class Storage>
void rows(const AdjustedCrossEntropyParams<Accumulate<Storage>>& p, Accumulate<Storage> factor,
          int64_t begin, int64_t end, Accumulate<Storage>* scratch) {
  using Acc = Accumulate<Storage>;
  Acc* const exps = scratch + kChunk;
  Acc* const maxima = exps + padded(p.columns);
  Acc* const ones = maxima + padded(chunks(p.columns));
  if (p.label_smoothing > 0)
    for (int64_t i = 0; i < kChunk; i++) ones[i] = 1;
  auto all = [&](auto row) {
    for (int64_t n = begin; n < end; n++) row.run(n);
  };
  if (p.grad != nullptr)
    all(Row<Storage, true>{p, factor, scratch, exps, maxima, ones});
  else
    all(Row<Storage, false>{p, factor, scratch, exps, maxima, ones});
}

}  // namespace

template <class Acc>
int64_t adjusted_cross_entropy_scratch(const AdjustedCrossEntropyParams<Acc>& p) {
  return 2 * kChunk + padded(p.columns) + padded(chunks(p.columns));
}

template <>
void adjusted_cross_entropy_rows<float>(const AdjustedCrossEntropyParams<float>& p, float factor,
                                        DType dtype, int64_t begin, int64_t end, float* scratch) {
  if (dtype == DType::Float32) rows<float>(p, factor, begin, end, scratch);
  if (dtype == DType::Float16) rows<Half>(p, factor, begin, end, scratch);
  if (dtype == DType::BFloat16) rows<BFloat16>(p, factor, begin, end, scratch);
}

template <>
void adjusted_cross_entropy_rows<double>(const AdjustedCrossEntropyParams<double>& p, double factor,
                                         DType, int64_t begin, int64_t end, double* scratch) {
  rows<double>(p, factor, begin, end, scratch);
}

template int64_t adjusted_cross_entropy_scratch<float>(const AdjustedCrossEntropyParams<float>&);
template int64_t adjusted_cross_entropy_scratch<double>(const AdjustedCrossEntropyParams<double>&);

}  // namespace ltk::LTK_ISA
