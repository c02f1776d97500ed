// Distillation on class subsets on CUDA: loss and gradients of a row in one visit. The formulas are
// in subset_distillation.h.
//
// Bytes: the student's columns in a subset and the teachers are read once and the gradient is
// written once (the floor) by `resident`; `general` reads them twice, the second time out of L2
// where the rows in flight fit there. Indices are the same for all rows and come out of L2.
//
//   kernel      subsets          a row is                                    threads of a row
//   resident    up to 8192       held in registers, a subset at a time       32, 128, 512
//   general     any              read twice, online softmax; any number of   32 .. 512
//                                columns, column temperatures, teacher
//                                gradients, float64
//
// The student's gradient is added up in shared memory, subset after subset with barriers between
// (classes are distinct within one: no atomics, one order), and leaves in whole 16-byte chunks with
// its zeros, wherever the classes are scattered to. Columns that do not fit into shared memory are
// done tile after tile.
//
// KL = ln2 A / Z_q + ln Z_p - ln Z_q,  A = sum 2^b (b - a),  a, b: exponents of student and
// teacher.
#pragma once

#include "common/cuda/chunk.cuh"
#include "common/cuda/reduce.cuh"
#include "ops/subset_distillation/subset_distillation.h"

namespace ltk::cuda {

// Makes what a row's threads wrote to shared memory visible to all of them.
template <int kLanes>
__device__ __forceinline__ void row_barrier(const LaneGroup<kLanes>&) {
  __syncwarp();
}
__device__ __forceinline__ void row_barrier(const BlockGroup&) { __syncthreads(); }

// ---- The arithmetic of one row and subset -------------------------------------------------------

template <class Acc>
struct SubsetMaxima {
  Acc student = -kInfinity<Acc>, teacher = -kInfinity<Acc>;
};

struct MaxOfSubset {
  template <class Acc>
  __device__ __forceinline__ SubsetMaxima<Acc> operator()(const SubsetMaxima<Acc>& a,
                                                          const SubsetMaxima<Acc>& b) const {
    return {std::fmax(a.student, b.student), std::fmax(a.teacher, b.teacher)};
  }
};

// Relative to the maxima.
template <class Acc>
struct SubsetSums {
  Acc student = 0, teacher = 0, cross = 0;
};

struct AddSubsetSums {
  template <class Acc>
  __device__ __forceinline__ SubsetSums<Acc> operator()(const SubsetSums<Acc>& a,
                                                        const SubsetSums<Acc>& b) const {
    return {a.student + b.student, a.teacher + b.teacher, a.cross + b.cross};
  }
};

template <class Storage>
struct SubsetRow {
  using Acc = Accumulate<Storage>;

  const SubsetDistillationParams<Acc>& p;
  const int64_t row;
  const Storage* const student;
  const Acc row_factor;
  Acc total = 0;  // the row's loss

  __device__ __forceinline__ SubsetRow(const SubsetDistillationParams<Acc>& p, int64_t row)
      : p(p),
        row(row),
        student(static_cast<const Storage*>(p.student) + row * p.student_stride),
        row_factor(p.row_factor ? p.row_factor[row] : Acc(1)) {}

  __device__ __forceinline__ const Storage* teacher(int l) const {
    return static_cast<const Storage*>(p.teacher[l]) + row * p.teacher_stride[l];
  }
  // Null where they are not wanted.
  __device__ __forceinline__ Storage* student_grad(int column) const {
    if (!p.student_grad) return nullptr;
    return static_cast<Storage*>(p.student_grad) + row * p.columns + column;
  }
  __device__ __forceinline__ Storage* teacher_grad(int l) const {
    if (!p.teacher_grad) return nullptr;
    return static_cast<Storage*>(p.teacher_grad) + p.rows * p.offset[l] + row * size(l);
  }
  __device__ __forceinline__ int size(int l) const {
    return static_cast<int>(p.offset[l + 1] - p.offset[l]);
  }
  __device__ __forceinline__ int column(int l, int j) const {
    const int64_t column = __ldg(p.classes[l] + j);
    device_assert(0 <= column && column < p.columns, "class out of range");
    return static_cast<int>(column);
  }
  __device__ __forceinline__ Acc one_temperature() const {
    return p.row_temperature ? p.row_temperature[row] : p.temperature;
  }
  __device__ __forceinline__ Acc factor(int l) const {
    return p.kl_factor[l] * (p.subset_factor ? __ldg(p.subset_factor + l) : Acc(1)) * row_factor;
  }
  static __device__ __forceinline__ Acc kl(const SubsetSums<Acc>& sums) {
    return sums.cross / sums.teacher * kLn2<Acc> + std::log(sums.student) - std::log(sums.teacher);
  }
  // What the student's gradient is divided by before it is stored; |p - q| <= 1 bounds it.
  __device__ __forceinline__ Acc student_scale(Acc largest_inverse_temperature) const {
    if (!p.grad_scale) return 1;
    Acc size = 0;
    for (int l = 0; l < p.subsets; ++l) size += std::fabs(factor(l));
    return half_scale(p.reduction_factor * size * largest_inverse_temperature);
  }
};

// Stores the gradient of `columns` columns of a row out of shared memory, where its first column
// lies at `sum[row_head(gradient)]`, and leaves zeros there. Not `real`: leaves the zeros alone.
template <class Storage>
__device__ __forceinline__ void store_gradient(Storage* gradient, Accumulate<Storage>* sum,
                                               int columns, int rank, int size, bool real) {
  using Acc = Accumulate<Storage>;
  constexpr int kCount = kChunk<Storage>;
  constexpr int kPieces = kCount * static_cast<int>(sizeof(Acc)) / 16;
  const RowView<Storage> out(gradient, rank * kCount - row_head(gradient), columns);
  for (int offset = 0; out.column + offset < columns; offset += size * kCount) {
    Acc* const from = sum + rank * kCount + offset;
    uint4 piece[kPieces];
    LTK_UNROLL
    for (int i = 0; i < kPieces; ++i) {
      piece[i] = load16(from + i * (kCount / kPieces));
      store16(from + i * (kCount / kPieces), uint4{0, 0, 0, 0});
    }
    Acc value[kCount];
    memcpy(value, piece, sizeof(value));
    Chunk<Storage> chunk;
    LTK_UNROLL
    for (int j = 0; j < kCount; ++j) chunk.value[j] = narrow<Storage>(value[j]);
    if (real) out.store(offset, chunk);
  }
}

// Values of shared memory that the gradient of `columns` columns takes, whole chunks of it.
template <class Storage>
__host__ __device__ constexpr int64_t gradient_values(int64_t columns) {
  return (columns + 2 * (kChunk<Storage> - 1)) / kChunk<Storage> * kChunk<Storage>;
}

// loss = reduction_factor * sum of the rows, by the block that finishes last.
template <class Acc>
__device__ __forceinline__ void reduce_subset_rows(const SubsetDistillationParams<Acc>& p,
                                                   unsigned* counter, unsigned char* scratch) {
  if (!p.loss || !is_last_block(counter, scratch)) return;
  const double sum =
      block_sum(p.rows, scratch, [&](int64_t n) { return double(__ldcg(p.row_loss + n)); });
  if (threadIdx.x == 0) *p.loss = static_cast<Acc>(p.reduction_factor * sum);
}

// ---- resident: a subset in registers ------------------------------------------------------------

// kRowThreads threads share a row; each holds kHeld columns of a subset, of student and teacher.
template <class Storage, int kRowThreads, int kHeld>
__global__ void __launch_bounds__(resident_block(kRowThreads),
                                  kRowThreads* kHeld < 8192 ? resident_blocks(kRowThreads) : 1)
    subset_distillation_resident(const __grid_constant__ SubsetDistillationParams<float> p,
                                 unsigned* __restrict__ counter) {
  constexpr int kRows = resident_block(kRowThreads) / kRowThreads;
  unsigned char* const scratch = dynamic_shared();
  RowGroup<kRowThreads> group(scratch);
  const int64_t values = gradient_values<Storage>(p.columns);
  float* const sum = reinterpret_cast<float*>(scratch + scratch_bytes(blockDim.x)) +
                     threadIdx.x / kRowThreads * values;
  if (p.student_grad) {
    for (int64_t i = group.rank(); i < values; i += kRowThreads) sum[i] = 0;
    row_barrier(group);
  }

  for (int64_t first = int64_t{blockIdx.x} * kRows; first < p.rows;
       first += int64_t{gridDim.x} * kRows) {
    // Lanes without a row repeat the last one and keep the result for themselves.
    const int64_t row = first + threadIdx.x / kRowThreads;
    const bool real = row < p.rows;
    SubsetRow<Storage> math(p, real ? row : p.rows - 1);
    const float inverse = 1 / math.one_temperature();
    const float scale = kLog2E<float> * inverse;
    Storage* const gradient = math.student_grad(0);
    const float half = math.student_scale(inverse);
    float total = 0;

    for (int l = 0; l < p.subsets; ++l) {
      const int size = math.size(l);
      const Storage* const teacher = math.teacher(l);
      int column[kHeld];
      float s[kHeld], t[kHeld];
      LTK_UNROLL
      for (int i = 0; i < kHeld; ++i) {
        const int j = i * kRowThreads + group.rank();
        column[i] = j < size ? math.column(l, j) : -1;
        t[i] = j < size ? widen(teacher[j]) : -kInfinity<float>;
      }
      SubsetMaxima<float> maxima;
      LTK_UNROLL
      for (int i = 0; i < kHeld; ++i) {
        s[i] = column[i] >= 0 ? widen(math.student[column[i]]) : -kInfinity<float>;
      }
      LTK_UNROLL
      for (int i = 0; i < kHeld; ++i) maxima = MaxOfSubset()(maxima, {s[i], t[i]});
      maxima = group.all_reduce(maxima, MaxOfSubset());

      SubsetSums<float> sums;
      const float shift_s = maxima.student * scale, shift_t = maxima.teacher * scale;
      LTK_UNROLL
      for (int i = 0; i < kHeld; ++i) {
        // Lanes behind the subset's end add nothing, not even the NaN of an empty row.
        const bool inside = column[i] >= 0;
        const float a = std::fma(s[i], scale, -shift_s), b = std::fma(t[i], scale, -shift_t);
        const float es = inside ? fast_exp2(a) : 0.f, et = inside ? fast_exp2(b) : 0.f;
        sums.student += es;
        sums.teacher += et;
        sums.cross += et == 0 ? 0.f : et * (b - a);
        s[i] = es;
        t[i] = a == -kInfinity<float> ? 0.f : et;  // a logit of -inf has no gradient
      }
      sums = group.all_reduce(sums, AddSubsetSums());
      const float k = math.factor(l);
      total += k * SubsetRow<Storage>::kl(sums);

      if (p.student_grad) {
        const float slope = p.reduction_factor / half * k * inverse;
        const float of_student = slope / sums.student, of_teacher = slope / sums.teacher;
        float* const to = sum + row_head(gradient);
        LTK_UNROLL
        for (int i = 0; i < kHeld; ++i) {
          if (column[i] >= 0) to[column[i]] += s[i] * of_student - t[i] * of_teacher;
        }
        row_barrier(group);
      }
    }
    if (real && group.rank() == 0) {
      p.row_loss[row] = total;
      if (p.grad_scale) p.grad_scale[row] = half;
    }
    if (p.student_grad) {
      store_gradient(gradient, sum, static_cast<int>(p.columns), group.rank(), kRowThreads, real);
      row_barrier(group);
    }
  }
  reduce_subset_rows(p, counter, scratch);
}

// ---- general: every feature ---------------------------------------------------------------------

// Sums relative to the maxima so far. A maximum of -inf (nothing yet) counts as 0, so that every
// difference of maxima is finite.
template <class Acc>
struct OnlineSubset {
  SubsetMaxima<Acc> maxima;
  SubsetSums<Acc> sums;
  Acc largest_inverse_temperature = 0;
};

struct MergeOnlineSubset {
  template <class Acc>
  static __device__ __forceinline__ Acc finite(Acc maximum) {
    return maximum == -kInfinity<Acc> ? Acc(0) : maximum;
  }
  // 0 stays 0, also where the factor is infinite.
  template <class Acc>
  static __device__ __forceinline__ Acc scaled(Acc sum, Acc exponent) {
    return sum == 0 ? Acc(0) : sum * fast_exp2(exponent);
  }
  // The sums relative to higher maxima.
  template <class Acc>
  static __device__ __forceinline__ SubsetSums<Acc> rebase(const OnlineSubset<Acc>& x,
                                                           const SubsetMaxima<Acc>& to) {
    const Acc up = finite(to.student) - finite(x.maxima.student);
    const Acc teacher_up = finite(to.teacher) - finite(x.maxima.teacher);
    const Acc teacher = scaled(x.sums.teacher, -teacher_up);
    const Acc cross =
        teacher == 0 ? Acc(0) : scaled(x.sums.cross, -teacher_up) + teacher * (up - teacher_up);
    return {scaled(x.sums.student, -up), teacher, cross};
  }
  template <class Acc>
  __device__ __forceinline__ OnlineSubset<Acc> operator()(const OnlineSubset<Acc>& a,
                                                          const OnlineSubset<Acc>& b) const {
    const SubsetMaxima<Acc> maxima = MaxOfSubset()(a.maxima, b.maxima);
    return {maxima, AddSubsetSums()(rebase(a, maxima), rebase(b, maxima)),
            std::fmax(a.largest_inverse_temperature, b.largest_inverse_temperature)};
  }
};

// What the second visit of a row needs to know of a subset; one a subset in shared memory.
template <class Acc>
struct SubsetSlope {
  SubsetMaxima<Acc> maxima;
  Acc of_student, of_teacher;  // in the student's gradient
  Acc of_gap, mean_gap;        // in the teacher's
};

constexpr int kGeneralBatch = 4;  // columns a thread reads before it uses the first

template <class Acc>
__host__ __device__ constexpr int slope_bytes() {
  return static_cast<int>((kMostSubsets * sizeof(SubsetSlope<Acc>) + 15) / 16 * 16);
}

// A block per row; `tile` columns of the gradient at a time.
template <class Storage>
__global__ void __launch_bounds__(512, 1) subset_distillation_general(
    const __grid_constant__ SubsetDistillationParams<Accumulate<Storage>> p, int tile,
    unsigned* __restrict__ counter) {
  using Acc = Accumulate<Storage>;
  using Merge = MergeOnlineSubset;
  unsigned char* const scratch = dynamic_shared();
  BlockGroup group(scratch);
  const int rank = group.rank(), threads = group.size();
  auto* const slope = reinterpret_cast<SubsetSlope<Acc>*>(scratch + scratch_bytes(threads));
  Acc* const sum = reinterpret_cast<Acc*>(scratch + scratch_bytes(threads) + slope_bytes<Acc>());
  const int columns = static_cast<int>(p.columns);
  for (int i = rank; p.student_grad && i < gradient_values<Storage>(tile); i += threads) sum[i] = 0;

  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    SubsetRow<Storage> math(p, row);
    const Acc one_inverse = 1 / math.one_temperature();
    const auto inverse_temperature = [&](int c) {
      return p.column_temperature ? 1 / __ldg(p.column_temperature + c) : one_inverse;
    };

    // The first visit: sums, loss, and slopes of the gradients.
    Acc total = 0, largest_inverse = one_inverse;
    if (p.column_temperature) largest_inverse = 0;
    for (int l = 0; l < p.subsets; ++l) {
      const int size = math.size(l);
      const Storage* const teacher = math.teacher(l);
      OnlineSubset<Acc> online;
      for (int first = rank; first < size; first += kGeneralBatch * threads) {
        Acc a[kGeneralBatch], b[kGeneralBatch];
        SubsetMaxima<Acc> maxima = online.maxima;
        LTK_UNROLL
        for (int i = 0; i < kGeneralBatch; ++i) {
          const int j = first + i * threads;
          a[i] = b[i] = -kInfinity<Acc>;
          if (j >= size) continue;
          const int c = math.column(l, j);
          const Acc inverse = inverse_temperature(c);
          a[i] = widen(math.student[c]) * (inverse * kLog2E<Acc>);
          b[i] = widen(teacher[j]) * (inverse * kLog2E<Acc>);
          online.largest_inverse_temperature =
              std::fmax(online.largest_inverse_temperature, inverse);
          maxima = MaxOfSubset()(maxima, {a[i], b[i]});
        }
        if (maxima.student > online.maxima.student || maxima.teacher > online.maxima.teacher) {
          online.sums = Merge::rebase(online, maxima);
          online.maxima = maxima;
        }
        LTK_UNROLL
        for (int i = 0; i < kGeneralBatch; ++i) {
          const Acc x = a[i] - Merge::finite(maxima.student);
          const Acc y = b[i] - Merge::finite(maxima.teacher);
          const Acc et = fast_exp2(y);
          online.sums.student += fast_exp2(x);
          online.sums.teacher += et;
          online.sums.cross += et == 0 ? Acc(0) : et * (y - x);
        }
      }
      online = group.all_reduce(online, Merge());
      if (online.maxima.student == -kInfinity<Acc>) online.sums.student = kNaN<Acc>;
      if (online.maxima.teacher == -kInfinity<Acc>) online.sums.teacher = kNaN<Acc>;
      const Acc kl = SubsetRow<Storage>::kl(online.sums), k = math.factor(l);
      total += k * kl;
      largest_inverse = std::fmax(largest_inverse, online.largest_inverse_temperature);

      Acc of_gap = p.reduction_factor * k;
      if (p.teacher_grad && p.grad_scale) {
        // |q (log q - log p - KL)| <= KL + 1.
        const Acc bound = std::fabs(of_gap) * online.largest_inverse_temperature * (kl + 1);
        const Acc half = half_scale(bound);
        if (rank == 0) p.grad_scale[(1 + l) * p.rows + row] = half;
        of_gap /= half;
      }
      if (rank == 0) {
        const Acc of_all = p.reduction_factor * k;
        slope[l] = {online.maxima, of_all / online.sums.student, of_all / online.sums.teacher,
                    kl == kInfinity<Acc> ? kInfinity<Acc> : of_gap / online.sums.teacher,
                    online.sums.cross / online.sums.teacher};
      }
    }
    const Acc half = math.student_scale(largest_inverse);
    if (rank == 0) {
      p.row_loss[row] = total;
      if (p.grad_scale) p.grad_scale[row] = half;
    }
    if (!p.student_grad && !p.teacher_grad) continue;
    __syncthreads();  // the slopes are there

    for (int begin = 0; begin < columns; begin += tile) {
      const int count = columns - begin < tile ? columns - begin : tile;
      Storage* const gradient = math.student_grad(begin);
      const int head = p.student_grad ? row_head(gradient) : 0;
      for (int l = 0; l < p.subsets; ++l) {
        const int size = math.size(l);
        const Storage* const teacher = math.teacher(l);
        const SubsetSlope<Acc> of = slope[l];
        Storage* const teacher_grad = math.teacher_grad(l);
        for (int j = rank; j < size; j += threads) {
          const int c = math.column(l, j);
          const unsigned place = static_cast<unsigned>(c - begin);
          if (place >= static_cast<unsigned>(count)) continue;
          const Acc inverse = inverse_temperature(c);
          const Acc a = widen(math.student[c]) * (inverse * kLog2E<Acc>)-of.maxima.student;
          const Acc b = widen(teacher[j]) * (inverse * kLog2E<Acc>)-of.maxima.teacher;
          const Acc es = fast_exp2(a), et = fast_exp2(b);
          if (p.student_grad) {
            const Acc pull = a == -kInfinity<Acc> ? Acc(0) : et;
            sum[head + place] += (es * of.of_student - pull * of.of_teacher) * (inverse / half);
          }
          if (p.teacher_grad) {
            const Acc gap = et == 0 ? 0 * of.mean_gap : b - a - of.mean_gap;
            const Acc g =
                of.of_gap == kInfinity<Acc> ? Acc(0) : et * of.of_gap * kLn2<Acc> * gap * inverse;
            teacher_grad[j] = narrow<Storage>(g);
          }
        }
        __syncthreads();
      }
      if (p.student_grad) {
        store_gradient(gradient, sum, count, rank, threads, true);
        __syncthreads();
      }
    }
  }
  reduce_subset_rows(p, counter, scratch);
}

}  // namespace ltk::cuda
