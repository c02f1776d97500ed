// kd_loss and bkd_loss on CUDA: loss and gradient of a row in one visit. The formulas are in
// distillation.h.
//
// Bytes: student and teacher are read once and the gradient is written once (3 N C elements, the
// floor) wherever a row fits on chip; beyond that student and teacher are read twice.
//
//   kernel       columns             a row is                           threads of a row
//   resident     up to 6144          held in registers                  8, 32, 64, 128, 256
//   shared       up to shared memory held in shared memory              512
//   stream       any                 read twice, online softmax         512
//   general      any                 read twice: column temperatures, dense soft targets, teacher
//                                    gradients, float64; 32 .. 512
//
// All exponentials are powers of two, 2^(x log2(e) / T - max), and kept until the gradient needs
// them. softmax(student) at T = 1, for the cross-entropy, is the power 1, 2 or 4 of what the KL
// term has for those T, and an exponential of its own otherwise. Sums are float; no atomics on
// floats.
//
// KL = ln2 A / Z_q + ln Z_p - ln Z_q,  A = sum 2^b (b - a),  a, b: exponents of student and
// teacher.
#pragma once

#include "common/cuda/chunk.cuh"
#include "common/cuda/reduce.cuh"
#include "ops/distillation/distillation.h"

namespace ltk::cuda {

// ---- The arithmetic of one row ------------------------------------------------------------------

// The hard labels of a row. Their columns are read first, so that a bad one stops the kernel before
// it does harm; shares and logits when they are needed, to spare registers.
template <class Storage>
struct Labels {
  using Acc = Accumulate<Storage>;

  const DistillationParams<Acc>& p;
  const int64_t row;
  int column[2] = {-1, -1};

  __device__ __forceinline__ Labels(const DistillationParams<Acc>& p, int64_t row)
      : p(p), row(row) {
    if (p.target) column[0] = checked(p.target[row]);
    if (p.target_b) column[1] = checked(p.target_b[row]);
  }

  // Share of label i in the cross-entropy.
  __device__ __forceinline__ Acc share(int i) const {
    if (column[i] < 0) return 0;
    if (!p.target_b) return 1;
    const Acc lam = p.row_lam ? p.row_lam[row] : p.lam;
    return i == 0 ? lam : Acc(1) - lam;
  }
  __device__ __forceinline__ Acc logit(int i) const {
    const Storage* student = static_cast<const Storage*>(p.student) + row * p.student_stride;
    return widen(student[column[i]]);
  }
  // What label i takes from the gradient of its column: nothing from a logit of -inf.
  __device__ __forceinline__ Acc pull(int i) const {
    return logit(i) == -kInfinity<Acc> ? Acc(0) : share(i);
  }
  __device__ __forceinline__ Acc sum() const { return share(0) + share(1); }
  __device__ __forceinline__ Acc size() const { return std::fabs(share(0)) + std::fabs(share(1)); }

  // sum_i share_i (ln Z - ln2 exponent_i), with exponent = scale logit - shift and Z the sum of all
  // 2^exponent of the row.
  __device__ __forceinline__ Acc cross_entropy(Acc sum_of_exp, Acc scale, Acc shift) const {
    Acc loss = 0;
    for (int i = 0; i < 2; ++i) {
      if (share(i) == 0) continue;
      const Acc exponent = std::fma(logit(i), scale, -shift);
      loss += share(i) * (std::log(sum_of_exp) - exponent * kLn2<Acc>);
    }
    return loss;
  }

 private:
  __device__ __forceinline__ int checked(int64_t target) const {
    device_assert(0 <= target && target < p.columns, "target out of range");
    return static_cast<int>(target);
  }
};

// What a row adds up. `plain` is the sum of the student's exponentials at T = 1.
template <class Acc>
struct KdSums {
  Acc student = 0, teacher = 0, cross = 0, plain = 0;
};

struct AddSums {
  template <class Acc>
  __device__ __forceinline__ KdSums<Acc> operator()(const KdSums<Acc>& a,
                                                    const KdSums<Acc>& b) const {
    return {a.student + b.student, a.teacher + b.teacher, a.cross + b.cross, a.plain + b.plain};
  }
};

template <class Acc>
struct KdMaxima {
  Acc student = -kInfinity<Acc>, teacher = -kInfinity<Acc>;
};

struct MaxOfBoth {
  template <class Acc>
  __device__ __forceinline__ KdMaxima<Acc> operator()(const KdMaxima<Acc>& a,
                                                      const KdMaxima<Acc>& b) const {
    return {std::fmax(a.student, b.student), std::fmax(a.teacher, b.teacher)};
  }
};

// How softmax(student) at T = 1 comes from the exponential e at T.
enum class Plain { None, Power1, Power2, Power4, Own };

template <class Acc>
__device__ __forceinline__ Plain plain_of(const DistillationParams<Acc>& p, Acc temperature) {
  if (!p.target) return Plain::None;
  if (temperature == Acc(1)) return Plain::Power1;
  if (temperature == Acc(2)) return Plain::Power2;
  return temperature == Acc(4) ? Plain::Power4 : Plain::Own;
}

// One row of the fast kernels: scalar or row temperature, hard labels.
//
// Of the teacher is kept t (scale log2(e)/T) without class weights, t log2(e)/T + log2 w (scale 1)
// with them. `offset` counts columns from the thread's first chunk, see RowView.
template <class Storage>
struct KdRow {
  using Acc = Accumulate<Storage>;
  static constexpr int kCount = kChunk<Storage>;

  const DistillationParams<Acc>& p;
  const int64_t row;
  const int columns;
  const int head;
  const RowView<const Storage> student, teacher;
  const Acc temperature, scale, teacher_scale;
  const Plain plain;
  const Labels<Storage> labels;
  Acc student_shift = 0, teacher_shift = 0, plain_shift = 0;
  Acc of_student = 0, of_teacher = 0, of_plain = 0, of_label = 0;  // for the gradient

  __device__ __forceinline__ KdRow(const DistillationParams<Acc>& p, int64_t row, int rank)
      : p(p),
        row(row),
        columns(static_cast<int>(p.columns)),
        head(p.student_grad ? row_head(gradient_row()) : row_head(student_row())),
        student(student_row(), rank * kCount - head, columns),
        teacher(teacher_row(), rank * kCount - head, columns),
        temperature(p.row_temperature ? p.row_temperature[row] : p.temperature),
        scale(kLog2E<Acc> / temperature),
        teacher_scale(p.class_weight ? Acc(1) : scale),
        plain(plain_of(p, temperature)),
        labels(p, row) {}

  __device__ __forceinline__ const Storage* student_row() const {
    return static_cast<const Storage*>(p.student) + row * p.student_stride;
  }
  __device__ __forceinline__ const Storage* teacher_row() const {
    return static_cast<const Storage*>(p.teacher) + row * p.teacher_stride;
  }
  __device__ __forceinline__ Storage* gradient_row() const {
    return static_cast<Storage*>(p.student_grad) + row * p.columns;
  }
  static __device__ __forceinline__ Storage masked() { return narrow<Storage>(-kInfinity<Acc>); }

  // What is kept of the teacher's logits, from column `column` on.
  __device__ __forceinline__ void weigh(int column, Acc (&t)[kCount]) const {
    if (!p.class_weight) return;
    Acc weight[kCount];
    load_vector(p.class_weight, column, columns, Acc(0), weight);
    LTK_UNROLL
    for (int j = 0; j < kCount; ++j) t[j] = std::fma(t[j], scale, fast_log2(weight[j]));
  }

  __device__ __forceinline__ void set_maxima(const KdMaxima<Acc>& maxima) {
    student_shift = maxima.student * scale;
    teacher_shift = maxima.teacher * teacher_scale;
    plain_shift = maxima.student * kLog2E<Acc>;
  }

  __device__ __forceinline__ Acc exponent(Acc s) const {
    return std::fma(s, scale, -student_shift);
  }

  // e^s at T = 1, up to one factor for the whole row, from the logit s or its exponential e at T.
  __device__ __forceinline__ Acc plain_exp(Acc s, Acc e) const {
    if (plain == Plain::Own) return fast_exp2(std::fma(s, kLog2E<Acc>, -plain_shift));
    const Acc square = plain == Plain::Power1 ? e : e * e;
    return plain == Plain::Power4 ? square * square : square;
  }

  // Adds a column to the sums and replaces its logits by their exponentials; the student's stays
  // where the gradient needs two exponentials of it.
  __device__ __forceinline__ void add(Acc& s, Acc& t, KdSums<Acc>& sums) const {
    const Acc a = exponent(s);
    const Acc b = std::fma(t, teacher_scale, -teacher_shift);
    const Acc es = fast_exp2(a);
    const Acc et = fast_exp2(b);
    sums.student += es;
    sums.teacher += et;
    sums.cross += et == 0 ? Acc(0) : et * (b - a);
    if (plain != Plain::None) sums.plain += plain_exp(s, es);
    s = plain == Plain::Own ? s : es;
    t = a == -kInfinity<Acc> ? Acc(0) : et;  // a logit of -inf has no gradient
  }

  // Loss of the row, coefficients of its gradient. One thread of the row is the `writer`.
  __device__ __forceinline__ void finish(const KdSums<Acc>& sums, bool writer) {
    const Acc k = p.kl_factor * (p.row_factor ? p.row_factor[row * p.row_factor_stride] : Acc(1));
    if (writer) {
      const Acc kl =
          sums.cross / sums.teacher * kLn2<Acc> + std::log(sums.student) - std::log(sums.teacher);
      Acc loss = k * kl;
      if (plain == Plain::Own) {
        loss += labels.cross_entropy(sums.plain, kLog2E<Acc>, plain_shift);
      } else if (plain != Plain::None) {  // a power has the multiple of the exponent
        loss += labels.cross_entropy(sums.plain, scale * temperature, student_shift * temperature);
      }
      p.row_loss[row] = loss;
    }
    Acc factor = p.reduction_factor;
    if (p.grad_scale) {
      const Acc half = half_scale(std::fabs(factor) * (std::fabs(k) / temperature + labels.size()));
      if (writer) p.grad_scale[row] = half;
      factor /= half;
    }
    of_student = factor * k / (temperature * sums.student);
    of_teacher = factor * k / (temperature * sums.teacher);
    of_plain = plain == Plain::None ? Acc(0) : factor * labels.sum() / sums.plain;
    of_label = factor;
  }

  // The gradient of a chunk from what `add` left of its columns.
  __device__ __forceinline__ Chunk<Storage> gradient(int column, const Acc (&s)[kCount],
                                                     const Acc (&t)[kCount]) const {
    Acc g[kCount];
    LTK_UNROLL
    for (int j = 0; j < kCount; ++j) {
      const Acc es = plain == Plain::Own ? fast_exp2(exponent(s[j])) : s[j];
      g[j] = es * of_student - t[j] * of_teacher;
      if (plain != Plain::None) g[j] += plain_exp(s[j], es) * of_plain;
    }
    LTK_UNROLL
    for (int i = 0; i < 2; ++i) {
      const unsigned place = static_cast<unsigned>(labels.column[i] - column);
      if (place >= kCount || labels.column[i] < 0) continue;
      const Acc pull = labels.pull(i) * of_label;
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) g[j] -= place == static_cast<unsigned>(j) ? pull : Acc(0);
    }
    Chunk<Storage> out;
    LTK_UNROLL
    for (int j = 0; j < kCount; ++j) out.value[j] = narrow<Storage>(g[j]);
    return out;
  }
};

// loss = reduction_factor * sum of the rows, by the block that finishes last.
template <class Acc>
__device__ __forceinline__ void reduce_rows(const DistillationParams<Acc>& p, unsigned* counter,
                                            unsigned char* scratch) {
  if (!p.loss || !is_last_block(counter, scratch)) return;
  const double sum =
      block_sum(p.rows, scratch, [&](int64_t n) { return double(__ldcg(p.row_loss + n)); });
  if (threadIdx.x == 0) *p.loss = static_cast<Acc>(p.reduction_factor * sum);
}

// ---- resident: the row in registers -------------------------------------------------------------

// kRowThreads threads share a row; each holds kHeld chunks of student and teacher.
template <class Storage, int kRowThreads, int kHeld>
__global__ void __launch_bounds__(resident_block(kRowThreads), resident_blocks(kRowThreads))
    distillation_resident(const __grid_constant__ DistillationParams<float> p,
                          unsigned* __restrict__ counter) {
  constexpr int kRows = resident_block(kRowThreads) / kRowThreads;
  constexpr int kCount = kChunk<Storage>;
  constexpr int kStep = kRowThreads * kCount;
  unsigned char* const scratch = dynamic_shared();
  RowGroup<kRowThreads> group(scratch);

  for (int64_t first = int64_t{blockIdx.x} * kRows; first < p.rows;
       first += int64_t{gridDim.x} * kRows) {
    // Lanes without a row repeat the last one and keep the result for themselves.
    const int64_t row = first + threadIdx.x / kRowThreads;
    const bool real = row < p.rows;
    KdRow<Storage> math(p, real ? row : p.rows - 1, group.rank());

    Chunk<Storage> raw_s[kHeld], raw_t[kHeld];  // all loads before the first use: all in flight
    LTK_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      raw_s[i] = math.student.load_constant(i * kStep, math.masked());
      raw_t[i] = math.teacher.load_constant(i * kStep, math.masked());
    }
    float s[kHeld][kCount], t[kHeld][kCount];
    KdMaxima<float> maxima;
    LTK_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) {
        s[i][j] = widen(raw_s[i].value[j]);
        t[i][j] = widen(raw_t[i].value[j]);
      }
      math.weigh(math.student.column + i * kStep, t[i]);
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) maxima = MaxOfBoth()(maxima, {s[i][j], t[i][j]});
    }
    math.set_maxima(group.all_reduce(maxima, MaxOfBoth()));

    KdSums<float> sums;
    LTK_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) math.add(s[i][j], t[i][j], sums);
    }
    math.finish(group.all_reduce(sums, AddSums()), real && group.rank() == 0);

    if (real && p.student_grad) {
      const RowView<Storage> out(math.gradient_row(), math.student.column, math.columns);
      LTK_UNROLL
      for (int i = 0; i < kHeld; ++i) {
        out.store(i * kStep, math.gradient(math.student.column + i * kStep, s[i], t[i]));
      }
    }
  }
  reduce_rows(p, counter, scratch);
}

// ---- shared: the row in shared memory -----------------------------------------------------------

constexpr int kSharedThreads = 512;

// A block per row. Floats are overwritten by their exponentials; 16-bit logits stay as they are and
// their exponentials are computed again (rounding those to 16 bits would cost the gradient).
template <class Storage>
__global__ void __launch_bounds__(kSharedThreads, 1)
    distillation_shared(const __grid_constant__ DistillationParams<float> p,
                        unsigned* __restrict__ counter) {
  constexpr int kCount = kChunk<Storage>;
  constexpr int kStep = kSharedThreads * kCount;
  constexpr bool kKeepsExponentials = sizeof(Storage) == sizeof(float);
  unsigned char* const scratch = dynamic_shared();
  unsigned char* const student_bytes = scratch + scratch_bytes(kSharedThreads);
  unsigned char* const teacher_bytes = student_bytes + shared_row_bytes<Storage>(p.columns);
  BlockGroup group(scratch);

  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    KdRow<Storage> math(p, row, group.rank());
    const int columns = math.columns;

    // Each side is copied along its own chunks.
    KdMaxima<float> maxima;
    const auto copy = [&](const Storage* from, Storage* to, bool is_teacher, float& maximum) {
      const int first = group.rank() * kCount - row_head(from);
      const RowView<const Storage> source(from, first, columns);
      const RowView<Storage> target(to, first, columns);
      for (int offset = 0; first + offset < columns; offset += kStep) {
        const Chunk<Storage> chunk = source.load_constant(offset, math.masked());
        target.store(offset, chunk);
        float value[kCount];
        LTK_UNROLL
        for (int j = 0; j < kCount; ++j) value[j] = widen(chunk.value[j]);
        if (is_teacher) math.weigh(first + offset, value);
        LTK_UNROLL
        for (int j = 0; j < kCount; ++j) maximum = std::fmax(maximum, value[j]);
      }
    };
    Storage* const kept_student =
        reinterpret_cast<Storage*>(student_bytes) + row_head(math.student_row());
    Storage* const kept_teacher =
        reinterpret_cast<Storage*>(teacher_bytes) + row_head(math.teacher_row());
    copy(math.student_row(), kept_student, false, maxima.student);
    copy(math.teacher_row(), kept_teacher, true, maxima.teacher);
    math.set_maxima(group.all_reduce(maxima, MaxOfBoth()));  // its barrier: the copies are there

    // From here on along the chunks of the gradient.
    const int first = math.student.column;
    const RowView<Storage> student(kept_student, first, columns);
    const RowView<Storage> teacher(kept_teacher, first, columns);
    float s[kCount], t[kCount];
    const auto fetch = [&](int offset) {
      const Chunk<Storage> raw_s = student.load(offset, math.masked());
      const Chunk<Storage> raw_t = teacher.load(offset, math.masked());
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) {
        s[j] = widen(raw_s.value[j]);
        t[j] = widen(raw_t.value[j]);
      }
    };
    const auto add = [&](int offset, KdSums<float>& sums) {
      math.weigh(first + offset, t);
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) math.add(s[j], t[j], sums);
    };

    KdSums<float> sums;
    for (int offset = 0; first + offset < columns; offset += kStep) {
      fetch(offset);
      add(offset, sums);
      if constexpr (kKeepsExponentials) {
        student.store(offset, bit_cast<Chunk<Storage>>(s));
        teacher.store(offset, bit_cast<Chunk<Storage>>(t));
      }
    }
    math.finish(group.all_reduce(sums, AddSums()), group.rank() == 0);

    if (p.student_grad) {
      const RowView<Storage> out(math.gradient_row(), first, columns);
      for (int offset = 0; first + offset < columns; offset += kStep) {
        fetch(offset);
        KdSums<float> unused;
        if constexpr (!kKeepsExponentials) add(offset, unused);
        out.store(offset, math.gradient(first + offset, s, t));
      }
    }
    __syncthreads();  // the next row may overwrite this one
  }
  reduce_rows(p, counter, scratch);
}

// ---- stream: the row read twice -----------------------------------------------------------------

// Sums relative to the maxima so far. A maximum of -inf (nothing yet) counts as 0, so that every
// difference of maxima is finite.
template <class Acc>
struct OnlineKd {
  KdMaxima<Acc> maxima;
  KdSums<Acc> sums;
};

template <class Acc>
struct MergeOnlineKd {
  Acc scale, teacher_scale;

  static __device__ __forceinline__ Acc finite(Acc maximum) {
    return maximum == -kInfinity<Acc> ? Acc(0) : maximum;
  }
  // 0 stays 0, also where the factor is infinite.
  static __device__ __forceinline__ Acc scaled(Acc sum, Acc exponent) {
    return sum == 0 ? Acc(0) : sum * fast_exp2(exponent);
  }

  // The sums relative to higher maxima.
  __device__ __forceinline__ KdSums<Acc> rebase(const OnlineKd<Acc>& x,
                                                const KdMaxima<Acc>& to) const {
    const Acc up = finite(to.student) - finite(x.maxima.student);
    const Acc teacher_up = (finite(to.teacher) - finite(x.maxima.teacher)) * teacher_scale;
    const Acc teacher = scaled(x.sums.teacher, -teacher_up);
    const Acc cross = teacher == 0
                          ? Acc(0)
                          : scaled(x.sums.cross, -teacher_up) + teacher * (up * scale - teacher_up);
    return {scaled(x.sums.student, -up * scale), teacher, cross,
            scaled(x.sums.plain, -up * kLog2E<Acc>)};
  }

  __device__ __forceinline__ OnlineKd<Acc> operator()(const OnlineKd<Acc>& a,
                                                      const OnlineKd<Acc>& b) const {
    const KdMaxima<Acc> maxima = MaxOfBoth()(a.maxima, b.maxima);
    return {maxima, AddSums()(rebase(a, maxima), rebase(b, maxima))};
  }
};

constexpr int kStreamThreads = 512;

template <class Storage>
__global__ void __launch_bounds__(kStreamThreads, 1)
    distillation_stream(const __grid_constant__ DistillationParams<float> p,
                        unsigned* __restrict__ counter) {
  constexpr int kCount = kChunk<Storage>;
  constexpr int kStep = kStreamThreads * kCount;
  unsigned char* const scratch = dynamic_shared();
  BlockGroup group(scratch);

  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    KdRow<Storage> math(p, row, group.rank());
    const MergeOnlineKd<float> merge{math.scale, math.teacher_scale};
    const int first = math.student.column, columns = math.columns;
    float s[kCount], t[kCount];
    const auto fetch = [&](int offset) {
      const Chunk<Storage> raw_s = math.student.load_constant(offset, math.masked());
      const Chunk<Storage> raw_t = math.teacher.load_constant(offset, math.masked());
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) {
        s[j] = widen(raw_s.value[j]);
        t[j] = widen(raw_t.value[j]);
      }
      math.weigh(first + offset, t);
    };

    OnlineKd<float> online;
    int offset = 0;
    for (; first + offset < columns; offset += kStep) {
      fetch(offset);
      KdMaxima<float> maxima = online.maxima;
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) maxima = MaxOfBoth()(maxima, {s[j], t[j]});
      if (maxima.student > online.maxima.student || maxima.teacher > online.maxima.teacher) {
        online = {maxima, merge.rebase(online, maxima)};
        math.set_maxima({merge.finite(maxima.student), merge.finite(maxima.teacher)});
      }
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) math.add(s[j], t[j], online.sums);
    }
    online = group.all_reduce(online, merge);
    if (online.maxima.student == -kInfinity<float>) online.sums.student = kNaN<float>;
    if (online.maxima.teacher == -kInfinity<float>) online.sums.teacher = kNaN<float>;
    math.set_maxima(online.maxima);
    math.finish(online.sums, group.rank() == 0);

    if (p.student_grad) {  // backwards: the end of the row was read last and may still be in L2
      const RowView<Storage> out(math.gradient_row(), first, columns);
      for (offset -= kStep; offset >= 0; offset -= kStep) {
        fetch(offset);
        KdSums<float> unused;
        LTK_UNROLL
        for (int j = 0; j < kCount; ++j) math.add(s[j], t[j], unused);
        out.store(offset, math.gradient(first + offset, s, t));
      }
    }
  }
  reduce_rows(p, counter, scratch);
}

// ---- general: every feature ---------------------------------------------------------------------

// The cross-entropy with a dense soft target, online: sums of exponentials, of the target y, and of
// y times the exponent.
template <class Acc>
struct OnlineCe {
  Acc maximum = -kInfinity<Acc>, sum = 0, target = 0, cross = 0;
};

struct MergeOnlineCe {
  template <class Acc>
  __device__ __forceinline__ OnlineCe<Acc> operator()(const OnlineCe<Acc>& a,
                                                      const OnlineCe<Acc>& b) const {
    const Acc maximum = std::fmax(a.maximum, b.maximum);
    const Acc to = MergeOnlineKd<Acc>::finite(maximum);
    const Acc up_a = (to - MergeOnlineKd<Acc>::finite(a.maximum)) * kLog2E<Acc>;
    const Acc up_b = (to - MergeOnlineKd<Acc>::finite(b.maximum)) * kLog2E<Acc>;
    return {maximum,
            MergeOnlineKd<Acc>::scaled(a.sum, -up_a) + MergeOnlineKd<Acc>::scaled(b.sum, -up_b),
            a.target + b.target, (a.cross - a.target * up_a) + (b.cross - b.target * up_b)};
  }
};

// A block per row, value by value.
template <class Storage>
struct GeneralRow {
  using Acc = Accumulate<Storage>;

  const DistillationParams<Acc>& p;
  const int64_t row;
  const Storage* const student;
  const Storage* const teacher;
  const Acc* const soft;
  const Labels<Storage> labels;
  const bool has_ce;
  KdMaxima<Acc> shift;  // of the exponents
  Acc ce_shift = 0;
  // Coefficients of the gradients, and the mean of b - a under q.
  Acc of_kl = 0, of_student = 0, of_teacher = 0, of_plain = 0, of_label = 0, mean_gap = 0;
  bool infinite_kl = false;

  __device__ __forceinline__ GeneralRow(const DistillationParams<Acc>& p, int64_t row)
      : p(p),
        row(row),
        student(static_cast<const Storage*>(p.student) + row * p.student_stride),
        teacher(static_cast<const Storage*>(p.teacher) + row * p.teacher_stride),
        soft(p.soft_target ? p.soft_target + row * p.soft_target_stride : nullptr),
        labels(p, row),
        has_ce(p.target || p.soft_target) {}

  __device__ __forceinline__ Acc temperature(int64_t j) const {
    if (p.column_temperature) return p.column_temperature[j];
    return p.row_temperature ? p.row_temperature[row] : p.temperature;
  }
  // Exponents a and b of column j.
  __device__ __forceinline__ KdMaxima<Acc> exponents(int64_t j) const {
    const Acc scale = kLog2E<Acc> / temperature(j);
    const Acc b = widen(teacher[j]) * scale;
    return {widen(student[j]) * scale, p.class_weight ? b + fast_log2(p.class_weight[j]) : b};
  }
  __device__ __forceinline__ Acc soft_at(int64_t c) const { return soft ? soft[c] : Acc(0); }

  // Cross-entropy part of the student's gradient at column c.
  __device__ __forceinline__ Acc ce_gradient(int64_t c) const {
    if (!has_ce) return 0;
    const Acc s = widen(student[c]);
    Acc y = soft_at(c);
    LTK_UNROLL
    for (int i = 0; i < 2; ++i) y += labels.column[i] == c ? labels.share(i) : Acc(0);
    if (s == -kInfinity<Acc>) y = 0;
    return fast_exp2(std::fma(s, kLog2E<Acc>, -ce_shift)) * of_plain - y * of_label;
  }
  // KL part of both gradients at column j.
  __device__ __forceinline__ KdMaxima<Acc> kl_gradient(int64_t j) const {
    const KdMaxima<Acc> x = exponents(j);
    const Acc a = x.student - shift.student, b = x.teacher - shift.teacher;
    const Acc es = fast_exp2(a), et = fast_exp2(b), t = temperature(j);
    const Acc pull = a == -kInfinity<Acc> ? Acc(0) : et;
    const Acc gap = et == 0 ? 0 * mean_gap : b - a - mean_gap;
    return {(es * of_student - pull * of_teacher) / t,
            infinite_kl ? Acc(0) : et * of_teacher * kLn2<Acc> * gap / t};
  }
};

template <class Storage>
__global__ void __launch_bounds__(512, 1)
    distillation_general(const __grid_constant__ DistillationParams<Accumulate<Storage>> p,
                         unsigned* __restrict__ counter) {
  using Acc = Accumulate<Storage>;
  unsigned char* const scratch = dynamic_shared();
  BlockGroup group(scratch);
  const int rank = group.rank(), size = group.size();
  Storage* const student_grad = static_cast<Storage*>(p.student_grad);
  Storage* const teacher_grad = static_cast<Storage*>(p.teacher_grad);

  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    GeneralRow<Storage> math(p, row);

    // The KL term: exponents are already scaled, so that the online merge is too.
    const MergeOnlineKd<Acc> merge{Acc(1), Acc(1)};
    OnlineKd<Acc> online;
    for (int64_t j = rank; j < p.columns; j += size) {
      const KdMaxima<Acc> x = math.exponents(j);
      const KdMaxima<Acc> maxima = MaxOfBoth()(online.maxima, x);
      KdSums<Acc> sums = merge.rebase(online, maxima);
      const Acc a = x.student - merge.finite(maxima.student);
      const Acc b = x.teacher - merge.finite(maxima.teacher);
      const Acc et = fast_exp2(b);
      sums.student += fast_exp2(a);
      sums.teacher += et;
      sums.cross += et == 0 ? Acc(0) : et * (b - a);
      online = {maxima, sums};
    }
    online = group.all_reduce(online, merge);
    KdSums<Acc>& sums = online.sums;
    if (online.maxima.student == -kInfinity<Acc>) sums.student = kNaN<Acc>;
    if (online.maxima.teacher == -kInfinity<Acc>) sums.teacher = kNaN<Acc>;
    math.shift = online.maxima;
    math.mean_gap = sums.cross / sums.teacher;
    const Acc kl = math.mean_gap * kLn2<Acc> + std::log(sums.student) - std::log(sums.teacher);
    math.infinite_kl = kl == kInfinity<Acc>;
    const Acc k = p.kl_factor * (p.row_factor ? p.row_factor[row * p.row_factor_stride] : Acc(1));
    Acc loss = k * kl;

    // The cross-entropy.
    OnlineCe<Acc> ce;
    if (math.has_ce) {
      for (int64_t c = rank; c < p.columns; c += size) {
        const Acc s = widen(math.student[c]), y = math.soft_at(c);
        const Acc maximum = std::fmax(ce.maximum, s);
        const Acc to = MergeOnlineKd<Acc>::finite(maximum);
        const Acc up = (to - MergeOnlineKd<Acc>::finite(ce.maximum)) * kLog2E<Acc>;
        const Acc a = (s - to) * kLog2E<Acc>;
        ce.sum = MergeOnlineKd<Acc>::scaled(ce.sum, -up) + fast_exp2(a);
        ce.cross += (y == 0 ? Acc(0) : y * a) - ce.target * up;
        ce.target += y;
        ce.maximum = maximum;
      }
      ce = group.all_reduce(ce, MergeOnlineCe());
      if (ce.maximum == -kInfinity<Acc>) ce.sum = kNaN<Acc>;
      math.ce_shift = ce.maximum * kLog2E<Acc>;
      loss += math.soft ? ce.target * std::log(ce.sum) - ce.cross * kLn2<Acc>
                        : math.labels.cross_entropy(ce.sum, kLog2E<Acc>, math.ce_shift);
    }
    if (rank == 0) p.row_loss[row] = loss;
    if (!student_grad && !teacher_grad) continue;

    math.of_label = p.reduction_factor;
    math.of_student = p.reduction_factor * k / sums.student;
    math.of_teacher = p.reduction_factor * k / sums.teacher;
    math.of_plain = p.reduction_factor * (math.labels.sum() + ce.target) / ce.sum;

    if (p.grad_scale) {  // the largest gradient of the row, both sides
      Acc largest = 0;
      for (int64_t j = rank; j < p.columns; j += size) {
        const KdMaxima<Acc> g = math.kl_gradient(j);
        largest = std::fmax(largest, std::fabs(math.ce_gradient(j)));
        largest = std::fmax(largest, std::fabs(g.student));
        if (teacher_grad) largest = std::fmax(largest, std::fabs(g.teacher));
      }
      const Acc half = half_scale(2 * group.all_reduce(largest, Max()));
      if (rank == 0) p.grad_scale[row] = half;
      math.of_label /= half;
      math.of_student /= half;
      math.of_teacher /= half;
      math.of_plain /= half;
    }

    for (int64_t j = rank; j < p.columns; j += size) {
      const KdMaxima<Acc> g = math.kl_gradient(j);
      const int64_t at = row * p.columns + j;
      if (student_grad) student_grad[at] = narrow<Storage>(g.student + math.ce_gradient(j));
      if (teacher_grad) teacher_grad[at] = narrow<Storage>(g.teacher);
    }
  }
  reduce_rows(p, counter, scratch);
}

}  // namespace ltk::cuda
