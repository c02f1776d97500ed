// ride_loss, diversity_loss and collaborative_kd_loss on CUDA: loss and every expert's gradient in
// one visit of a sample. The formulas are in experts.h.
//
// The K rows of a sample belong to one group of threads, so that sums over the experts cost no
// traffic. Bytes: every logit is read once and every gradient is written once (2 K N C elements,
// the floor) wherever the K rows fit on chip; beyond that the logits are read twice.
//
//   kernel    columns               K        the K rows are                    threads of a sample
//   resident  up to 512; K = 4: 256 2, 3, 4  held in registers                 8, 32
//   shared    up to shared memory   2, 3, 4  held in shared memory             64, 128, 256, 512
//   stream    any                   2, 3, 4  read twice, online softmax        256
//   general   any, and float64      1 .. 16  the same, value by value          256
//
// A temperature for each column goes to stream or general, too.
//
// All exponentials are powers of two, 2^(x - max) with x = log2(e) z / T. softmax(z) at T = 1, for
// the cross-entropy, is the power 1, 2 or 4 of what the divergence has for those T, and an
// exponential of its own otherwise. A margin moves one logit; the column of the target is treated
// apart. Sums are float (double for float64); no atomics on floats.
//
// With Z the sums of the powers of an expert and of the mean m:
//   Mean      D = sum_k lse(z^k / T) - K lse(m / T), up to the rounding of m, which is put back:
//             - sum_c q_c (sum_k z^k_c - K m_c) / T_c
//   Pairwise  D = ln2 sum_i u_i ( H_i / Z_i - V log2 Z_i + sum_j v_j log2 Z_j ),
//             H_i = sum_c 2^a^i_c (V a^i_c - sum_j v_j a^j_c),  a: exponents
//             and h_c - sum_d p_d h_d of the gradient is (V a^i_c - sum_j v_j a^j_c) - H_i / Z_i.
#pragma once

#include "common/cuda/chunk.cuh"
#include "common/cuda/reduce.cuh"
#include "ops/experts/experts.h"

namespace ltk::cuda {

// ---- The arithmetic of one sample ---------------------------------------------------------------

// Arrays over the experts: kExperts of them, or for kExperts = 0 as many as the call has. The mean
// of the experts is one more distribution, at kMean.
template <int kExperts>
constexpr int kMean = kExperts ? kExperts : kMostExperts;
template <int kExperts>
constexpr int kUnrolled = kExperts ? kExperts + 1 : 1;

// What a sample adds up: the maxima of x and of the logits of the cross-entropy, the powers of two
// of both, H. Arrays end with the mean.
template <class Acc, int kExperts>
struct ExpertSums {
  static constexpr int kSize = kMean<kExperts> + 1;
  Acc top[kSize], plain_top[kSize];
  Acc exp[kSize], plain[kSize], cross[kSize];
  Acc residual = 0;  // sum_c 2^b_c (sum_k x^k_c - K x^m_c), b: exponents of the mean
  Acc largest = 0;   // at least every |u_k 2^a^k_c (V a^k_c - sum_j v_j a^j_c)|
  Acc steepest = 0;  // the largest log2(e) / T
  bool gap = false;  // whether some class is -inf for one expert and not for another

  __device__ __forceinline__ ExpertSums() {
    LTK_UNROLL_BY(kUnrolled<kExperts>)
    for (int k = 0; k < kSize; ++k) {
      top[k] = plain_top[k] = -kInfinity<Acc>;
      exp[k] = plain[k] = cross[k] = 0;
    }
  }
};

// How softmax(z) at T = 1 comes from the exponential at T.
enum class PlainExp { Power1, Power2, Power4, Own };

// What a kernel is compiled for: a divergence from the mean (or none), or of pairs, with one
// temperature a row; or whatever the call asks for.
enum class Form { ToMean, Pairs, Any };

// One sample. A thread works on pieces of kWidth columns, kPieces of them a chunk; `offset` counts
// columns from the thread's first one, see RowView. Where rows stay in registers, kKeeps, `add` may
// leave exponentials where it found logits.
template <class Storage, int kExperts, Form kForm, bool kKeeps = false>
struct ExpertRows {
  using Acc = Accumulate<Storage>;
  using Sums = ExpertSums<Acc, kExperts>;
  static constexpr int kWidth = kExperts ? 4 : 1;
  static constexpr int kPieces = kExperts ? kChunk<Storage> / kWidth : 1;
  static constexpr int kCount = kWidth * kPieces;
  static constexpr int kM = kMean<kExperts>;
  static constexpr int kSize = kM + 1;
  static constexpr int kUnroll = kUnrolled<kExperts>;
  using Values = Acc[kSize][kWidth];  // of a piece: the experts, then their mean
  using Pieces = Values[kPieces];
  using Raw = Chunk<Storage>[kExperts ? kExperts : 1];

  const ExpertsParams<Acc>& p;
  const int64_t row;
  const int columns, target;
  const int first;  // column of the thread's first piece
  const Acc margin, temperature, scale, ce_reduction;
  const PlainExp plain;
  // Of the two softmaxes of a distribution: what its exponents are relative to, and what its
  // exponentials are multiplied by in the gradient.
  Acc shift[kSize], plain_shift[kSize];
  Acc of_exp[kSize], of_plain[kSize];
  Acc of_target = 0;                        // what the target takes from its gradient
  Acc of_kl = 0, mean_gap[kSize];           // Pairwise: the common factor, H / Z
  Acc weight[kSize], sum_u = 0, sum_v = 0;  // Pairwise: of the call, U, V
  bool first_gradient = false;

  __device__ __forceinline__ ExpertRows(const ExpertsParams<Acc>& p, int64_t row, int rank,
                                        Acc ce_reduction)
      : p(p),
        row(row),
        columns(static_cast<int>(p.columns)),
        target(has_ce() ? checked_column(p.target[row], p.columns) : -1),
        first(rank * kCount - head()),
        margin(has_ce() && p.margin ? p.margin[target] : Acc(0)),
        temperature(read_temperature()),
        scale(kLog2E<Acc> / temperature),
        ce_reduction(ce_reduction),
        plain(plain_of()) {
    LTK_UNROLL_BY(kUnroll)
    for (int d = 0; d < kSize; ++d) shift[d] = plain_shift[d] = 0;
    if (pairwise()) {
      for_experts([&](int k) {
        weight[k] = p.sample_weight ? p.sample_weight[k * p.rows + row] : Acc(1);
        sum_u += u(k);
        sum_v += v(k);
      });
    }
  }

  // ---- What the call asks for ----

  __device__ __forceinline__ int experts() const { return kExperts ? kExperts : p.experts; }
  __device__ __forceinline__ bool has_ce() const {
    return p.cross_entropy != ExpertCrossEntropy::None;
  }
  __device__ __forceinline__ bool each() const {
    return p.cross_entropy == ExpertCrossEntropy::Each;
  }
  __device__ __forceinline__ bool of_mean() const {
    return p.cross_entropy == ExpertCrossEntropy::OfMean;
  }
  __device__ __forceinline__ bool to_mean() const {
    return kForm != Form::Pairs && p.divergence == ExpertDivergence::Mean;
  }
  __device__ __forceinline__ bool pairwise() const {
    return kForm == Form::Pairs ||
           (kForm == Form::Any && p.divergence == ExpertDivergence::Pairwise);
  }
  __device__ __forceinline__ bool by_column() const {
    return kForm == Form::Any && p.column_temperature;
  }
  __device__ __forceinline__ bool has_mean() const { return to_mean() || of_mean(); }
  // Whether `add` leaves exponentials: not where the gradient needs two of a logit, or the
  // exponent.
  __device__ __forceinline__ bool keeps() const {
    return kKeeps && !pairwise() && plain != PlainExp::Own;
  }

  template <class Body>
  __device__ __forceinline__ void for_experts(Body body) const {
    LTK_UNROLL_BY(kUnroll)
    for (int k = 0; k < experts(); ++k) body(k);
  }

  // ---- Rows ----

  __device__ __forceinline__ const Storage* logits_row(int k) const {
    return static_cast<const Storage*>(p.logits[k]) + row * p.logits_stride[k];
  }
  __device__ __forceinline__ Storage* gradient_row(int k) const {
    return static_cast<Storage*>(p.grad) + (k * p.rows + row) * p.columns;
  }
  static __device__ __forceinline__ Storage masked() { return narrow<Storage>(-kInfinity<Acc>); }

  __device__ __forceinline__ void load(int offset, Raw& raw) const {
    LTK_UNROLL
    for (int k = 0; k < kExperts; ++k) {
      raw[k] =
          RowView<const Storage>(logits_row(k), first, columns).load_constant(offset, masked());
    }
  }
  // Puts the mean of the experts behind them.
  __device__ __forceinline__ void average(Values& z) const {
    if (!has_mean()) return;
    LTK_UNROLL
    for (int j = 0; j < kWidth; ++j) z[kM][j] = total(z, j) * (Acc(1) / experts());
  }
  __device__ __forceinline__ void widen_all(const Raw& raw, Pieces& z) const {
    LTK_UNROLL
    for (int i = 0; i < kPieces; ++i) {
      LTK_UNROLL
      for (int k = 0; k < kExperts; ++k) {
        LTK_UNROLL
        for (int j = 0; j < kWidth; ++j) z[i][k][j] = widen(raw[k].value[i * kWidth + j]);
      }
      average(z[i]);
    }
  }
  __device__ __forceinline__ void fetch(int offset, Pieces& z) const {
    if constexpr (kExperts != 0) {
      Raw raw;
      load(offset, raw);
      widen_all(raw, z);
    } else {
      for_experts([&](int k) { z[0][k][0] = widen(logits_row(k)[first + offset]); });
      average(z[0]);
    }
  }

  // ---- First visit of the columns: maxima ----

  __device__ __forceinline__ void find_top(int offset, const Pieces& z, Sums& sums) const {
    LTK_UNROLL
    for (int i = 0; i < kPieces; ++i) find_top_of(offset + i * kWidth, z[i], sums);
  }

  template <class Group>
  __device__ __forceinline__ void share_top(Group& group, Sums& sums) const {
    all_reduce_each(group, sums.top, Max());
    if (plain == PlainExp::Own && has_ce()) {
      all_reduce_each(group, sums.plain_top, Max());
    }
    if (by_column() && p.grad_scale) {
      sums.steepest = group.all_reduce(sums.steepest, Max());
    }
  }

  __device__ __forceinline__ void set_shifts(const Sums& sums) {
    LTK_UNROLL_BY(kUnroll)
    for (int d = 0; d < kSize; ++d) {
      shift[d] = sums.top[d];
      plain_shift[d] =
          plain == PlainExp::Own ? sums.plain_top[d] * kLog2E<Acc> : sums.top[d] * temperature;
    }
  }

  // For sums that are collected before all maxima are known: makes them relative to the maxima so
  // far. A maximum of -inf (nothing yet) counts as 0, so that every difference is finite.
  __device__ __forceinline__ void rebase(Sums& sums) {
    const bool own = plain == PlainExp::Own;
    Acc up[kSize], drift = 0;
    bool higher = false;
    LTK_UNROLL_BY(kUnroll)
    for (int d = 0; d < kSize; ++d) {
      const Acc to = finite_or_zero(sums.top[d]);
      up[d] = to == shift[d] ? Acc(0) : to - shift[d];
      const Acc plain_to = own ? finite_or_zero(sums.plain_top[d]) * kLog2E<Acc> : to * temperature;
      higher = higher || up[d] != 0 || plain_to != plain_shift[d];
    }
    if (!higher) return;
    if (pairwise()) for_experts([&](int k) { drift += v(k) * up[k]; });
    LTK_UNROLL_BY(kUnroll)
    for (int d = 0; d < kSize; ++d) {
      if (pairwise()) {
        const Acc gap = drift - sum_v * up[d];
        sums.cross[d] = scaled(sums.cross[d] + sums.exp[d] * gap, -up[d]);
        if (p.grad_scale && d < experts()) sums.largest += std::fabs(u(d) * gap);
      }
      sums.exp[d] = scaled(sums.exp[d], -up[d]);
      const Acc plain_to = own ? finite_or_zero(sums.plain_top[d]) * kLog2E<Acc>
                               : finite_or_zero(sums.top[d]) * temperature;
      const Acc plain_up = plain_to == plain_shift[d] ? Acc(0) : plain_to - plain_shift[d];
      sums.plain[d] = scaled(sums.plain[d], -plain_up);
      shift[d] = finite_or_zero(sums.top[d]);
      plain_shift[d] = plain_to;
    }
    sums.residual = scaled(sums.residual, -up[kM]);
  }

  // ---- Second visit: sums ----

  __device__ __forceinline__ void add(int offset, Pieces& z, Sums& sums) const {
    LTK_UNROLL
    for (int i = 0; i < kPieces; ++i) add_piece(offset + i * kWidth, z[i], sums);
  }

  template <class Group>
  __device__ __forceinline__ void share_sums(Group& group, Sums& sums) const {
    all_reduce_each(group, sums.exp, Sum());
    if (has_ce()) all_reduce_each(group, sums.plain, Sum());
    if (pairwise()) {
      all_reduce_each(group, sums.cross, Sum());
      if (p.grad_scale && p.first_gradient) {
        sums.largest = group.all_reduce(sums.largest, Max());
      }
    }
    if (to_mean()) sums.residual = group.all_reduce(sums.residual, Sum());
  }

  // Loss of the sample, coefficients of its gradient. One thread of the group is the `writer`.
  template <class Group>
  __device__ __forceinline__ void finish(Group& group, Sums& sums, bool writer) {
    share_sums(group, sums);
    LTK_UNROLL_BY(kUnroll)
    for (int d = 0; d < kSize; ++d) {
      if (sums.top[d] == -kInfinity<Acc>) sums.exp[d] = sums.plain[d] = kNaN<Acc>;
    }
    const Gaps gaps = pairwise() && group.any(sums.gap) ? find_gaps(group, sums) : Gaps{};

    const Acc k = p.kl_factor * (p.row_factor ? p.row_factor[row * p.row_factor_stride] : Acc(1));
    const Acc w = has_ce() && p.class_weight ? p.class_weight[target] : Acc(1);
    const Acc ce_factor = p.ce_factor * ce_reduction;
    if (writer) {
      Acc loss = 0;
      if (has_ce()) {
        const Acc ce = cross_entropy(sums);
        // A weight of 0 takes even an infinite term out.
        loss = w == 0 && std::fabs(ce) == kInfinity<Acc> ? 0 * ce_factor : ce_factor * w * ce;
      }
      if (to_mean()) loss += p.kl_reduction * (k * kl_to_mean(sums));
      if (pairwise()) loss += p.kl_reduction * (k * (kl_of_pairs(sums) + gaps.loss));
      p.row_loss[row] = loss;
    }
    if (!p.grad) return;
    // The gradient computes exponentials again: keeping those of `add` would take more registers
    // than there are.
    LTK_UNROLL_BY(kUnroll)
    for (int d = 0; d < kSize; ++d) {
      shift[d] = opaque(shift[d]);
      plain_shift[d] = opaque(plain_shift[d]);
    }

    Acc kl = p.kl_reduction * k * kLn2<Acc>;  // times log2(e) / T
    Acc ce = ce_factor * w;
    first_gradient = pairwise() && p.first_gradient && !gaps.infinite;
    if (p.grad_scale) {
      const Acc steepest = by_column() ? sums.steepest : scale;
      const Acc half =
          half_scale((has_ce() ? std::fabs(ce) : Acc(0)) + std::fabs(kl) * steepest * bound(sums));
      if (writer) for_experts([&](int i) { p.grad_scale[i * p.rows + row] = half; });
      kl /= half;
      ce /= half;
    }
    LTK_UNROLL_BY(kUnroll)
    for (int d = 0; d < kSize; ++d) {
      of_plain[d] = ce / sums.plain[d];
      of_exp[d] = (to_mean() ? kl : Acc(1)) / sums.exp[d];
    }
    of_target = ce;
    if (of_mean()) {
      of_target /= experts();
      of_plain[kM] /= experts();
    }
    if (pairwise()) {
      for_experts([&](int i) {
        mean_gap[i] = sums.cross[i] / sums.exp[i];
        kl += 0 * sums.exp[i];  // a sum that is NaN is NaN to all
      });
      of_kl = kl;
    }
  }

  // ---- Third visit: gradients ----

  __device__ __forceinline__ void write_gradient(int offset, const Pieces& kept) const {
    Storage out[kM][kCount];
    LTK_UNROLL
    for (int i = 0; i < kPieces; ++i) {
      gradient(offset + i * kWidth, kept[i], [&](int k, const Acc(&g)[kWidth]) {
        LTK_UNROLL
        for (int j = 0; j < kWidth; ++j) out[k][i * kWidth + j] = narrow<Storage>(g[j]);
      });
    }
    for_experts([&](int k) {
      if constexpr (kExperts != 0) {
        RowView<Storage>(gradient_row(k), first, columns)
            .store(offset, bit_cast<Chunk<Storage>>(out[k]));
      } else {
        gradient_row(k)[first + offset] = out[k][0];
      }
    });
  }

 private:
  // ---- Construction ----

  __device__ __forceinline__ int head() const {
    if constexpr (kWidth == 1) return 0;
    return p.grad ? row_head(gradient_row(0)) : row_head(logits_row(0));
  }
  __device__ __forceinline__ Acc read_temperature() const {
    if (p.divergence == ExpertDivergence::None || by_column()) return 1;
    return p.row_temperature ? p.row_temperature[row] : p.temperature;
  }
  __device__ __forceinline__ PlainExp plain_of() const {
    // A margin moves a maximum by no more than itself: up to 32 the powers have the range for it.
    if (by_column() || !(std::fabs(margin) <= 32)) return PlainExp::Own;
    if (temperature == Acc(1)) return PlainExp::Power1;
    if (temperature == Acc(2)) return PlainExp::Power2;
    return temperature == Acc(4) ? PlainExp::Power4 : PlainExp::Own;
  }

  // ---- Pieces ----

  // The target's place among the columns of a piece, or something that is none.
  __device__ __forceinline__ unsigned place(int offset) const {
    return target < 0 ? ~0u : static_cast<unsigned>(target - first - offset);
  }
  // log2(e) / T of the columns.
  __device__ __forceinline__ void scales(int offset, Acc (&s)[kWidth]) const {
    if (by_column()) {
      load_vector(p.column_temperature, first + offset, columns, Acc(1), s);
    }
    LTK_UNROLL
    for (int j = 0; j < kWidth; ++j) s[j] = by_column() ? kLog2E<Acc> / s[j] : scale;
  }
  __device__ __forceinline__ Acc total(const Values& z, int j) const {
    Acc sum = 0;
    for_experts([&](int k) { sum += z[k][j]; });
    return sum;
  }
  __device__ __forceinline__ void exponents(int d, const Values& z, const Acc (&s)[kWidth],
                                            Acc (&a)[kWidth]) const {
    LTK_UNROLL
    for (int j = 0; j < kWidth; ++j) a[j] = std::fma(z[d][j], s[j], -shift[d]);
  }
  // 2^a from what `add` left.
  __device__ __forceinline__ void kept_exps(int d, const Values& kept, const Acc (&s)[kWidth],
                                            Acc (&e)[kWidth]) const {
    exponents(d, kept, s, e);
    LTK_UNROLL
    for (int j = 0; j < kWidth; ++j) e[j] = keeps() ? kept[d][j] : fast_exp2(e[j]);
  }
  __device__ __forceinline__ void keep(const Acc (&e)[kWidth], Acc (&z)[kWidth]) const {
    LTK_UNROLL
    for (int j = 0; j < kWidth; ++j) z[j] = keeps() ? e[j] : z[j];
  }
  static __device__ __forceinline__ Acc finite_or_zero(Acc a) {
    return a == -kInfinity<Acc> ? Acc(0) : a;
  }
  // 0 stays 0, also where the factor is infinite.
  static __device__ __forceinline__ Acc scaled(Acc sum, Acc exponent) {
    return sum == 0 ? Acc(0) : sum * fast_exp2(exponent);
  }

  // ---- The three visits of a piece ----

  __device__ __forceinline__ void find_top_of(int offset, const Values& z, Sums& sums) const {
    Acc s[kWidth];
    scales(offset, s);
    const auto of = [&](int d, bool own) {
      LTK_UNROLL
      for (int j = 0; j < kWidth; ++j) sums.top[d] = std::fmax(sums.top[d], z[d][j] * s[j]);
      if (!own || plain != PlainExp::Own) return;
      LTK_UNROLL
      for (int j = 0; j < kWidth; ++j) {
        const Acc adjusted = place(offset) == static_cast<unsigned>(j) ? z[d][j] - margin : z[d][j];
        sums.plain_top[d] = std::fmax(sums.plain_top[d], adjusted);
      }
    };
    for_experts([&](int k) { of(k, each()); });
    if (has_mean()) of(kM, of_mean());
    if (!by_column()) return;
    LTK_UNROLL
    for (int j = 0; j < kWidth; ++j) sums.steepest = std::fmax(sums.steepest, s[j]);
  }

  __device__ __forceinline__ void add_piece(int offset, Values& z, Sums& sums) const {
    Acc s[kWidth];
    scales(offset, s);
    if (has_mean()) {
      Acc e[kWidth];
      exponents(kM, z, s, e);
      LTK_UNROLL
      for (int j = 0; j < kWidth; ++j) {
        e[j] = fast_exp2(e[j]);
        sums.exp[kM] += e[j];
        const Acc rounding = std::fma(-Acc(experts()), z[kM][j], total(z, j));
        sums.residual += e[j] == 0 ? Acc(0) : e[j] * (rounding * s[j]);
      }
      if (of_mean()) add_plain(kM, offset, z[kM], e, sums);
      keep(e, z[kM]);
    }
    if (pairwise()) add_pairs(z, s, sums);
    for_experts([&](int k) {
      Acc e[kWidth];
      exponents(k, z, s, e);
      LTK_UNROLL
      for (int j = 0; j < kWidth; ++j) {
        e[j] = fast_exp2(e[j]);
        sums.exp[k] += e[j];
      }
      if (each()) add_plain(k, offset, z[k], e, sums);
      keep(e, z[k]);
    });
  }

  // Calls write(k, gradient of expert k) for a piece.
  template <class Write>
  __device__ __forceinline__ void gradient(int offset, const Values& kept, Write write) const {
    Acc s[kWidth];
    scales(offset, s);
    Acc common[kWidth] = {};  // to all experts
    if (has_mean()) {
      Acc e[kWidth];
      kept_exps(kM, kept, s, e);
      LTK_UNROLL
      for (int j = 0; j < kWidth; ++j) {
        if (to_mean()) common[j] = -e[j] * of_exp[kM] * s[j];
      }
      if (of_mean()) add_plain_gradient(kM, offset, kept[kM], e, common);
    }
    Acc mixture[kWidth] = {}, crowd[kWidth] = {};  // sum_i u_i p^i_c, sum_j v_j a^j_c
    if (pairwise()) {
      for_experts([&](int k) {
        Acc a[kWidth];
        exponents(k, kept, s, a);
        LTK_UNROLL
        for (int j = 0; j < kWidth; ++j) {
          mixture[j] += u(k) * (fast_exp2(a[j]) * of_exp[k]);
          crowd[j] += finite_or_zero(a[j]) * v(k);
        }
      });
    }
    for_experts([&](int k) {
      Acc e[kWidth], g[kWidth];
      kept_exps(k, kept, s, e);
      LTK_UNROLL
      for (int j = 0; j < kWidth; ++j) {
        g[j] = common[j];
        if (to_mean()) g[j] += e[j] * of_exp[k] * s[j];
        if (pairwise()) {
          const Acc prob = e[j] * of_exp[k], a = std::fma(kept[k][j], s[j], -shift[k]);
          Acc slope = 0;
          if (p.second_gradient) slope = v(k) * (sum_u * prob - mixture[j]);
          if (first_gradient) {
            const Acc gap = sum_v * finite_or_zero(a) - crowd[j] - mean_gap[k];
            slope += u(k) * kLn2<Acc> * (prob * gap);
          }
          g[j] += of_kl * (a == -kInfinity<Acc> ? Acc(0) : slope * s[j]);
        }
      }
      if (each()) add_plain_gradient(k, offset, kept[k], e, g);
      write(k, g);
    });
  }

  // ---- The cross-entropy ----

  // The target's logit of a distribution.
  __device__ __forceinline__ Acc label(int d) const {
    if (d != kM) return widen(logits_row(d)[target]);
    Acc sum = 0;
    for_experts([&](int k) { sum += widen(logits_row(k)[target]); });
    return sum * (Acc(1) / experts());
  }
  __device__ __forceinline__ Acc label_exponent(int d) const {
    return std::fma(label(d) - margin, kLog2E<Acc>, -plain_shift[d]);
  }
  // e^z at T = 1, up to one factor for the whole row, from logits z or their exponentials at T.
  __device__ __forceinline__ void plain_exps(int d, int offset, const Acc (&z)[kWidth],
                                             const Acc (&e)[kWidth], Acc (&out)[kWidth]) const {
    LTK_UNROLL
    for (int j = 0; j < kWidth; ++j) {
      if (plain == PlainExp::Own) {
        out[j] = fast_exp2(std::fma(z[j], kLog2E<Acc>, -plain_shift[d]));
      } else {
        const Acc square = plain == PlainExp::Power1 ? e[j] : e[j] * e[j];
        out[j] = plain == PlainExp::Power4 ? square * square : square;
      }
    }
    // Selects, no branch around them: that becomes an index into local memory.
    Acc of_label = 0;
    if (place(offset) < kWidth) of_label = fast_exp2(label_exponent(d));
    LTK_UNROLL
    for (int j = 0; j < kWidth; ++j) {
      out[j] = place(offset) == static_cast<unsigned>(j) ? of_label : out[j];
    }
  }
  __device__ __forceinline__ void add_plain(int d, int offset, const Acc (&z)[kWidth],
                                            const Acc (&e)[kWidth], Sums& sums) const {
    Acc powers[kWidth];
    plain_exps(d, offset, z, e, powers);
    LTK_UNROLL
    for (int j = 0; j < kWidth; ++j) sums.plain[d] += powers[j];
  }
  __device__ __forceinline__ void add_plain_gradient(int d, int offset, const Acc (&z)[kWidth],
                                                     const Acc (&e)[kWidth],
                                                     Acc (&g)[kWidth]) const {
    Acc powers[kWidth];
    plain_exps(d, offset, z, e, powers);
    LTK_UNROLL
    for (int j = 0; j < kWidth; ++j) g[j] += powers[j] * of_plain[d];
    Acc pull = 0;
    if (place(offset) < kWidth && label(d) != -kInfinity<Acc>) pull = of_target;
    LTK_UNROLL
    for (int j = 0; j < kWidth; ++j) {
      g[j] -= place(offset) == static_cast<unsigned>(j) ? pull : Acc(0);
    }
  }
  __device__ __forceinline__ Acc cross_entropy(const Sums& sums) const {
    Acc loss = 0;
    const auto add = [&](int d) {
      loss += std::log(sums.plain[d]) - label_exponent(d) * kLn2<Acc>;
    };
    if (each()) for_experts(add);
    if (of_mean()) add(kM);
    return loss;
  }

  // ---- The divergences ----

  __device__ __forceinline__ Acc kl_to_mean(const Sums& sums) const {
    const Acc log_sum = std::log(sums.exp[kM]);
    Acc kl = -sums.residual / sums.exp[kM] * kLn2<Acc>;
    for_experts([&](int k) {
      kl += (shift[k] - shift[kM]) * kLn2<Acc> + (std::log(sums.exp[k]) - log_sum);
    });
    return kl;
  }

  __device__ __forceinline__ Acc u(int k) const { return p.weight_of_second ? Acc(1) : weight[k]; }
  __device__ __forceinline__ Acc v(int k) const { return p.weight_of_second ? weight[k] : Acc(1); }

  __device__ __forceinline__ void add_pairs(const Values& z, const Acc (&s)[kWidth],
                                            Sums& sums) const {
    LTK_UNROLL
    for (int j = 0; j < kWidth; ++j) {
      Acc crowd = 0, lowest = kInfinity<Acc>, highest = -kInfinity<Acc>;
      for_experts([&](int k) {
        const Acc a = std::fma(z[k][j], s[j], -shift[k]);
        crowd += finite_or_zero(a) * v(k);
        lowest = std::fmin(lowest, a);
        highest = std::fmax(highest, a);
      });
      for_experts([&](int k) {
        const Acc a = std::fma(z[k][j], s[j], -shift[k]);
        const Acc term = fast_exp2(a) * (sum_v * finite_or_zero(a) - crowd);
        sums.cross[k] += term;
        if (p.grad_scale) sums.largest = std::fmax(sums.largest, std::fabs(u(k) * term));
      });
      if (lowest == -kInfinity<Acc> && highest > lowest) sums.gap = true;
    }
  }

  __device__ __forceinline__ Acc kl_of_pairs(const Sums& sums) const {
    Acc all = 0, kl = 0;
    for_experts([&](int k) { all += v(k) * std::log(sums.exp[k]); });
    for_experts([&](int k) {
      kl += u(k) * (sums.cross[k] / sums.exp[k] * kLn2<Acc> - sum_v * std::log(sums.exp[k]) + all);
    });
    return kl;
  }

  // What |kl| / T is multiplied by at most in the gradient of an expert.
  __device__ __forceinline__ Acc bound(const Sums& sums) const {
    if (!pairwise()) return to_mean() ? 1 : 0;
    Acc sum = 0, most = 0, gap = 0;
    for_experts([&](int k) {
      sum += std::fabs(u(k));
      most = std::fmax(most, std::fabs(v(k)));
      gap = std::fmax(gap, std::fabs(u(k) * sums.cross[k] / sums.exp[k]));
    });
    return (p.second_gradient ? most * sum : Acc(0)) +
           (first_gradient ? kLn2<Acc> * (sums.largest + gap) : Acc(0));
  }

  // Classes that one expert has and another has not. Rows with a -inf are rare: they are read
  // again.
  struct Gaps {
    bool infinite = false;  // a divergence of some pair
    Acc loss = 0;           // what infinite divergences add: 0, an infinity, or NaN of both signs
  };
  template <class Group>
  __device__ __forceinline__ Gaps find_gaps(Group& group, const Sums& sums) const {
    // log2 of what still rounds to a probability above 0.
    constexpr Acc kLeast = sizeof(Acc) == sizeof(float) ? Acc(-150) : Acc(-1075);
    const auto infinity = [](Acc weight) { return weight == 0 ? Acc(0) : weight * kInfinity<Acc>; };
    int found = 0;
    Acc loss = 0;
    for (int c = group.rank(); c < columns; c += group.size()) {
      const Acc s = by_column() ? kLog2E<Acc> / p.column_temperature[c] : scale;
      bool held = false, lacking = false;
      Acc of_held = 0, of_lacking = 0;
      for_experts([&](int k) {
        const Acc z = widen(logits_row(k)[c]);
        if (z == -kInfinity<Acc>) {
          lacking = true;
          of_lacking += infinity(v(k));
        } else if (std::fma(z, s, -shift[k]) - std::log2(sums.exp[k]) > kLeast) {
          held = true;
          of_held += infinity(u(k));
        }
      });
      if (!held || !lacking) continue;
      found = 1;
      loss += p.weight_of_second ? of_lacking : of_held;  // of one side, the other's weights are 1
    }
    return {group.all_reduce(found, Any()) != 0, group.all_reduce(loss, Sum())};
  }
};

// 1 / sum_n w_{target[n]} where the call asks for it: every block adds it up for itself.
template <class Acc>
__device__ __forceinline__ Acc known_ce_reduction(const ExpertsParams<Acc>& p,
                                                  unsigned char* scratch) {
  if (p.cross_entropy == ExpertCrossEntropy::None || p.ce_reduction >= 0) return p.ce_reduction;
  const double sum = block_sum(p.rows, scratch, [&](int64_t n) {
    const int y = checked_column(p.target[n], p.columns);
    return p.class_weight ? double(p.class_weight[y]) : 1.;
  });
  __syncthreads();  // the scratch is free again
  return static_cast<Acc>(1 / sum);
}

// loss = sum of the rows, by the block that finishes last. Of no row it is 0, or NaN for a mean.
template <class Acc>
__device__ __forceinline__ void reduce_rows(const ExpertsParams<Acc>& p, Acc ce_reduction,
                                            unsigned* counter, unsigned char* scratch) {
  if (p.rows == 0) {
    Acc nothing = 0;
    if (p.cross_entropy != ExpertCrossEntropy::None) nothing += 0 * ce_reduction;
    if (p.divergence != ExpertDivergence::None) nothing += 0 * p.kl_reduction;
    if (p.loss && threadIdx.x == 0) *p.loss = nothing;
    return;
  }
  reduce_rows(p.row_loss, p.rows, Acc(1), p.loss, counter, scratch);
}

// ---- resident: the rows in registers ------------------------------------------------------------

// kRowThreads threads share a sample; each holds kHeld chunks of every expert.
template <class Storage, int kExperts, Form kForm, int kRowThreads, int kHeld>
__global__ void __launch_bounds__(resident_block(kRowThreads), 2)
    experts_resident(const __grid_constant__ ExpertsParams<float> p,
                     unsigned* __restrict__ counter) {
  using Rows = ExpertRows<Storage, kExperts, kForm, true>;
  constexpr int kRows = resident_block(kRowThreads) / kRowThreads;
  constexpr int kStep = kRowThreads * kChunk<Storage>;
  unsigned char* const scratch = dynamic_shared();
  const float ce_reduction = known_ce_reduction(p, scratch);
  RowGroup<kRowThreads> group(scratch);

  for (int64_t first = int64_t{blockIdx.x} * kRows; first < p.rows;
       first += int64_t{gridDim.x} * kRows) {
    // Lanes without a row repeat the last one and keep the result for themselves.
    const int64_t row = first + threadIdx.x / kRowThreads;
    const bool real = row < p.rows;
    Rows math(p, real ? row : p.rows - 1, group.rank(), ce_reduction);

    typename Rows::Raw raw[kHeld];  // all loads before the first use: all in flight
    LTK_UNROLL
    for (int i = 0; i < kHeld; ++i) math.load(i * kStep, raw[i]);
    typename Rows::Pieces z[kHeld];
    typename Rows::Sums sums;
    LTK_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      math.widen_all(raw[i], z[i]);
      math.find_top(i * kStep, z[i], sums);
    }
    math.share_top(group, sums);
    math.set_shifts(sums);
    LTK_UNROLL
    for (int i = 0; i < kHeld; ++i) math.add(i * kStep, z[i], sums);
    math.finish(group, sums, real && group.rank() == 0);

    if (real && p.grad) {
      LTK_UNROLL
      for (int i = 0; i < kHeld; ++i) math.write_gradient(i * kStep, z[i]);
    }
  }
  reduce_rows(p, ce_reduction, counter, scratch);
}

// ---- shared: the rows in shared memory ----------------------------------------------------------

// Threads that the registers must suffice for; blocks have the power of two below.
template <int kExperts, Form kForm>
constexpr int kSharedThreads = kExperts + (kForm == Form::Pairs) <= 3   ? 512
                               : kExperts + (kForm == Form::Pairs) == 4 ? 384
                                                                        : 256;

// A block per sample. The rows are kept as they were read: exponentials are computed twice, which
// costs less than the traffic of keeping them.
template <class Storage, int kExperts, Form kForm>
__global__ void __launch_bounds__((kSharedThreads<kExperts, kForm>), 1)
    experts_shared(const __grid_constant__ ExpertsParams<float> p, unsigned* __restrict__ counter,
                   int pitch) {  // chunks of a row
  using Rows = ExpertRows<Storage, kExperts, kForm>;
  const int step = blockDim.x * kChunk<Storage>;
  unsigned char* const scratch = dynamic_shared();
  Chunk<Storage>* const kept =
      reinterpret_cast<Chunk<Storage>*>(scratch + scratch_bytes(blockDim.x)) + threadIdx.x;
  const float ce_reduction = known_ce_reduction(p, scratch);
  BlockGroup group(scratch);

  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    Rows math(p, row, group.rank(), ce_reduction);
    typename Rows::Pieces z;
    typename Rows::Sums sums;
    // A thread comes back to the chunks it has stored: no barrier between the passes.
    const auto kept_at = [&](int k, int offset) {
      return kept + k * pitch + offset / kChunk<Storage>;
    };
    const auto fetch = [&](int offset) {
      typename Rows::Raw raw;
      LTK_UNROLL
      for (int k = 0; k < kExperts; ++k) {
        raw[k] = bit_cast<Chunk<Storage>>(load16(kept_at(k, offset)));
      }
      math.widen_all(raw, z);
    };

    for (int offset = 0; math.first + offset < math.columns; offset += step) {
      typename Rows::Raw raw;
      math.load(offset, raw);
      LTK_UNROLL
      for (int k = 0; k < kExperts; ++k) store16(kept_at(k, offset), bit_cast<uint4>(raw[k]));
      math.widen_all(raw, z);
      math.find_top(offset, z, sums);
    }
    math.share_top(group, sums);
    math.set_shifts(sums);
    for (int offset = 0; math.first + offset < math.columns; offset += step) {
      fetch(offset);
      math.add(offset, z, sums);
    }
    math.finish(group, sums, group.rank() == 0);

    if (p.grad) {
      for (int offset = 0; math.first + offset < math.columns; offset += step) {
        fetch(offset);
        math.write_gradient(offset, z);
      }
    }
  }
  reduce_rows(p, ce_reduction, counter, scratch);
}

// ---- stream and general: the rows read twice ----------------------------------------------------

constexpr int kStreamThreads = 256;

// kExperts = 0: any number of them, value by value, with arrays in local memory.
template <class Storage, int kExperts>
__global__ void __launch_bounds__(kStreamThreads, 1)
    experts_stream(const __grid_constant__ ExpertsParams<Accumulate<Storage>> p,
                   unsigned* __restrict__ counter) {
  using Acc = Accumulate<Storage>;
  using Rows = ExpertRows<Storage, kExperts, Form::Any>;
  constexpr int kStep = kStreamThreads * Rows::kCount;
  unsigned char* const scratch = dynamic_shared();
  const Acc ce_reduction = known_ce_reduction(p, scratch);
  BlockGroup group(scratch);

  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    Rows math(p, row, group.rank(), ce_reduction);
    typename Rows::Pieces z;
    typename Rows::Sums sums;
    int offset = 0;
    for (; math.first + offset < math.columns; offset += kStep) {
      math.fetch(offset, z);
      math.find_top(offset, z, sums);
      math.rebase(sums);
      math.add(offset, z, sums);
    }
    math.share_top(group, sums);
    math.rebase(sums);
    math.set_shifts(sums);
    math.finish(group, sums, group.rank() == 0);

    if (p.grad) {  // backwards: the end of the rows was read last and may still be in L2
      for (offset -= kStep; offset >= 0; offset -= kStep) {
        math.fetch(offset, z);
        math.write_gradient(offset, z);
      }
    }
  }
  reduce_rows(p, ce_reduction, counter, scratch);
}

}  // namespace ltk::cuda
