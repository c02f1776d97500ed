// The weights of knowledge_balance_weight.h on the CPU.
//
// A row is read from memory once: the pass that takes sum, count and maximum stages it as float in
// the caches, from where the deviations from the mean and then the exponentials are summed. One
// exponential an element. What is -inf, the padding of the last vector included, drops out.
#include "ops/knowledge_balance_weight/knowledge_balance_weight_cpu.h"

#include "common/cpu/row.h"

namespace ltk::LTK_ISA {
namespace {

template <class Storage>
struct Row {
  using Acc = Accumulate<Storage>;
  using V = Vec<Acc>;
  static constexpr int L = kLanes<Acc>;

  const KnowledgeBalanceWeightParams<Acc>& p;
  Acc* staged;  // [padded C]

  Acc weight(int64_t n) const {
    const Storage* const ref = static_cast<const Storage*>(p.ref_logits) + n * p.ref_stride;
    const Storage* const cls = static_cast<const Storage*>(p.cls_logits) + n * p.cls_stride;
    const Acc divisor = cross_entropy(ref, p.target[n], {cls, 0});
    const Acc dividend = cross_entropy(cls, p.target[n], {ref, p.ref_stride});
    return dividend / (divisor < p.eps ? p.eps : divisor);  // NaN stays
  }

  struct Sums {
    V sum, count, top;
    void add(V x) {
      const V lowest = broadcast(-kInf<Acc>);
      sum += x == lowest ? V{} : x;
      count += x == lowest ? V{} : broadcast(Acc(1));
      top = max(x, top);
    }
  };

  // `ahead` is the row that comes after this one.
  Acc cross_entropy(const Storage* logits, int64_t y, const Prefetch<Storage>& ahead) const {
    const int64_t size = p.columns, whole = size - size % L;
    const V lowest = broadcast(-kInf<Acc>);
    Sums a{{}, {}, lowest}, b = a;
    int64_t i = 0;
    for (; i + 2 * L <= whole; i += 2 * L) {
      const V x = load(logits + i), z = load(logits + i + L);
      store(staged + i, x);
      store(staged + i + L, z);
      a.add(x);
      b.add(z);
    }
    for (; i < size; i++) staged[i] = to_float(logits[i]);
    pad(staged, size);
    for (i = whole - whole % (2 * L); i < size; i += L) a.add(load(staged + i));
    const Acc count = horizontal_sum<Acc>(a.count + b.count);
    const Acc mean = horizontal_sum<Acc>(a.sum + b.sum) / count;
    const Acc top = horizontal_max<Acc>(max(a.top, b.top));

    const V middle = broadcast(mean);
    V square{}, square_b{};
    const auto squared = [&](int64_t at) {
      const V x = load(staged + at), distance = x == lowest ? V{} : x - middle;
      return distance * distance;
    };
    for (i = 0; i + 2 * L <= size; i += 2 * L) {
      ahead(i);
      ahead(i + L);
      square += squared(i);
      square_b += squared(i + L);
    }
    for (; i < size; i += L) square += squared(i);
    const Acc freedom = count > 2 ? count - 1 : Acc(1);
    const Acc variance = horizontal_sum<Acc>(square + square_b) / freedom;
    const Acc inverse =
        1 / std::sqrt(variance < p.smallest_variance ? p.smallest_variance : variance);

    const V highest = broadcast(top), scale = broadcast(inverse * kLog2e<Acc>);
    V exp{}, exp_b{};
    // Where the deviation is infinite -inf is no multiple of it, and must not become NaN.
    const auto exponential = [&](int64_t at) {
      const V x = load(staged + at);
      return x == lowest ? V{} : exp2((x - highest) * scale);
    };
    for (i = 0; i + 2 * L <= size; i += 2 * L) {
      exp += exponential(i);
      exp_b += exponential(i + L);
    }
    for (; i < size; i += L) exp += exponential(i);
    return std::log(horizontal_sum<Acc>(exp + exp_b)) + (top - staged[y]) * inverse;
  }
};

template <class Storage>
void rows(const KnowledgeBalanceWeightParams<Accumulate<Storage>>& p, int64_t begin, int64_t end,
          Accumulate<Storage>* scratch) {
  const Row<Storage> row{p, scratch};
  for (int64_t n = begin; n < end; n++) p.weight[n] = row.weight(n);
}

}  // namespace

template <class Acc>
int64_t knowledge_balance_weight_scratch(const KnowledgeBalanceWeightParams<Acc>& p) {
  return padded(p.columns);
}

template <>
void knowledge_balance_weight_rows<float>(const KnowledgeBalanceWeightParams<float>& p, DType dtype,
                                          int64_t begin, int64_t end, float* scratch) {
  if (dtype == DType::Float32) rows<float>(p, begin, end, scratch);
  if (dtype == DType::Float16) rows<Half>(p, begin, end, scratch);
  if (dtype == DType::BFloat16) rows<BFloat16>(p, begin, end, scratch);
}

template <>
void knowledge_balance_weight_rows<double>(const KnowledgeBalanceWeightParams<double>& p, DType,
                                           int64_t begin, int64_t end, double* scratch) {
  rows<double>(p, begin, end, scratch);
}

template int64_t knowledge_balance_weight_scratch<float>(
    const KnowledgeBalanceWeightParams<float>&);
template int64_t knowledge_balance_weight_scratch<double>(
    const KnowledgeBalanceWeightParams<double>&);

}  // namespace ltk::LTK_ISA
