// Distillation on class subsets, with its gradients, on the CPU (subset_distillation.h has the
// formulas, distillation_cpu.cpp the same pass over whole rows).
//
// Subset after subset, piece after piece: the student's columns and the teacher's logits are staged
// in the first-level cache, their exponentials taken relative to the running maxima and kept; after
// the last piece they become the gradient. A piece of neighbouring columns is read and written like
// a row of its own; scattered columns are gathered and scattered value by value, which is as fast
// as the processors' own gathers. Where subsets overlap the gradient is added up in a buffer.
#include "ops/subset_distillation/subset_distillation_cpu.h"

#include "common/cpu/row.h"

namespace ltk::LTK_ISA {
namespace {

template <class Acc>
struct Scratch {
  Acc* gathered;     // [kChunk] the student's scattered logits, or gradients on their way there
  Acc* student;      // [kChunk] staged
  Acc* teacher;      // [kChunk]
  Acc* exp_student;  // [padded S_l]
  Acc* exp_teacher;  // [padded S_l]
  Acc* max_student;  // [pieces] running maximum each piece's exponentials refer to
  Acc* max_teacher;  // [pieces]
  Acc* sum;          // [C] the student's gradient, where subsets overlap

  Scratch(Acc* base, const SubsetPlan<Acc>& plan) {
    const int64_t row = kept(plan), n = padded(plan.most_pieces);
    auto take = [&base](int64_t count) {
      Acc* taken = base;
      base += count;
      return taken;
    };
    gathered = take(kChunk);
    student = take(kChunk);
    teacher = take(kChunk);
    exp_student = take(row);
    exp_teacher = take(row);
    max_student = take(n);
    max_teacher = take(n);
    sum = base;
  }
  static int64_t size(const SubsetPlan<Acc>& plan, int64_t columns) {
    return 3 * kChunk + 2 * kept(plan) + 2 * padded(plan.most_pieces) +
           (plan.overlapping ? padded(columns) : 0);
  }
  // Exponentials of a subset: the last vector of its last piece may start anywhere.
  static int64_t kept(const SubsetPlan<Acc>& plan) {
    return padded(plan.largest_subset + kLanes<Acc>);
  }
};

// Two 32-bit indices a load, and no load that waits for a store before it.
template <class Storage>
inline void gather(const Storage* row, const int32_t* classes, int64_t n, Storage* to) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const uint64_t ab = load_bytes<uint64_t>(classes + i),
                   cd = load_bytes<uint64_t>(classes + i + 2);
    const Storage a = row[ab & 0xffffffffu], b = row[ab >> 32];
    const Storage c = row[cd & 0xffffffffu], d = row[cd >> 32];
    to[i] = a;
    to[i + 1] = b;
    to[i + 2] = c;
    to[i + 3] = d;
  }
  for (; i < n; i++) to[i] = row[classes[i]];
}
template <class Storage>
inline void scatter(const Storage* from, const int32_t* classes, int64_t n, Storage* row) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const uint64_t ab = load_bytes<uint64_t>(classes + i),
                   cd = load_bytes<uint64_t>(classes + i + 2);
    const Storage a = from[i], b = from[i + 1], c = from[i + 2], d = from[i + 3];
    row[ab & 0xffffffffu] = a;
    row[ab >> 32] = b;
    row[cd & 0xffffffffu] = c;
    row[cd >> 32] = d;
  }
  for (; i < n; i++) row[classes[i]] = from[i];
}

template <class Storage, bool Gradient>
struct Row {
  using Acc = Accumulate<Storage>;
  using V = Vec<Acc>;
  static constexpr int L = kLanes<Acc>;

  const SubsetDistillationParams<Acc>& p;
  const SubsetPlan<Acc>& plan;
  Scratch<Acc>& scratch;

  struct Sums {
    Acc student = 0, teacher = 0, difference = 0;
  };
  // What becomes of a row's divergence.
  struct Coefficients {
    Acc log2_scale, inverse, unit;
  };

  const Storage* student_row(int64_t n) const {
    return static_cast<const Storage*>(p.student) + n * p.student_stride;
  }
  const Storage* teacher_row(int64_t n, int l) const {
    return static_cast<const Storage*>(p.teacher[l]) + n * p.teacher_stride[l];
  }
  Storage* student_grad(int64_t n) const {
    return static_cast<Storage*>(p.student_grad) + n * p.columns;
  }
  Transform<Acc> transform(int l, int64_t at) const {
    const Acc* scale = plan.inverse_temperature;
    return {scale != nullptr ? scale + p.offset[l] + at : nullptr, nullptr, 0};
  }

  // The student's logits of a piece, scattered ones gathered before.
  Staged<Acc> stage_student(int64_t n, int l, const SubsetPiece& piece) const {
    const Storage* row = student_row(n);
    const Transform<Acc> f = transform(l, piece.at);
    if (piece.first >= 0) return stage(row + piece.first, piece.count, f, scratch.student);
    Storage* to = reinterpret_cast<Storage*>(scratch.gathered);
    const int32_t* classes = plan.classes + piece.before;
    gather(row, classes, piece.count, to);
    return stage(to, piece.count, f, scratch.student);
  }

  // Exponentials of one piece, its sums, and with Gradient the kept exponentials.
  Sums exponentials(const Acc* xs, const Acc* xt, int64_t n, Acc log2_scale, Acc max_s, Acc max_t,
                    int64_t at, const Prefetch<Storage>& student_ahead,
                    const Prefetch<Storage>& teacher_ahead,
                    const PrefetchForWriting<Storage>& grad_ahead) const {
    const V scale = broadcast(log2_scale), ms = broadcast(max_s), mt = broadcast(max_t);
    const V none = broadcast(-kInf<Acc>);
    V zs{}, zt{}, difference{};
    for (int64_t i = 0; i < n; i += L) {
      student_ahead(i);
      teacher_ahead(i);
      if constexpr (Gradient) grad_ahead(i);
      const V s = load(xs + i), t = load(xt + i);
      const V ds = s - ms, dt = t - mt;
      const V es = exp2(ds * scale), et = exp2(dt * scale);
      zs += es;
      zt += et;
      // Terms without teacher mass are 0, whatever the difference (-inf - -inf is NaN).
      difference += et * (et == V{} ? V{} : dt - ds);
      if constexpr (Gradient) {
        store(scratch.exp_student + at + i, es);
        store(scratch.exp_teacher + at + i, s == none ? V{} : et);  // -inf is a constant
      }
    }
    return {horizontal_sum<Acc>(zs), horizontal_sum<Acc>(zt), horizontal_sum<Acc>(difference)};
  }

  void run(int64_t n) const {
    const bool by_column = plan.inverse_temperature != nullptr;
    const Acc temperature = p.row_temperature ? p.row_temperature[n] : p.temperature;
    Coefficients by{0, by_column ? Acc(1) : 1 / temperature, p.reduction_factor};
    by.log2_scale = by.inverse * kLog2e<Acc>;
    const Acc largest_inverse = by_column ? plan.largest_inverse_temperature : by.inverse;
    const Acc row_factor = p.row_factor ? p.row_factor[n] : Acc(1);
    auto factor_of = [&](int l) {
      return p.kl_factor[l] * (p.subset_factor ? p.subset_factor[l] : Acc(1)) * row_factor;
    };

    Acc unit = p.reduction_factor;  // of the student's gradient
    if constexpr (Gradient) {
      if (p.grad_scale != nullptr) {
        Acc magnitude = 0;
        for (int l = 0; l < p.subsets; l++) magnitude += std::abs(factor_of(l));
        p.grad_scale[n] = half_scale(float(unit * magnitude * largest_inverse));
        unit /= p.grad_scale[n];
      }
      if (p.student_grad != nullptr) begin_gradient(n);
    }

    Acc loss = 0;
    for (int l = 0; l < p.subsets; l++) {
      RunningMax<Acc> max_s, max_t;
      const Sums sums = sums_of(n, l, by.log2_scale, max_s, max_t);
      const Acc kl = by.inverse * (sums.difference / sums.teacher) - std::log(sums.teacher) +
                     std::log(sums.student);
      const Acc factor = factor_of(l);
      loss += factor * kl;
      if constexpr (Gradient) {
        if (p.student_grad != nullptr) {
          const Acc slope = unit * factor * by.inverse;
          student_gradient(n, l, by.log2_scale, slope / sums.student, slope / sums.teacher,
                           max_s.max, max_t.max);
        }
        if (p.teacher_grad != nullptr) {
          const auto teacher_side = [&](Storage* out) {
            return teacher_gradient(n, l, by, kl, max_s.max, max_t.max, sums.student, sums.teacher,
                                    out);
          };
          by.unit = p.reduction_factor * factor;
          if (kNarrowRange<Storage> && p.grad_scale != nullptr) {
            // Measured: it is at most KL + 1, but of a teacher that is almost certain far below.
            // half_scale's margin takes 8 of it. Not so small that a factor divided by the scale
            // overflows.
            const Acc largest = teacher_side(nullptr) / 8, least = Acc(0x1p-80);
            Acc* scale = p.grad_scale + (1 + l) * p.rows + n;
            *scale = half_scale(float(largest > least ? largest : least));
            by.unit /= *scale;
          }
          const int64_t size = p.offset[l + 1] - p.offset[l];
          teacher_side(static_cast<Storage*>(p.teacher_grad) + p.rows * p.offset[l] + n * size);
        }
      }
    }
    p.row_loss[n] = loss;
    if constexpr (Gradient)
      if (p.student_grad != nullptr) end_gradient(n);
  }

  Sums sums_of(int64_t n, int l, Acc log2_scale, RunningMax<Acc>& max_s,
               RunningMax<Acc>& max_t) const {
    Sums sums;
    const int64_t last_of_all = plan.first_piece[p.subsets] - 1;
    for (int64_t k = plan.first_piece[l]; k < plan.first_piece[l + 1]; k++) {
      const SubsetPiece& piece = plan.pieces[k];
      const Staged<Acc> s = stage_student(n, l, piece);
      const Staged<Acc> t =
          stage(teacher_row(n, l) + piece.at, piece.count, transform(l, piece.at), scratch.teacher);
      const Acc before_s = max_s.origin(), before_t = max_t.origin();
      sums.student *= max_s.raise(s.max, log2_scale);
      const Acc teacher_correction = max_t.raise(t.max, log2_scale);
      sums.teacher *= teacher_correction;
      // An infinite term whose teacher mass has become 0 is gone, not inf * 0.
      sums.difference = teacher_correction == 0 ? Acc(0) : sums.difference * teacher_correction;
      sums.difference += sums.teacher * ((before_t - max_t.origin()) - (before_s - max_s.origin()));
      const int64_t place = k - plan.first_piece[l];
      scratch.max_student[place] = max_s.origin();
      scratch.max_teacher[place] = max_t.origin();

      // While this piece is worked on, the next one comes. Scattered pieces visit all of the row,
      // and the next row is what they fetch, bit by bit.
      const bool last = k == last_of_all;
      const SubsetPiece& next = plan.pieces[last ? 0 : k + 1];
      const int next_subset = last ? 0 : k + 1 == plan.first_piece[l + 1] ? l + 1 : l;
      const int64_t next_row = last ? n + 1 : n;
      const bool scattered = piece.first < 0 || next.first < 0;
      const Sums of_piece = exponentials(
          s.x, t.x, piece.count, log2_scale, max_s.origin(), max_t.origin(), piece.at,
          {student_row(0), scattered ? (n + 1) * p.student_stride + piece.before
                                     : next_row * p.student_stride + next.first},
          {teacher_row(0, next_subset), next_row * p.teacher_stride[next_subset] + next.at},
          {student_grad(0),
           piece.first < 0 ? (n + 1) * p.columns + piece.before : n * p.columns + piece.first});
      sums.student += of_piece.student;
      sums.teacher += of_piece.teacher;
      sums.difference += of_piece.difference;
    }
    return sums;
  }

  void begin_gradient(int64_t n) const {
    if (plan.overlapping) {
      for (int64_t c = 0; c < p.columns; c += L) store(scratch.sum + c, V{});
      return;
    }
    for (int64_t i = 0; i < plan.outside_count; i++) {
      const ColumnRange& range = plan.outside[i];
      std::memset(static_cast<void*>(student_grad(n) + range.begin), 0,
                  sizeof(Storage) * (range.end - range.begin));
    }
  }
  void end_gradient(int64_t n) const {
    if (plan.overlapping) copy(scratch.sum, p.columns, student_grad(n));
  }
  static void copy(const Acc* from, int64_t count, Storage* to) {
    const int64_t whole = count - count % L;
    for (int64_t i = 0; i < whole; i += L) store(to + i, load(from + i));
    for (int64_t i = whole; i < count; i++) from_float(from[i], to + i);
  }

  void student_gradient(int64_t n, int l, Acc log2_scale, Acc u, Acc v, Acc max_s,
                        Acc max_t) const {
    for (int64_t k = plan.first_piece[l]; k < plan.first_piece[l + 1]; k++) {
      const SubsetPiece& piece = plan.pieces[k];
      const int64_t count = piece.count, whole = count - count % L;
      const int64_t place = k - plan.first_piece[l];
      // The piece's exponentials refer to the maxima of their time.
      const Acc uk = u * correction(scratch.max_student[place], max_s, log2_scale);
      const Acc vk = v * correction(scratch.max_teacher[place], max_t, log2_scale);
      const V us = broadcast(uk), vs = broadcast(vk);
      Acc* es = scratch.exp_student + piece.at;
      Acc* et = scratch.exp_teacher + piece.at;
      if (plan.inverse_temperature != nullptr) {
        const Acc* scale = plan.inverse_temperature + piece.before;
        for (int64_t i = 0; i < count; i++) {
          es[i] *= scale[i];
          et[i] *= scale[i];
        }
      }
      auto gradient = [&](int64_t i) { return us * load(es + i) - vs * load(et + i); };
      auto gradient_at = [&](int64_t i) { return uk * es[i] - vk * et[i]; };
      if (piece.first >= 0 && !plan.overlapping) {
        Storage* out = student_grad(n) + piece.first;
        for (int64_t i = 0; i < whole; i += L) store(out + i, gradient(i));
        for (int64_t i = whole; i < count; i++) from_float(gradient_at(i), out + i);
      } else if (piece.first >= 0) {
        Acc* sum = scratch.sum + piece.first;
        for (int64_t i = 0; i < whole; i += L) store(sum + i, load(sum + i) + gradient(i));
        for (int64_t i = whole; i < count; i++) sum[i] += gradient_at(i);
      } else if (!plan.overlapping) {
        Storage* from = reinterpret_cast<Storage*>(scratch.gathered);
        for (int64_t i = 0; i < count; i += L) store(from + i, gradient(i));
        Storage* out = student_grad(n);
        const int32_t* classes = plan.classes + piece.before;
        scatter(from, classes, count, out);
      } else {
        for (int64_t i = 0; i < count; i += L) store(scratch.gathered + i, gradient(i));
        const int32_t* classes = plan.classes + piece.before;
        for (int64_t i = 0; i < count; i++) scratch.sum[classes[i]] += scratch.gathered[i];
      }
    }
  }

  // d teacher = f k / T q (log q - log p - KL), or without `out` the largest of them. Rare: the
  // pieces are staged a second time.
  Acc teacher_gradient(int64_t n, int l, const Coefficients& by, Acc kl, Acc max_s, Acc max_t,
                       Acc zs, Acc zt, Storage* out) const {
    V largest{};
    const bool infinite = kl == kInf<Acc>;
    const V scale = broadcast(by.log2_scale), inverse = broadcast(by.inverse);
    const V ms = broadcast(max_s), mt = broadcast(max_t);
    const V shift = broadcast(std::log(zs) - std::log(zt) - kl);
    const V outer = broadcast(by.unit * by.inverse / zt);
    const V nothing = broadcast(kl - kl);  // 0, or NaN in a row that is NaN
    for (int64_t k = plan.first_piece[l]; k < plan.first_piece[l + 1]; k++) {
      const SubsetPiece& piece = plan.pieces[k];
      const Acc* s = stage_student(n, l, piece).x;
      const Acc* t =
          stage(teacher_row(n, l) + piece.at, piece.count, transform(l, piece.at), scratch.teacher)
              .x;
      Acc* gradient = scratch.teacher;  // in the place of what it is made of
      for (int64_t i = 0; i < piece.count; i += L) {
        const V x = load(t + i), e = exp2((x - mt) * scale);
        const V log_odds = ((x - mt) - (load(s + i) - ms)) * inverse + shift;
        store(gradient + i, e == V{} ? nothing : outer * e * log_odds);
      }
      const Acc* column_scale =
          plan.inverse_temperature ? plan.inverse_temperature + piece.before : nullptr;
      if (kNarrowRange<Storage> && out == nullptr) {
        for (int64_t i = 0; i < piece.count; i += L) {
          V g = load(gradient + i);
          if (column_scale != nullptr) {
            const Acc* c = column_scale + i;
            g *= i + L <= piece.count ? load(c) : load_tail(c, piece.count - i, Acc(0));
          }
          largest = max(max(g, -g), largest);
        }
        continue;
      }
      for (int64_t i = 0; i < piece.count; i++) {
        const Acc g = gradient[i] * (column_scale ? column_scale[i] : Acc(1));
        from_float(infinite ? Acc(0) : g, out + piece.at + i);
      }
    }
    return infinite ? Acc(0) : horizontal_max<Acc>(largest);
  }
};

template <class Storage>
void run(const SubsetDistillationParams<Accumulate<Storage>>& p,
         const SubsetPlan<Accumulate<Storage>>& plan, int64_t begin, int64_t end,
         Accumulate<Storage>* memory) {
  Scratch<Accumulate<Storage>> scratch(memory, plan);
  auto all = [&](auto row) {
    for (int64_t n = begin; n < end; n++) row.run(n);
  };
  if (p.student_grad != nullptr || p.teacher_grad != nullptr)
    all(Row<Storage, true>{p, plan, scratch});
  else
    all(Row<Storage, false>{p, plan, scratch});
}

}  // namespace

template <class Acc>
int64_t subset_distillation_scratch(const SubsetDistillationParams<Acc>& p,
                                    const SubsetPlan<Acc>& plan) {
  return Scratch<Acc>::size(plan, p.columns);
}

template <>
void subset_distillation_rows<float>(const SubsetDistillationParams<float>& p,
                                     const SubsetPlan<float>& plan, DType dtype, int64_t begin,
                                     int64_t end, float* scratch) {
  if (dtype == DType::Float32) run<float>(p, plan, begin, end, scratch);
  if (dtype == DType::Float16) run<Half>(p, plan, begin, end, scratch);
  if (dtype == DType::BFloat16) run<BFloat16>(p, plan, begin, end, scratch);
}

template <>
void subset_distillation_rows<double>(const SubsetDistillationParams<double>& p,
                                      const SubsetPlan<double>& plan, DType, int64_t begin,
                                      int64_t end, double* scratch) {
  run<double>(p, plan, begin, end, scratch);
}

template int64_t subset_distillation_scratch<float>(const SubsetDistillationParams<float>&,
                                                    const SubsetPlan<float>&);
template int64_t subset_distillation_scratch<double>(const SubsetDistillationParams<double>&,
                                                     const SubsetPlan<double>&);

}  // namespace ltk::LTK_ISA
