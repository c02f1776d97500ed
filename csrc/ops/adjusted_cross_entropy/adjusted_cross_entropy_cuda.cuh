// Cross-entropy of adjusted logits on CUDA: loss and gradient of a row in one visit. The formulas
// are in adjusted_cross_entropy.h.
//
// Bytes: the logits are read once and the gradient is written once (2 N C elements, the floor)
// wherever a row fits on chip; beyond that the logits are read twice.
//
//   kernel       columns             a row is                           threads of a row
//   resident     up to 8192          held in registers                  8, 32, 64, 128, 256
//   shared       up to shared memory held in shared memory              512
//   stream       any, and float64    read twice, online softmax         512
//
// The mean divides by the weights of all rows, which are known last: the gradient is stored
// undivided, and the block that finishes last writes the divisor into grad_scale.
#pragma once

#include "common/cuda/chunk.cuh"
#include "common/cuda/reduce.cuh"
#include "ops/adjusted_cross_entropy/adjusted_cross_entropy.h"

namespace ltk::cuda {

// What a row adds up: 2^exponent, and for label smoothing the weights w and w times the exponent.
template <class Acc>
struct CeSums {
  Acc exp = 0, weight = 0, distance = 0;
};

struct AddCeSums {
  template <class Acc>
  __device__ __forceinline__ CeSums<Acc> operator()(const CeSums<Acc>& a,
                                                    const CeSums<Acc>& b) const {
    return {a.exp + b.exp, a.weight + b.weight, a.distance + b.distance};
  }
};

// The arithmetic of one row. `offset` counts columns from the thread's first chunk, see RowView.
template <class Storage>
struct CeRow {
  using Acc = Accumulate<Storage>;
  static constexpr int kCount = kChunk<Storage>;

  const AdjustedCrossEntropyParams<Acc>& p;
  const int64_t row;
  const int target;   // -1: the row is ignored
  const int columns;  // of an ignored row: none
  const RowView<const Storage> logits;
  Acc shift = 0;
  Acc of_exp = 0, of_target = 0, of_smooth = 0;  // for the gradient

  __device__ __forceinline__ CeRow(const AdjustedCrossEntropyParams<Acc>& p, int64_t row, int rank)
      : p(p),
        row(row),
        target(read_target()),
        columns(target < 0 ? 0 : static_cast<int>(p.columns)),
        logits(logits_row(), rank * kCount - head(), columns) {}

  __device__ __forceinline__ const Storage* logits_row() const {
    return static_cast<const Storage*>(p.logits) + row * p.logits_stride;
  }
  __device__ __forceinline__ Storage* gradient_row() const {
    return static_cast<Storage*>(p.grad) + row * p.columns;
  }
  __device__ __forceinline__ int head() const {
    return p.grad ? row_head(gradient_row()) : row_head(logits_row());
  }
  __device__ __forceinline__ RowView<Storage> gradient_view() const {
    return {gradient_row(), logits.column, static_cast<int>(p.columns)};
  }
  static __device__ __forceinline__ Storage masked() { return narrow<Storage>(-kInfinity<Acc>); }

  // The target's place among the columns of a chunk, or something that is none.
  __device__ __forceinline__ unsigned place(int column) const {
    return target < 0 ? ~0u : static_cast<unsigned>(target - column);
  }

  // Turns logits, from column `column` on, into z.
  __device__ __forceinline__ void adjust(int column, Acc (&z)[kCount]) const {
    Acc bias[kCount] = {};
    if (p.bias) load_vector(p.bias, column, columns, Acc(0), bias);
    LTK_UNROLL
    for (int j = 0; j < kCount; ++j) z[j] = std::fma(z[j], p.scale, bias[j]);
    if (p.margin && place(column) < kCount) {
      const Acc margin = p.scale * p.margin[target];
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) {
        z[j] -= place(column) == static_cast<unsigned>(j) ? margin : Acc(0);
      }
    }
  }

  __device__ __forceinline__ void set_maximum(Acc maximum) { shift = maximum * kLog2E<Acc>; }
  __device__ __forceinline__ Acc exponent(Acc z) const { return std::fma(z, kLog2E<Acc>, -shift); }

  // Adds the columns of a chunk to the sums and replaces z by its exponential.
  __device__ __forceinline__ void add(int column, Acc (&z)[kCount], CeSums<Acc>& sums) const {
    Acc power[kCount];
    LTK_UNROLL
    for (int j = 0; j < kCount; ++j) {
      power[j] = exponent(z[j]);
      z[j] = fast_exp2(power[j]);
      sums.exp += z[j];
    }
    if (p.label_smoothing == 0) return;
    Acc weight[kCount];
    class_weights(column, weight);
    LTK_UNROLL
    for (int j = 0; j < kCount; ++j) {
      sums.weight += weight[j];
      sums.distance += weight[j] == 0 ? Acc(0) : weight[j] * power[j];
    }
  }

  // Loss of the row, coefficients of its gradient. One thread of the row is the `writer`.
  __device__ __forceinline__ void finish(const CeSums<Acc>& sums, bool writer) {
    Acc loss = 0, half = 1;
    if (target >= 0) {
      const Acc hard = (1 - p.label_smoothing) * (p.class_weight ? p.class_weight[target] : Acc(1));
      const Acc soft = p.label_smoothing / static_cast<Acc>(p.columns);
      Acc z = std::fma(widen(logits_row()[target]), p.scale, p.bias ? p.bias[target] : Acc(0));
      if (p.margin) z -= p.scale * p.margin[target];
      const Acc log_sum = std::log(sums.exp);
      // A class without weight is out, even where its logit is -inf (0 * inf).
      loss = hard == 0 ? 0 * log_sum : hard * (log_sum - exponent(z) * kLn2<Acc>);
      if (soft != 0) loss += soft * (sums.weight * log_sum - sums.distance * kLn2<Acc>);
      Acc slope = 1;
      if (p.focal_gamma > 0) {
        if (loss < 0) loss = 0;  // a rounded 0
        const Acc miss = -std::expm1(-loss), power = std::pow(miss, p.focal_gamma);
        // Its second part goes to 0 with l to 0 and to infinity, where its factors do not.
        slope = power;
        if (loss > 0 && loss < kInfinity<Acc>) {
          slope += p.focal_gamma * loss * std::exp(-loss) * std::pow(miss, p.focal_gamma - 1);
        }
        loss *= power;
      }
      const Acc mass = hard + soft * sums.weight;
      Acc factor = slope * p.scale;
      if (sizeof(Storage) == 2 && p.grad_scale) {
        half = half_scale(std::fabs(factor * mass));
        factor /= half;
      }
      of_exp = factor * mass / sums.exp;
      of_target = is_constant(target) ? Acc(0) : factor * hard;
      of_smooth = factor * soft;
    }
    if (writer) {
      p.row_loss[row] = loss;
      if (p.grad_scale) p.grad_scale[row] = half;
    }
  }

  // The gradient of a chunk from its exponentials.
  __device__ __forceinline__ Chunk<Storage> gradient(int offset, const Acc (&e)[kCount]) const {
    const int column = logits.column + offset;
    Acc g[kCount];
    LTK_UNROLL
    for (int j = 0; j < kCount; ++j) g[j] = target < 0 ? Acc(0) : e[j] * of_exp;
    if (of_smooth != 0) {
      Acc weight[kCount];
      class_weights(column, weight);
      const Chunk<Storage> x = logits.load_constant(offset, masked());  // in L1 or L2
      Acc bias[kCount] = {};
      if (p.bias) load_vector(p.bias, column, columns, Acc(0), bias);
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) {
        const bool constant = widen(x.value[j]) == -kInfinity<Acc> || bias[j] == -kInfinity<Acc>;
        g[j] -= constant ? Acc(0) : weight[j] * of_smooth;
      }
    }
    if (place(column) < kCount) {
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) {
        g[j] -= place(column) == static_cast<unsigned>(j) ? of_target : Acc(0);
      }
    }
    Chunk<Storage> out;
    LTK_UNROLL
    for (int j = 0; j < kCount; ++j) out.value[j] = narrow<Storage>(g[j]);
    return out;
  }

 private:
  __device__ __forceinline__ int read_target() const {
    const int64_t y = p.target[row];
    if (y == p.ignore_index) return -1;
    device_assert(0 <= y && y < p.columns, "target out of range");
    return static_cast<int>(y);
  }
  // Whether the logit is -inf, or the bias makes it so.
  __device__ __forceinline__ bool is_constant(int column) const {
    return widen(logits_row()[column]) == -kInfinity<Acc> ||
           (p.bias && p.bias[column] == -kInfinity<Acc>);
  }
  // 0 outside the row.
  __device__ __forceinline__ void class_weights(int column, Acc (&weight)[kCount]) const {
    if (p.class_weight) {
      load_vector(p.class_weight, column, columns, Acc(0), weight);
      return;
    }
    LTK_UNROLL
    for (int j = 0; j < kCount; ++j) {
      weight[j] = static_cast<unsigned>(column + j) < static_cast<unsigned>(columns) ? 1 : 0;
    }
  }
};

// The sum or mean over the rows, by the block that finishes last; for the mean also the divisor of
// the gradients. The mean of nothing is NaN, its gradient 0.
template <class Acc>
__device__ __forceinline__ void reduce_rows(const AdjustedCrossEntropyParams<Acc>& p,
                                            unsigned* counter, unsigned char* scratch) {
  if (p.reduction == Reduction::None || !is_last_block(counter, scratch)) return;
  const double sum =
      block_sum(p.rows, scratch, [&](int64_t n) { return double(__ldcg(p.row_loss + n)); });
  __syncthreads();
  double divisor = 1;
  if (p.reduction == Reduction::Mean) {
    divisor = block_sum(p.rows, scratch, [&](int64_t n) {
      const int64_t y = p.target[n];
      if (y == p.ignore_index) return 0.;
      return p.class_weight ? double(p.class_weight[y]) : 1.;
    });
    if (p.grad_scale) {
      const Acc inverse = static_cast<Acc>(divisor == 0 ? 0 : 1 / divisor);
      for (int64_t n = threadIdx.x; n < p.rows; n += blockDim.x) {
        p.grad_scale[n] = __ldcg(p.grad_scale + n) * inverse;
      }
    }
  }
  if (threadIdx.x == 0 && p.loss) *p.loss = static_cast<Acc>(sum / divisor);
}

// ---- resident: the row in registers -------------------------------------------------------------

// kRowThreads threads share a row; each holds kHeld chunks of it.
template <class Storage, int kRowThreads, int kHeld>
__global__ void __launch_bounds__(resident_block(kRowThreads), resident_blocks(kRowThreads))
    adjusted_cross_entropy_resident(const __grid_constant__ AdjustedCrossEntropyParams<float> p,
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
    CeRow<Storage> math(p, real ? row : p.rows - 1, group.rank());

    Chunk<Storage> raw[kHeld];  // all loads before the first use: all in flight
    LTK_UNROLL
    for (int i = 0; i < kHeld; ++i) raw[i] = math.logits.load_constant(i * kStep, math.masked());
    float z[kHeld][kCount];
    float maximum = -kInfinity<float>;
    LTK_UNROLL
    for (int i = 0; i < kHeld; ++i) {
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) z[i][j] = widen(raw[i].value[j]);
      math.adjust(math.logits.column + i * kStep, z[i]);
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) maximum = std::fmax(maximum, z[i][j]);
    }
    math.set_maximum(group.all_reduce(maximum, Max()));

    CeSums<float> sums;
    LTK_UNROLL
    for (int i = 0; i < kHeld; ++i) math.add(math.logits.column + i * kStep, z[i], sums);
    math.finish(group.all_reduce(sums, AddCeSums()), real && group.rank() == 0);

    if (real && p.grad) {
      const RowView<Storage> out = math.gradient_view();
      LTK_UNROLL
      for (int i = 0; i < kHeld; ++i) out.store(i * kStep, math.gradient(i * kStep, z[i]));
    }
  }
  reduce_rows(p, counter, scratch);
}

// ---- shared: the row in shared memory -----------------------------------------------------------

constexpr int kSharedThreads = 512;

// A block per row, kept as floats: first z, then its exponentials.
template <class Storage>
__global__ void __launch_bounds__(kSharedThreads, 1)
    adjusted_cross_entropy_shared(const __grid_constant__ AdjustedCrossEntropyParams<float> p,
                                  unsigned* __restrict__ counter) {
  constexpr int kCount = kChunk<Storage>;
  constexpr int kStep = kSharedThreads * kCount;
  unsigned char* const scratch = dynamic_shared();
  float* const kept = reinterpret_cast<float*>(scratch + scratch_bytes(kSharedThreads));
  BlockGroup group(scratch);

  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    CeRow<Storage> math(p, row, group.rank());
    const int first = math.logits.column, columns = static_cast<int>(p.columns);
    // A thread comes back to the chunks it has stored: no barrier between the passes.
    const auto keep = [&](int offset, const float (&z)[kCount]) {
      LTK_UNROLL
      for (int j = 0; j < kCount; j += 4) {
        uint4 four;
        memcpy(&four, z + j, 16);
        store16(kept + group.rank() * kCount + offset + j, four);
      }
    };
    const auto fetch = [&](int offset, float (&z)[kCount]) {
      LTK_UNROLL
      for (int j = 0; j < kCount; j += 4) {
        const uint4 four = load16(kept + group.rank() * kCount + offset + j);
        memcpy(z + j, &four, 16);
      }
    };

    float z[kCount];
    float maximum = -kInfinity<float>;
    for (int offset = 0; first + offset < columns; offset += kStep) {
      const Chunk<Storage> raw = math.logits.load_constant(offset, math.masked());
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) z[j] = widen(raw.value[j]);
      math.adjust(first + offset, z);
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) maximum = std::fmax(maximum, z[j]);
      keep(offset, z);
    }
    math.set_maximum(group.all_reduce(maximum, Max()));

    CeSums<float> sums;
    for (int offset = 0; first + offset < columns; offset += kStep) {
      fetch(offset, z);
      math.add(first + offset, z, sums);
      keep(offset, z);
    }
    math.finish(group.all_reduce(sums, AddCeSums()), group.rank() == 0);

    if (p.grad) {
      const RowView<Storage> out = math.gradient_view();
      for (int offset = 0; first + offset < columns; offset += kStep) {
        fetch(offset, z);
        out.store(offset, math.gradient(offset, z));
      }
    }
  }
  reduce_rows(p, counter, scratch);
}

// ---- stream: the row read twice -----------------------------------------------------------------

// Sums relative to the maximum so far. A maximum of -inf (nothing yet) counts as 0.
template <class Acc>
struct OnlineCe {
  Acc maximum = -kInfinity<Acc>;
  CeSums<Acc> sums;
};

struct MergeOnlineCe {
  template <class Acc>
  static __device__ __forceinline__ Acc finite(Acc maximum) {
    return maximum == -kInfinity<Acc> ? Acc(0) : maximum;
  }
  // The sums relative to a higher maximum.
  template <class Acc>
  static __device__ __forceinline__ CeSums<Acc> rebase(const OnlineCe<Acc>& x, Acc to) {
    const Acc up = (finite(to) - finite(x.maximum)) * kLog2E<Acc>;
    const CeSums<Acc>& sums = x.sums;
    return {sums.exp == 0 ? Acc(0) : sums.exp * fast_exp2(-up), sums.weight,
            sums.distance - sums.weight * up};
  }
  template <class Acc>
  __device__ __forceinline__ OnlineCe<Acc> operator()(const OnlineCe<Acc>& a,
                                                      const OnlineCe<Acc>& b) const {
    const Acc maximum = std::fmax(a.maximum, b.maximum);
    return {maximum, AddCeSums()(rebase(a, maximum), rebase(b, maximum))};
  }
};

constexpr int kStreamThreads = 512;

template <class Storage>
__global__ void __launch_bounds__(kStreamThreads, 1) adjusted_cross_entropy_stream(
    const __grid_constant__ AdjustedCrossEntropyParams<Accumulate<Storage>> p,
    unsigned* __restrict__ counter) {
  using Acc = Accumulate<Storage>;
  constexpr int kCount = kChunk<Storage>;
  constexpr int kStep = kStreamThreads * kCount;
  unsigned char* const scratch = dynamic_shared();
  BlockGroup group(scratch);

  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    CeRow<Storage> math(p, row, group.rank());
    const int first = math.logits.column, columns = static_cast<int>(p.columns);
    Acc z[kCount];
    const auto fetch = [&](int offset) {
      const Chunk<Storage> raw = math.logits.load_constant(offset, math.masked());
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) z[j] = widen(raw.value[j]);
      math.adjust(first + offset, z);
    };

    OnlineCe<Acc> online;
    int offset = 0;
    for (; first + offset < columns; offset += kStep) {
      fetch(offset);
      Acc maximum = online.maximum;
      LTK_UNROLL
      for (int j = 0; j < kCount; ++j) maximum = std::fmax(maximum, z[j]);
      if (maximum > online.maximum) {
        online = {maximum, MergeOnlineCe::rebase(online, maximum)};
        math.set_maximum(MergeOnlineCe::finite(maximum));
      }
      math.add(first + offset, z, online.sums);
    }
    online = group.all_reduce(online, MergeOnlineCe());
    if (online.maximum == -kInfinity<Acc>) online.sums.exp = kNaN<Acc>;
    math.set_maximum(online.maximum);
    math.finish(online.sums, group.rank() == 0);

    if (p.grad) {  // backwards: the end of the row was read last and may still be in L2
      const RowView<Storage> out = math.gradient_view();
      for (offset -= kStep; offset >= 0; offset -= kStep) {
        CeSums<Acc> unused;
        fetch(offset);
        math.add(first + offset, z, unused);
        out.store(offset, math.gradient(offset, z));
      }
    }
  }
  reduce_rows(p, counter, scratch);
}

}  // namespace ltk::cuda
