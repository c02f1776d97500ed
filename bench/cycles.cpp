// What an element costs: cycles of the exponential alone, and of each fused loss with its gradient,
// on rows in the first-level cache, in the second, and in memory, beside those of moving the same
// bytes. Says whether arithmetic or memory is the limit.
//
//   cmake -S . -B build/cycles -G Ninja -DLTKERNELS_CYCLES=ON
//   ninja -C build/cycles cycles && build/cycles/cycles
//
// A cycle is the time of one addition that waits for the one before: the core's clock as it runs
// now. Each figure is the least of many short runs.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "ops/adjusted_cross_entropy/adjusted_cross_entropy_cpu.h"
#include "ops/distillation/distillation_cpu.h"
#include "ops/experts/experts_cpu.h"

namespace ltk {
#define LTK_DECLARE(isa)                        \
  namespace isa {                               \
  float sum_of_exp2(const float* x, int64_t n); \
  }
LTK_FOR_EACH_ISA(LTK_DECLARE)
#undef LTK_DECLARE
}  // namespace ltk

namespace {

using namespace ltk;

volatile float sink;

template <class F>
double seconds(const F& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double cycle() {
  double best = 1;
  for (int round = 0; round < 20; round++) {
    int64_t x = 1;
    const double time = seconds([&] {
      for (int i = 0; i < 200000; i++) {
        x += i;
        asm volatile("" : "+r"(x));
      }
    });
    best = std::min(best, time / 200000);
  }
  return best;
}

// Cycles an element, the least of rounds of about 2 ms.
template <class F>
double cycles(int64_t elements, const F& run) {
  run();
  const double once = std::max(seconds(run), 1e-7);
  const int repeats = std::max(1, static_cast<int>(2e-3 / once));
  double best = 1;
  for (int round = 0; round < 40; round++)
    best = std::min(best, seconds([&] {
                            for (int i = 0; i < repeats; i++) run();
                          }) / repeats);
  return best / cycle() / static_cast<double>(elements);
}

struct Buffer {
  explicit Buffer(int64_t bytes)
      : bytes_(bytes), data(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096)) {
    std::memset(data, 0, bytes);
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  int64_t bytes_;
  void* data;
};

// Values spread over [-8, 8], in the storage type.
void fill(const Buffer& buffer, DType dtype, int64_t n) {
  uint32_t state = 1;
  for (int64_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    const float x = static_cast<float>(state >> 8) * 0x1p-20f - 8;
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (dtype == DType::Float32)
      buffer.as<float>()[i] = x;
    else
      buffer.as<uint16_t>()[i] = static_cast<uint16_t>(bits >> 16);
  }
}

struct Shape {
  const char* place;
  int64_t rows, columns;
};

double exp2_cycles(Isa isa) {
  constexpr int64_t n = 2048;
  Buffer x(n * 4);
  for (int64_t i = 0; i < n; i++) x.as<float>()[i] = -static_cast<float>(i % 37) * 0.7f;
  return cycles(n, [&] {
    switch (isa) {
#define LTK_CASE(isa) \
  case Isa::isa: sink = isa::sum_of_exp2(x.as<float>(), n); break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
  });
}

double distillation_cycles(Isa isa, DType dtype, const Shape& shape, bool balanced) {
  const int64_t size = shape.rows * shape.columns, bytes = size * (dtype == DType::Float32 ? 4 : 2);
  Buffer student(bytes), teacher(bytes), grad(bytes), loss(shape.rows * 4);
  Buffer target(shape.rows * 8), log_weight(shape.columns * 4);
  fill(student, dtype, size);
  fill(teacher, dtype, size);
  DistillationParams<float> p{};
  p.rows = shape.rows;
  p.columns = p.student_stride = p.teacher_stride = shape.columns;
  p.student = student.data;
  p.teacher = teacher.data;
  p.temperature = 2;
  p.kl_factor = 4;
  p.lam = 1;
  p.reduction_factor = 1.0f / static_cast<float>(shape.rows);
  p.row_loss = loss.as<float>();
  p.student_grad = grad.data;
  DistillationTables<float> tables{nullptr, nullptr, 0};
  if (balanced) {
    p.target = target.as<int64_t>();
    tables.log_class_weight = log_weight.as<float>();
  }
  Buffer scratch((1 << 20) * 4);
  return cycles(size, [&] {
    switch (isa) {
#define LTK_CASE(isa)                                                                    \
  case Isa::isa:                                                                         \
    isa::distillation_rows<float>(p, tables, dtype, 0, shape.rows, scratch.as<float>()); \
    break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
  });
}

double cross_entropy_cycles(Isa isa, DType dtype, const Shape& shape) {
  const int64_t size = shape.rows * shape.columns, bytes = size * (dtype == DType::Float32 ? 4 : 2);
  Buffer logits(bytes), grad(bytes), loss(shape.rows * 4), target(shape.rows * 8);
  Buffer bias(shape.columns * 4);
  fill(logits, dtype, size);
  AdjustedCrossEntropyParams<float> p{};
  p.rows = shape.rows;
  p.columns = p.logits_stride = shape.columns;
  p.logits = logits.data;
  p.target = target.as<int64_t>();
  p.scale = 1;
  p.bias = bias.as<float>();
  p.ignore_index = -100;
  p.reduction = Reduction::Mean;
  p.row_loss = loss.as<float>();
  p.grad = grad.data;
  Buffer scratch((1 << 20) * 4);
  const float factor = 1.0f / static_cast<float>(shape.rows);
  return cycles(size, [&] {
    switch (isa) {
#define LTK_CASE(isa)                                                                              \
  case Isa::isa:                                                                                   \
    isa::adjusted_cross_entropy_rows<float>(p, factor, dtype, 0, shape.rows, scratch.as<float>()); \
    break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
  });
}

// Collaborative distillation among three experts; of an element of one expert's logits.
double collaborative_kd_cycles(Isa isa, DType dtype, const Shape& shape) {
  constexpr int kExperts = 3;
  const int64_t size = shape.rows * shape.columns, one = dtype == DType::Float32 ? 4 : 2;
  Buffer logits(kExperts * size * one), grad(kExperts * size * one), loss(shape.rows * 4);
  fill(logits, dtype, kExperts * size);
  ExpertsParams<float> p{};
  p.rows = shape.rows;
  p.columns = shape.columns;
  p.experts = kExperts;
  for (int k = 0; k < kExperts; k++) {
    p.logits[k] = logits.as<char>() + k * size * one;
    p.logits_stride[k] = shape.columns;
  }
  p.divergence = ExpertDivergence::Pairwise;
  p.temperature = 2;
  p.kl_factor = 1;
  p.ce_reduction = p.kl_reduction = 1.0f / static_cast<float>(shape.rows);
  p.first_gradient = p.second_gradient = true;
  p.row_loss = loss.as<float>();
  p.grad = grad.data;
  const ExpertsTables<float> tables{nullptr, 0};
  Buffer scratch((1 << 21) * 4);
  return cycles(kExperts * size, [&] {
    switch (isa) {
#define LTK_CASE(isa)                                                               \
  case Isa::isa:                                                                    \
    isa::experts_rows<float>(p, tables, dtype, 0, shape.rows, scratch.as<float>()); \
    break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
  });
}

// Cycles an element of a[i] = b[i] + s c[i], and of a[i] = b[i], as the compiler writes them.
double triad_cycles(const Shape& shape) {
  const int64_t n = shape.rows * shape.columns;
  Buffer a(4 * n), b(4 * n), c(4 * n);
  return cycles(n, [&] {
    float* __restrict to = a.as<float>();
    const float *x = b.as<float>(), *y = c.as<float>();
    for (int64_t i = 0; i < n; i++) to[i] = x[i] + 0.5f * y[i];
    asm volatile("" ::: "memory");
  });
}

}  // namespace

int main() {
  const Shape shapes[] = {
      {"L1", 16, 100}, {"L1", 1, 1000}, {"L2", 8, 8142}, {"memory", 2048, 8142}};
  std::printf("clock %.2f GHz; cycles an element\n\n", 1e-9 / cycle());
  std::printf("| | exp2 | |");
  for (const char* op : {"kd", "bkd", "cross-entropy", "collaborative kd"})
    for (const char* dtype : {"fp32", "bf16"}) std::printf(" %s %s |", op, dtype);
  std::printf(" triad |\n|");
  for (int i = 0; i < 12; i++) std::printf(" --- |");
  std::printf("\n");
  for (int i = static_cast<int>(selected_isa()); i >= 0; i--) {
    const Isa isa = static_cast<Isa>(i);
    for (const Shape& shape : shapes) {
      std::printf("| %s | %.2f | %s %dx%d |", isa_name(isa), exp2_cycles(isa), shape.place,
                  static_cast<int>(shape.rows), static_cast<int>(shape.columns));
      for (const bool balanced : {false, true})
        for (const DType dtype : {DType::Float32, DType::BFloat16})
          std::printf(" %.2f |", distillation_cycles(isa, dtype, shape, balanced));
      for (const DType dtype : {DType::Float32, DType::BFloat16})
        std::printf(" %.2f |", cross_entropy_cycles(isa, dtype, shape));
      for (const DType dtype : {DType::Float32, DType::BFloat16})
        std::printf(" %.2f |", collaborative_kd_cycles(isa, dtype, shape));
      std::printf(" %.2f |\n", triad_cycles(shape));
      std::fflush(stdout);
    }
  }
  return 0;
}
