// RIDE at test time on the CPU (route_experts.h has the formulas).
//
// A few rows at a time go from expert to expert together, so that their sums stay in the cache and
// the hidden layers serve several rows; those that stop leave the list.
#include "ops/route_experts/route_experts_cpu.h"

#include "common/cpu/topz.h"
#include "ops/topz_gate/topz_gate_row_cpu.h"

namespace ltk::LTK_ISA {
namespace {

constexpr int kRowsTogether = 4 * kGateRows;

template <class Storage>
class Router {
 public:
  using Acc = Accumulate<Storage>;
  using V = Vec<Acc>;
  static constexpr int L = kLanes<Acc>;

  Router(const RouteExpertsParams<Acc>& p, const Acc* w1_transposed, Acc* scratch)
      : p_(p),
        w1_transposed_(w1_transposed),
        units_(scratch),
        buffer_(units_ + kGateRows * padded_units(p.hidden)),
        top_(buffer_ + kGateRows * p.width),
        index_(reinterpret_cast<int32_t*>(top_ + p.z)),
        largest_(
            p.columns, p.z,
            scratch + (kGateRows * (padded_units(p.hidden) + p.width) + 2 * p.z + 15) / 16 * 16) {}

  void run(int64_t begin, int64_t end) {
    int64_t on_the_way[kRowsTogether];
    for (int64_t first = begin; first < end; first += kRowsTogether) {
      int count = 0;
      for (int64_t n = first; n < end && n < first + kRowsTogether; n++) on_the_way[count++] = n;
      for (int expert = 0; expert + 1 < p_.experts; expert++) {
        int left = 0;
        for (int at = 0; at < count; at += kGateRows) {
          const int together = count - at < kGateRows ? count - at : kGateRows;
          hidden_layers(expert, on_the_way + at, together);
          for (int r = 0; r < together; r++) {
            const int64_t n = on_the_way[at + r];
            if (gate(expert, n, units_ + r * padded_units(p_.hidden)) > p_.threshold) {
              add(expert + 1, n);
              on_the_way[left++] = n;
            } else {
              finish(n, expert + 1);
            }
          }
        }
        count = left;
      }
      for (int i = 0; i < count; i++) finish(on_the_way[i], p_.experts);
    }
  }

 private:
  const Storage* logits(int expert, int64_t n) const {
    return static_cast<const Storage*>(p_.logits[expert]) + n * p_.logits_stride[expert];
  }
  Acc* mean(int64_t n) const { return p_.mean + n * p_.columns; }

  void hidden_layers(int expert, const int64_t* rows, int count) {
    const Acc* v[kGateRows];
    Acc inverse_norm[kGateRows];
    for (int r = 0; r < kGateRows; r++) {
      const int64_t n = rows[r < count ? r : count - 1];
      v[r] = feature_row(p_.feature[expert], p_.feature_stride[expert], p_.feature_dtype, n,
                         p_.width, buffer_ + r * p_.width);
      inverse_norm[r] = inverse_norm_of(v[r], p_.width);
    }
    hidden_units(v, p_.width, w1_transposed_ + expert * p_.width * padded_units(p_.hidden),
                 p_.hidden, p_.b1 + expert * p_.hidden, inverse_norm, units_);
  }

  Acc gate(int expert, int64_t n, const Acc* units) {
    if (expert == 0) {
      largest_.select(logits(0, n), top_, index_);
    } else {
      // The largest means are the largest sums, divided: division keeps the order.
      largest_.select(mean(n), top_, index_);
      for (int64_t k = 0; k < p_.z; k++) top_[k] /= Acc(expert + 1);
    }
    without_infinities(top_, index_, p_.z);
    const Acc* const w2 = p_.w2 + expert * p_.w2_stride;
    return (dot(top_, w2, p_.z) + dot(units, w2 + p_.z, p_.hidden)) + p_.b2[expert * p_.b2_stride];
  }

  void add(int expert, int64_t n) const {
    const Storage* const x = logits(expert, n);
    Acc* const sum = mean(n);
    const auto onto = [&](const auto* before) {
      int64_t c = 0;
      for (; c + L <= p_.columns; c += L) store(sum + c, load(before + c) + load(x + c));
      for (; c < p_.columns; c++) sum[c] = to_float(before[c]) + to_float(x[c]);
    };
    if (expert == 1)
      onto(logits(0, n));
    else
      onto(sum);
  }

  void finish(int64_t n, int used) const {
    p_.used[n] = used;
    Acc* const out = mean(n);
    if (used == 1) return widen(logits(0, n), p_.columns, out);
    const Acc divisor = Acc(used);
    int64_t c = 0;
    for (; c + L <= p_.columns; c += L) store(out + c, load(out + c) / broadcast(divisor));
    for (; c < p_.columns; c++) out[c] /= divisor;
  }

  const RouteExpertsParams<Acc>& p_;
  const Acc* w1_transposed_;
  Acc* units_;   // [kGateRows, padded h]
  Acc* buffer_;  // [kGateRows, D]
  Acc* top_;     // [z]
  int32_t* index_;
  TopZ<Acc> largest_;
};

}  // namespace

template <class Acc>
int64_t route_experts_scratch(const RouteExpertsParams<Acc>& p) {
  return (kGateRows * (padded_units(p.hidden) + p.width) + 2 * p.z + 15) / 16 * 16 +
         TopZ<Acc>::scratch(p.columns);
}

template <>
void route_experts_rows<float>(const RouteExpertsParams<float>& p, const float* w1_transposed,
                               DType dtype, int64_t begin, int64_t end, float* scratch) {
  if (dtype == DType::Float32) Router<float>(p, w1_transposed, scratch).run(begin, end);
  if (dtype == DType::Float16) Router<Half>(p, w1_transposed, scratch).run(begin, end);
  if (dtype == DType::BFloat16) Router<BFloat16>(p, w1_transposed, scratch).run(begin, end);
}
template <>
void route_experts_rows<double>(const RouteExpertsParams<double>& p, const double* w1_transposed,
                                DType, int64_t begin, int64_t end, double* scratch) {
  Router<double>(p, w1_transposed, scratch).run(begin, end);
}
template int64_t route_experts_scratch<float>(const RouteExpertsParams<float>&);
template int64_t route_experts_scratch<double>(const RouteExpertsParams<double>&);

}  // namespace ltk::LTK_ISA
