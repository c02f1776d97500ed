// The routers' loss and labels on the CPU (routing.h has the formulas).
#include "ops/routing/routing_cpu.h"

#include "common/cpu/topz.h"

namespace ltk::LTK_ISA {
namespace {

template <class Storage>
void elements(const RoutingLossParams<Accumulate<Storage>>& p, int64_t begin, int64_t end) {
  using Acc = Accumulate<Storage>;
  const Storage* const gate = static_cast<const Storage*>(p.gate);
  const Acc factor = p.reduction == Reduction::Mean ? 1 / Acc(p.count) : Acc(1);
  const auto weighted = [](Acc weight, Acc term) {
    return weight == 0 && term == kInf<Acc> ? Acc(0) : weight * term;
  };
  for (int64_t i = begin; i < end; i++) {
    const Acc g = to_float(gate[i]);
    const Acc y = p.help_flag ? Acc(p.help_flag[i]) : p.help_share[i];
    const Acc e = std::exp(-std::abs(g)), rest = std::log1p(e);
    const Acc up = p.pos_weight * y, down = 1 - y;
    const Acc of_negative = (g < 0 ? -g : Acc(0)) + rest;  // softplus(-g)
    const Acc of_positive = (g < 0 ? Acc(0) : g) + rest;
    p.each[i] = weighted(up, of_negative) + weighted(down, of_positive);
    if (p.grad) {
      const Acc larger = 1 / (1 + e), smaller = e / (1 + e);
      const Acc sigmoid = g < 0 ? smaller : larger;
      const Acc miss = g < 0 ? larger : smaller;  // 1 - sigmoid
      p.grad[i] = factor * (down * sigmoid - up * miss);
    }
  }
}

// kExperts 0: any number.
template <class Storage, int kExperts>
struct Target {
  using Acc = Accumulate<Storage>;
  using V = Vec<Acc>;
  using I = Ints<Acc>;
  static constexpr int L = kLanes<Acc>;
  static constexpr int kMost = kExperts ? kExperts : kMostRoutedExperts;
  static constexpr int64_t kColumns = 512;  // between two looks at whether all is decided

  const RoutingTargetParams& p;
  int experts() const { return kExperts ? kExperts : p.experts; }

  // Bits of the experts whose sum at the target a column of [from, to) beats: before the target
  // what is as large, after it what is larger.
  template <bool Before>
  unsigned beaten(const Storage* const* logits, const Acc* of_target, int64_t from,
                  int64_t to) const {
    const unsigned all = (1u << experts()) - 1;
    unsigned bits = 0;
    for (int64_t at = from; at < to && bits != all; at += kColumns) {
      const int64_t end = at + kColumns < to ? at + kColumns : to;
      I found[kMost] = {};
      int64_t c = at;
      for (; c + L <= end; c += L) {
        V sum = load(logits[0] + c);
        for (int k = 0;;) {
          const V s = broadcast(of_target[k]);
          // Written so that NaN beats.
          if constexpr (Before)
            found[k] |= ~(sum < s);
          else
            found[k] |= ~(sum <= s);
          if (++k == experts()) break;
          sum += load(logits[k] + c);
        }
      }
      for (int k = 0; k < experts(); k++) bits |= unsigned{lane_bits<Acc>(found[k]) != 0} << k;
      for (; c < end; c++) {
        Acc sum = to_float(logits[0][c]);
        for (int k = 0;;) {
          bits |= unsigned{Before ? !(sum < of_target[k]) : !(sum <= of_target[k])} << k;
          if (++k == experts()) break;
          sum += to_float(logits[k][c]);
        }
      }
    }
    return bits;
  }

  // A sum that is NaN is beaten by an earlier one alone.
  bool nan_before(const Storage* const* logits, int k, int64_t y) const {
    for (int64_t c = 0; c < y; c++) {
      Acc sum = to_float(logits[0][c]);
      for (int j = 1; j <= k; j++) sum += to_float(logits[j][c]);
      if (sum != sum) return true;
    }
    return false;
  }

  void run(int64_t n) const {
    const int64_t y = p.target[n];
    const Storage* logits[kMost];
    Acc of_target[kMost];
    Acc sum = 0;
    for (int k = 0; k < experts(); k++) {
      logits[k] = static_cast<const Storage*>(p.logits[k]) + n * p.logits_stride[k];
      sum = k == 0 ? to_float(logits[k][y]) : sum + to_float(logits[k][y]);
      of_target[k] = sum;
    }
    unsigned wrong = beaten<true>(logits, of_target, 0, y);
    if (wrong != (1u << experts()) - 1) wrong |= beaten<false>(logits, of_target, y + 1, p.columns);
    for (int k = 0; k < experts(); k++)
      if (of_target[k] != of_target[k])
        wrong = (wrong & ~(1u << k)) | unsigned{nan_before(logits, k, y)} << k;
    const unsigned right = ~wrong & ((1u << experts()) - 1);
    for (int k = 0; k + 1 < experts(); k++)  // wrong itself, and a later one right
      p.needs_help[k * p.rows + n] = (right >> k & 1u) == 0 && right >> k != 0;
  }
};

template <class Storage, int kExperts>
void target_rows(const RoutingTargetParams& p, int64_t begin, int64_t end) {
  const Target<Storage, kExperts> row{p};
  for (int64_t n = begin; n < end; n++) row.run(n);
}

template <class Storage>
void any_experts(const RoutingTargetParams& p, int64_t begin, int64_t end) {
  switch (p.experts) {
    case 2: return target_rows<Storage, 2>(p, begin, end);
    case 3: return target_rows<Storage, 3>(p, begin, end);
    case 4: return target_rows<Storage, 4>(p, begin, end);
    default: return target_rows<Storage, 0>(p, begin, end);
  }
}

}  // namespace

template <>
void routing_loss_elements<float>(const RoutingLossParams<float>& p, DType dtype, int64_t begin,
                                  int64_t end) {
  if (dtype == DType::Float32) elements<float>(p, begin, end);
  if (dtype == DType::Float16) elements<Half>(p, begin, end);
  if (dtype == DType::BFloat16) elements<BFloat16>(p, begin, end);
}
template <>
void routing_loss_elements<double>(const RoutingLossParams<double>& p, DType, int64_t begin,
                                   int64_t end) {
  elements<double>(p, begin, end);
}

void routing_target_rows(const RoutingTargetParams& p, DType dtype, int64_t begin, int64_t end) {
  switch (dtype) {
    case DType::Float32: return any_experts<float>(p, begin, end);
    case DType::Float64: return any_experts<double>(p, begin, end);
    case DType::Float16: return any_experts<Half>(p, begin, end);
    case DType::BFloat16: return any_experts<BFloat16>(p, begin, end);
  }
}

}  // namespace ltk::LTK_ISA
