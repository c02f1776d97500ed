// Distillation loss and its gradients on the CPU (distillation.h has the formulas).
//
// One pass over a row: a chunk of both logit rows is staged in the first-level cache with its
// maxima; its exponentials are taken relative to the running maxima, summed, and kept; after the
// last chunk the kept exponentials, corrected for the maxima that grew meanwhile, become the
// gradient. With x = logits / T, the running maxima m, e = exp(x - m) and Z = sum e,
//   KL = sum e_t ((x_t - m_t) - (x_s - m_s)) / Z_t + ln (Z_s / Z_t):
// two exponentials an element and one logarithm a row.
// Class weights cost no more: w softmax(x) renormalised is softmax(x + log w).
// The cross-entropy's exponential is a power of the distillation term's where T is 1, 2 or 4.
#include "ops/distillation/distillation_cpu.h"

#include "common/cpu/row.h"

namespace ltk::LTK_ISA {
namespace {

// How exp(logit) of the cross-entropy is had.
enum class CrossEntropy { None, Own, Same, Square, FourthPower };

template <class Acc>
struct Scratch {
  Acc* student;      // [kChunk] staged
  Acc* teacher;      // [kChunk]
  Acc* logits;       // [kChunk] student's logits without temperature, for the cross-entropy
  Acc* exp_student;  // [padded C]
  Acc* exp_teacher;  // [padded C]
  Acc* exp_logits;   // [padded C]
  Acc* out;          // [kChunk] gradients that are not finished
  Acc* max_student;  // [chunks] running maximum each chunk's exponentials refer to
  Acc* max_teacher;  // [chunks]
  Acc* max_logits;   // [chunks]

  Scratch(Acc* base, int64_t columns) {
    const int64_t row = padded(columns), n = padded(chunks(columns));
    auto take = [&base](int64_t count) {
      Acc* taken = base;
      base += count;
      return taken;
    };
    student = take(kChunk);
    teacher = take(kChunk);
    logits = take(kChunk);
    out = take(kChunk);
    exp_student = take(row);
    exp_teacher = take(row);
    exp_logits = take(row);
    max_student = take(n);
    max_teacher = take(n);
    max_logits = take(n);
  }
  static int64_t size(int64_t columns) {
    return 4 * kChunk + 3 * padded(columns) + 3 * padded(chunks(columns));
  }
};

// exp(logit) out of e = exp(logit / T), where it is a power of it.
template <CrossEntropy Ce, class T>
inline T power(T e) {
  if constexpr (Ce == CrossEntropy::Square) return e * e;
  if constexpr (Ce == CrossEntropy::FourthPower) return (e * e) * (e * e);
  return e;
}

template <class Storage, bool Gradient, CrossEntropy Ce>
struct Row {
  using Acc = Accumulate<Storage>;
  using V = Vec<Acc>;
  static constexpr int L = kLanes<Acc>;

  const DistillationParams<Acc>& p;
  const DistillationTables<Acc>& tables;
  Scratch<Acc>& scratch;

  // Exponents of one chunk, its sums, and with Gradient the kept exponentials.
  struct Sums {
    Acc student = 0, teacher = 0, difference = 0, logits = 0;
  };
  Sums exponentials(const Acc* xs, const Acc* xt, const Acc* xl, int64_t n, Acc log2_scale,
                    Acc max_s, Acc max_t, Acc max_l, int64_t at,
                    const Prefetch<Storage>& student_ahead, const Prefetch<Storage>& teacher_ahead,
                    const PrefetchForWriting<Storage>& grad_ahead) const {
    const auto of_chunk = [&](auto finite) {
      return exponentials<decltype(finite)::value>(xs, xt, xl, n, log2_scale, max_s, max_t, max_l,
                                                   at, student_ahead, teacher_ahead, grad_ahead);
    };
    // An infinite logit leaves an infinite or undefined difference: then once more, with care.
    const Sums sums = of_chunk(Bool<true>{});
    return std::abs(sums.difference) < kInf<Acc> ? sums : of_chunk(Bool<false>{});
  }

  template <bool Finite>
  Sums exponentials(const Acc* xs, const Acc* xt, const Acc* xl, int64_t n, Acc log2_scale,
                    Acc max_s, Acc max_t, Acc max_l, int64_t at,
                    const Prefetch<Storage>& student_ahead, const Prefetch<Storage>& teacher_ahead,
                    const PrefetchForWriting<Storage>& grad_ahead) const {
    const V scale = broadcast(log2_scale), ms = broadcast(max_s), mt = broadcast(max_t);
    const V ml = broadcast(max_l), none = broadcast(-kInf<Acc>);
    const V log2e = broadcast(kLog2e<Acc>);
    Acc* const kept_s = scratch.exp_student + at;
    Acc* const kept_t = scratch.exp_teacher + at;
    Acc* const kept_l = scratch.exp_logits + at;
    V zs{}, zt{}, difference{}, zl{};
    const auto vector = [&](int64_t i, auto finite) {
      constexpr bool kFinite = decltype(finite)::value;
      const V s = load(xs + i), t = load(xt + i);
      const V ds = s - ms, dt = t - mt;
      const V es = exp2<kFinite>(ds * scale), et = exp2<kFinite>(dt * scale);
      zs += es;
      zt += et;
      // Terms without teacher mass are 0, whatever the difference (-inf - -inf is NaN).
      if constexpr (kFinite)
        difference += et * (dt - ds);
      else
        difference += et * (et == V{} ? V{} : dt - ds);
      V el{};
      if constexpr (Ce == CrossEntropy::Own) {
        el = exp2<kFinite>((load(xl + i) - ml) * log2e);
        zl += el;
      } else if constexpr (Ce != CrossEntropy::None) {
        zl += power<Ce>(es);
      }
      if constexpr (Gradient) {
        store(kept_s + i, es);
        if constexpr (kFinite)
          store(kept_t + i, et);
        else
          store(kept_t + i, s == none ? V{} : et);  // -inf is a constant
        if constexpr (Ce == CrossEntropy::Own) store(kept_l + i, el);
      }
    };
    const int64_t whole = n - n % L;
    for (int64_t i = 0; i < whole; i += L) {
      student_ahead(i);
      teacher_ahead(i);
      if constexpr (Gradient) grad_ahead(i);
      vector(i, Bool<Finite>{});
    }
    if (whole < n) vector(whole, Bool<false>{});  // padded with -inf
    return {horizontal_sum<Acc>(zs), horizontal_sum<Acc>(zt), horizontal_sum<Acc>(difference),
            horizontal_sum<Acc>(zl)};
  }

  // d student of column c, from the kept exponentials: what the vector loop computes, for one lane.
  Acc gradient_at(int64_t c, Acc u, Acc v, Acc w) const {
    const Acc es = scratch.exp_student[c];
    Acc g = u * es - v * scratch.exp_teacher[c];
    if constexpr (Ce == CrossEntropy::Own) return g + w * scratch.exp_logits[c];
    if constexpr (Ce != CrossEntropy::None) g += w * power<Ce>(es);
    return g;
  }

  void run(int64_t n) const {
    const Storage* student = static_cast<const Storage*>(p.student) + n * p.student_stride;
    const Storage* teacher = static_cast<const Storage*>(p.teacher) + n * p.teacher_stride;
    const Acc* soft = p.soft_target ? p.soft_target + n * p.soft_target_stride : nullptr;
    const int64_t size = p.columns;
    const bool by_column = tables.inverse_temperature != nullptr;

    const Acc temperature = p.row_temperature ? p.row_temperature[n] : p.temperature;
    const Acc inverse = by_column ? Acc(1) : 1 / temperature;
    const Acc log2_scale = inverse * kLog2e<Acc>;
    const Transform<Acc> of_student{tables.inverse_temperature, nullptr, 0};
    const Transform<Acc> of_teacher{tables.inverse_temperature, tables.log_class_weight,
                                    by_column ? Acc(1) : temperature};
    // The cross-entropy reads the student's staged logits unless a temperature is already in them.
    const bool stage_logits = Ce == CrossEntropy::Own && by_column;

    RunningMax<Acc> max_s, max_t, max_l;
    Sums sums;
    WeightedDistance<Acc> soft_distance;  // of the soft target's logits from their maximum
    for (int64_t k = 0, at = 0; at < size; k++, at += kChunk) {
      const int64_t count = size - at < kChunk ? size - at : kChunk;
      const Staged<Acc> s = stage(student + at, count, of_student.at(at), scratch.student);
      const Staged<Acc> t = stage(teacher + at, count, of_teacher.at(at), scratch.teacher);
      Staged<Acc> l = s;
      if (stage_logits) l = stage(student + at, count, Transform<Acc>{}, scratch.logits);
      const Acc before_s = max_s.origin(), before_t = max_t.origin();
      sums.student *= max_s.raise(s.max, log2_scale);
      const Acc teacher_correction = max_t.raise(t.max, log2_scale);
      sums.teacher *= teacher_correction;
      // An infinite term whose teacher mass has become 0 is gone, not inf * 0.
      sums.difference = teacher_correction == 0 ? Acc(0) : sums.difference * teacher_correction;
      // Its terms refer to the maxima; each step is exact where the maxima themselves are far
      // apart.
      sums.difference += sums.teacher * ((before_t - max_t.origin()) - (before_s - max_s.origin()));
      if constexpr (Ce != CrossEntropy::None) sums.logits *= max_l.raise(l.max, kLog2e<Acc>);
      scratch.max_student[k] = max_s.origin();
      scratch.max_teacher[k] = max_t.origin();
      scratch.max_logits[k] = max_l.origin();
      const Sums chunk =
          exponentials(s.x, t.x, l.x, count, log2_scale, max_s.origin(), max_t.origin(),
                       max_l.origin(), at, {student, ahead_of(at, size, p.student_stride)},
                       {teacher, ahead_of(at, size, p.teacher_stride)},
                       {static_cast<Storage*>(p.student_grad), n * p.columns + at});
      sums.student += chunk.student;
      sums.teacher += chunk.teacher;
      sums.difference += chunk.difference;
      sums.logits += chunk.logits;
      if (soft != nullptr) {
        const Acc* y = soft + at;
        soft_distance.add(sum_of(y, count), weighted_distance(y, l.x, count, max_l.origin()),
                          max_l.origin());
      }
    }

    const Acc kl =
        inverse * (sums.difference / sums.teacher) + std::log(sums.student / sums.teacher);
    const Acc factor =
        p.kl_factor * (p.row_factor ? p.row_factor[n * p.row_factor_stride] : Acc(1));
    Acc loss = factor * kl;
    Acc lam = 1, mass = 0;
    if constexpr (Ce != CrossEntropy::None) {
      const Acc log_sum = std::log(sums.logits);
      auto nll = [&](int64_t y) { return (max_l.max - to_float(student[y])) + log_sum; };
      if (soft != nullptr) {
        mass = soft_distance.weight;
        loss += soft_distance.distance + mass * log_sum;
      } else {
        mass = 1;
        if (p.target_b != nullptr) lam = p.row_lam ? p.row_lam[n] : p.lam;
        if (lam != 0) loss += lam * nll(p.target[n]);
        if (lam != 1) loss += (1 - lam) * nll(p.target_b[n]);
      }
    }
    p.row_loss[n] = loss;
    if constexpr (Gradient) {
      Acc unit = p.reduction_factor;
      const auto teacher_side = [&](Storage* out) {
        return teacher_gradient(student, teacher, of_student, of_teacher, log2_scale, inverse,
                                unit * factor, kl, max_s.max, max_t.max, sums.student, sums.teacher,
                                out);
      };
      if (kNarrowRange<Storage> && p.grad_scale != nullptr) {
        Acc magnitude = 0;
        if (p.student_grad != nullptr) {  // |p - q| <= 1
          const Acc steepest = by_column ? tables.largest_inverse_temperature : inverse;
          magnitude = unit * (std::abs(factor) * steepest + std::abs(mass));
        }
        if (p.teacher_grad != nullptr) {
          // Measured: it is at most KL + 1, but of a teacher that is almost certain far below.
          // half_scale's margin takes 8 of it, which the student's digits need. Not so small that
          // a factor divided by the scale overflows.
          const Acc largest = teacher_side(nullptr) / 8, least = Acc(0x1p-80);
          if (largest > magnitude) magnitude = largest;
          if (least > magnitude) magnitude = least;
        }
        p.grad_scale[n] = half_scale(float(magnitude));
        unit /= p.grad_scale[n];
      }
      if (p.student_grad != nullptr)
        student_gradient(n, student, soft, log2_scale, unit * factor * inverse / sums.student,
                         unit * factor * inverse / sums.teacher, unit * mass / sums.logits, unit,
                         lam, max_s.max, max_t.max, max_l.max);
      if (p.teacher_grad != nullptr)
        teacher_side(static_cast<Storage*>(p.teacher_grad) + n * p.columns);
    }
  }

  void student_gradient(int64_t n, const Storage* student, const Acc* soft, Acc log2_scale, Acc u,
                        Acc v, Acc w, Acc unit, Acc lam, Acc max_s, Acc max_t, Acc max_l) const {
    Storage* out = static_cast<Storage*>(p.student_grad) + n * p.columns;
    const Acc* column_scale = tables.inverse_temperature;
    const int64_t whole_row = p.columns;
    for (int64_t k = 0, at = 0; at < whole_row; k++, at += kChunk) {
      const int64_t count = whole_row - at < kChunk ? whole_row - at : kChunk;
      // The chunk's exponentials refer to the maxima of their time.
      const Acc uk = u * correction(scratch.max_student[k], max_s, log2_scale);
      const Acc vk = v * correction(scratch.max_teacher[k], max_t, log2_scale);
      const Acc wk = Ce == CrossEntropy::None
                         ? Acc(0)
                         : w * correction(scratch.max_logits[k], max_l, kLog2e<Acc>);
      const V us = broadcast(uk), vs = broadcast(vk), ws = broadcast(wk);
      Acc* es = scratch.exp_student + at;
      Acc* et = scratch.exp_teacher + at;
      if (column_scale != nullptr)
        for (int64_t i = 0; i < count; i++) {
          es[i] *= column_scale[at + i];
          et[i] *= column_scale[at + i];
        }
      auto gradient = [&](int64_t i) {
        const V e = load(es + i);
        V g = us * e - vs * load(et + i);
        if constexpr (Ce == CrossEntropy::Own)
          g += ws * load(scratch.exp_logits + at + i);
        else if constexpr (Ce != CrossEntropy::None)
          g += ws * power<Ce>(e);
        return g;
      };
      if (soft == nullptr) {
        const int64_t whole = count - count % L;
        for (int64_t i = 0; i < whole; i += L) store(out + at + i, gradient(i));
        if (whole < count) store_tail(out + at + whole, gradient(whole), count - whole);
        if constexpr (Ce != CrossEntropy::None) {
          subtract_target(out, student, p.target[n], at, count, unit * lam, uk, vk, wk,
                          p.target_b && p.target_b[n] == p.target[n] ? unit * (1 - lam) : Acc(0));
          if (p.target_b && p.target_b[n] != p.target[n])
            subtract_target(out, student, p.target_b[n], at, count, unit * (1 - lam), uk, vk, wk,
                            0);
        }
        continue;
      }
      for (int64_t i = 0; i < count; i += L) store(scratch.out + i, gradient(i));
      for (int64_t i = 0; i < count; i++)
        if (to_float(student[at + i]) != -kInf<Acc>) scratch.out[i] -= unit * soft[at + i];
      for (int64_t i = 0; i < count; i++) from_float(scratch.out[i], out + at + i);
    }
  }

  // Recomputed before rounding: p - y of a 16-bit p would keep none of the digits of 1 - p.
  void subtract_target(Storage* out, const Storage* student, int64_t y, int64_t at, int64_t count,
                       Acc share, Acc u, Acc v, Acc w, Acc second_share) const {
    if (y < at || y >= at + count || to_float(student[y]) == -kInf<Acc>) return;
    from_float(gradient_at(y, u, v, w) - share - second_share, out + y);
  }

  // d teacher = f k / T q (log q - log p - KL), or without `out` the largest of them. Rare: the
  // chunks are staged a second time.
  Acc teacher_gradient(const Storage* student, const Storage* teacher,
                       const Transform<Acc>& of_student, const Transform<Acc>& of_teacher,
                       Acc log2_scale, Acc inverse, Acc factor, Acc kl, Acc max_s, Acc max_t,
                       Acc zs, Acc zt, Storage* out) const {
    V largest{};
    const bool infinite = kl == kInf<Acc>;
    const Acc log_ratio = std::log(zs) - std::log(zt) - kl;
    for (int64_t at = 0; at < p.columns; at += kChunk) {
      const int64_t count = p.columns - at < kChunk ? p.columns - at : kChunk;
      const Acc* s = stage(student + at, count, of_student.at(at), scratch.student).x;
      const Acc* t = stage(teacher + at, count, of_teacher.at(at), scratch.teacher).x;
      const V scale = broadcast(log2_scale), mt = broadcast(max_t);
      const V ms = broadcast(max_s), inv = broadcast(inverse);
      const V shift = broadcast(log_ratio), outer = broadcast(factor * inverse / zt);
      const V nothing = broadcast(kl - kl);  // 0, or NaN in a row that is NaN
      for (int64_t i = 0; i < count; i += L) {
        const V x = load(t + i), e = exp2((x - mt) * scale);
        const V log_odds = ((x - mt) - (load(s + i) - ms)) * inv + shift;
        store(scratch.out + i, e == V{} ? nothing : outer * e * log_odds);
      }
      const Acc* column_scale = tables.inverse_temperature;
      if (kNarrowRange<Storage> && out == nullptr) {
        for (int64_t i = 0; i < count; i += L) {
          V g = load(scratch.out + i);
          if (column_scale != nullptr) {
            const Acc* c = column_scale + at + i;
            g *= i + L <= count ? load(c) : load_tail(c, count - i, Acc(0));
          }
          largest = max(max(g, -g), largest);
        }
        continue;
      }
      for (int64_t i = 0; i < count; i++) {
        const Acc g = scratch.out[i] * (column_scale ? column_scale[at + i] : Acc(1));
        from_float(infinite ? Acc(0) : g, out + at + i);
      }
    }
    return infinite ? Acc(0) : horizontal_max<Acc>(largest);
  }
};

template <class Storage, bool Gradient>
void rows(const DistillationParams<Accumulate<Storage>>& p,
          const DistillationTables<Accumulate<Storage>>& tables, int64_t begin, int64_t end,
          Accumulate<Storage>* memory) {
  Scratch<Accumulate<Storage>> scratch(memory, p.columns);
  auto all = [&](auto row) {
    for (int64_t n = begin; n < end; n++) row.run(n);
  };
  const bool cross_entropy = p.target != nullptr || p.soft_target != nullptr;
  const bool one_temperature = p.row_temperature == nullptr && p.column_temperature == nullptr;
  if (!cross_entropy)
    all(Row<Storage, Gradient, CrossEntropy::None>{p, tables, scratch});
  else if (one_temperature && p.temperature == 1)
    all(Row<Storage, Gradient, CrossEntropy::Same>{p, tables, scratch});
  else if (one_temperature && p.temperature == 2)
    all(Row<Storage, Gradient, CrossEntropy::Square>{p, tables, scratch});
  else if (one_temperature && p.temperature == 4)
    all(Row<Storage, Gradient, CrossEntropy::FourthPower>{p, tables, scratch});
  else
    all(Row<Storage, Gradient, CrossEntropy::Own>{p, tables, scratch});
}

}  // namespace

template <class Acc>
int64_t distillation_scratch(const DistillationParams<Acc>& p) {
  return Scratch<Acc>::size(p.columns);
}

template <>
void distillation_rows<float>(const DistillationParams<float>& p,
                              const DistillationTables<float>& t, DType dtype, int64_t begin,
                              int64_t end, float* scratch) {
  const bool gradient = p.student_grad != nullptr || p.teacher_grad != nullptr;
  auto run = [&](auto storage) {
    using Storage = decltype(storage);
    gradient ? rows<Storage, true>(p, t, begin, end, scratch)
             : rows<Storage, false>(p, t, begin, end, scratch);
  };
  if (dtype == DType::Float32) run(float{});
  if (dtype == DType::Float16) run(Half{});
  if (dtype == DType::BFloat16) run(BFloat16{});
}

template <>
void distillation_rows<double>(const DistillationParams<double>& p,
                               const DistillationTables<double>& t, DType, int64_t begin,
                               int64_t end, double* scratch) {
  const bool gradient = p.student_grad != nullptr || p.teacher_grad != nullptr;
  gradient ? rows<double, true>(p, t, begin, end, scratch)
           : rows<double, false>(p, t, begin, end, scratch);
}

template int64_t distillation_scratch<float>(const DistillationParams<float>&);
template int64_t distillation_scratch<double>(const DistillationParams<double>&);

}  // namespace ltk::LTK_ISA
