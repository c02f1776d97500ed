// The CPU kernels of every instruction set this processor has: exact buffers, so that a sanitizer
// sees a read or write beside a row, and the same results as the narrowest one. Values against the
// definition are checked in Python.
#include <algorithm>
#include <cmath>

#include "ops/adjusted_cross_entropy/adjusted_cross_entropy_cpu.h"
#include "ops/distillation/distillation_cpu.h"
#include "ops/experts/experts_cpu.h"
#include "ops/info_nce/info_nce_cpu.h"
#include "ops/knowledge_balance_weight/knowledge_balance_weight_cpu.h"
#include "ops/route_experts/route_experts_cpu.h"
#include "ops/routing/routing_cpu.h"
#include "ops/scale_gradient/scale_gradient_cpu.h"
#include "ops/subset_distillation/subset_distillation_cpu.h"
#include "ops/subset_distillation/subset_plan.h"
#include "ops/topz_gate/topz_gate_cpu.h"
#include "tests/check.h"

namespace {

using namespace ltk;
using check::Matrix;

constexpr int64_t kColumns[] = {1, 2, 15, 16, 17, 31, 33, 100, 1000, 1024, 1025, 2049, 5000};

// f(Isa) for the instruction sets up to the widest one that runs here.
template <class F>
void for_each_isa(F f) {
  for (int i = 0; i <= static_cast<int>(selected_isa()); i++) f(static_cast<Isa>(i));
}

template <class Acc>
std::vector<Acc> uniform(int64_t size, double low, double high) {
  static std::mt19937 random(7);
  std::uniform_real_distribution<double> value(low, high);
  std::vector<Acc> x(size);
  for (Acc& v : x) v = static_cast<Acc>(value(random));
  return x;
}

// 64-byte aligned scratch of exactly the size that the kernel asks for, full of NaN.
template <class Acc>
class Scratch {
 public:
  explicit Scratch(int64_t size) : memory_(size * sizeof(Acc) + 64) {
    std::memset(memory_.data(), 0xff, memory_.size());
  }
  Acc* data() {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    return reinterpret_cast<Acc*>((address + 63) / 64 * 64);
  }

 private:
  std::vector<unsigned char> memory_;
};

// Against what the narrowest instruction set gave: two orders of summation, one formula.
template <class Storage>
void same(const Matrix<Storage>& got, const Matrix<Storage>& want, double size, const char* what) {
  const double tolerance = size * (2 * check::kRounding<Storage> + 4 * check::kArithmetic<Storage>);
  for (int64_t n = 0; n < want.rows(); n++)
    for (int64_t c = 0; c < want.columns(); c++)
      check::close(got(n, c), want(n, c), tolerance, what);
}

enum Feature { kPlain, kColumnTemperature, kHard, kMixup, kSoft, kTeacherGradient };

template <class Storage>
void distillation(int64_t columns, Feature feature) {
  using Acc = Accumulate<Storage>;
  const int64_t rows = 2;
  check::context = std::string(check::kTypeName<Storage>) + " C = " + std::to_string(columns) +
                   " feature " + std::to_string(feature);
  std::mt19937 random(3);
  Matrix<Storage> student(rows, columns), teacher(rows, columns);
  check::fill_normal(student, random, 3);
  check::fill_normal(teacher, random, 3);
  const std::vector<Acc> weight = uniform<Acc>(columns, 0.1, 2);
  const std::vector<Acc> temperature = uniform<Acc>(columns, 0.5, 2);
  const std::vector<Acc> soft = uniform<Acc>(rows * columns, 0, 1);
  std::vector<Acc> log_weight(columns), inverse(columns);
  for (int64_t i = 0; i < columns; i++) {
    log_weight[i] = std::log(weight[i]);
    inverse[i] = 1 / temperature[i];
  }
  const std::vector<int64_t> target{0, columns - 1}, target_b{columns / 2, 0};

  Matrix<Storage> grad(rows, columns), teacher_grad(rows, columns), first(rows, columns);
  Matrix<Acc> row_loss(rows, 1), grad_scale(rows, 1), first_loss(rows, 1);
  DistillationParams<Acc> p{};
  p.rows = rows;
  p.columns = columns;
  p.student = student.data();
  p.student_stride = columns;
  p.teacher = teacher.data();
  p.teacher_stride = columns;
  p.temperature = feature == kMixup ? Acc(2) : Acc(1.5);
  p.kl_factor = 1;
  p.reduction_factor = 1;
  p.row_loss = row_loss.data();
  p.student_grad = grad.data();
  DistillationTables<Acc> tables{nullptr, nullptr, 0};
  if (feature == kColumnTemperature) {
    p.column_temperature = temperature.data();
    tables.inverse_temperature = inverse.data();
    tables.largest_inverse_temperature = 2;
  }
  if (feature == kHard || feature == kMixup || feature == kColumnTemperature) {
    p.target = target.data();
    p.class_weight = weight.data();
    tables.log_class_weight = log_weight.data();
  }
  if (feature == kMixup) {
    p.target_b = target_b.data();
    p.lam = Acc(0.3);
  }
  if (feature == kSoft) {
    p.soft_target = soft.data();
    p.soft_target_stride = columns;
  }
  if (feature == kTeacherGradient) p.teacher_grad = teacher_grad.data();
  if (std::is_same_v<Storage, Half>) p.grad_scale = grad_scale.data();
  for_each_isa([&](Isa isa) {
    grad.poison();
    row_loss.poison();
    auto run = [&](auto scratch_size, auto kernel) {
      Scratch<Acc> scratch(scratch_size(p));
      kernel(p, tables, check::kDType<Storage>, 0, rows, scratch.data());
    };
    switch (isa) {
#define LTK_CASE(name) \
  case Isa::name: run(name::distillation_scratch<Acc>, name::distillation_rows<Acc>); break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
    const double size = p.grad_scale ? std::pow(2.0, 13) : static_cast<double>(columns);
    if (isa == Isa::baseline) {
      std::memcpy(first.data(), grad.data(), rows * columns * sizeof(Storage));
      std::memcpy(first_loss.data(), row_loss.data(), rows * sizeof(Acc));
    }
    same(grad, first, size, "gradient");
    same(row_loss, first_loss, columns * 10.0, "loss");
  });
}

template <class Storage>
void adjusted_cross_entropy(int64_t columns, bool adjusted, double smoothing) {
  using Acc = Accumulate<Storage>;
  const int64_t rows = 2;
  check::context = std::string(check::kTypeName<Storage>) + " C = " + std::to_string(columns);
  std::mt19937 random(5);
  Matrix<Storage> logits(rows, columns);
  check::fill_normal(logits, random, 3);
  const std::vector<Acc> margin = uniform<Acc>(columns, 0, 1), bias = uniform<Acc>(columns, -2, 2);
  const std::vector<Acc> weight = uniform<Acc>(columns, 0.1, 2);
  const std::vector<int64_t> target{columns - 1, -100};
  Matrix<Storage> grad(rows, columns), first(rows, columns);
  Matrix<Acc> row_loss(rows, 1), grad_scale(rows, 1);
  AdjustedCrossEntropyParams<Acc> p{};
  p.rows = rows;
  p.columns = columns;
  p.logits = logits.data();
  p.logits_stride = columns;
  p.target = target.data();
  p.scale = adjusted ? Acc(2) : Acc(1);
  p.margin = adjusted ? margin.data() : nullptr;
  p.bias = adjusted ? bias.data() : nullptr;
  p.class_weight = adjusted ? weight.data() : nullptr;
  p.label_smoothing = static_cast<Acc>(smoothing);
  p.focal_gamma = adjusted ? Acc(1.5) : Acc(0);
  p.ignore_index = -100;
  p.row_loss = row_loss.data();
  p.grad = grad.data();
  if (std::is_same_v<Storage, Half>) p.grad_scale = grad_scale.data();
  for_each_isa([&](Isa isa) {
    grad.poison();
    auto run = [&](auto scratch_size, auto kernel) {
      Scratch<Acc> scratch(scratch_size(p));
      kernel(p, Acc(1), check::kDType<Storage>, 0, rows, scratch.data());
    };
    switch (isa) {
#define LTK_CASE(name)                                                                      \
  case Isa::name:                                                                           \
    run(name::adjusted_cross_entropy_scratch<Acc>, name::adjusted_cross_entropy_rows<Acc>); \
    break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
    if (isa == Isa::baseline)
      std::memcpy(first.data(), grad.data(), rows * columns * sizeof(Storage));
    same(grad, first, p.grad_scale ? std::pow(2.0, 13) : static_cast<double>(columns), "gradient");
    check::that(row_loss(1, 0) == 0, "an ignored row has a loss");
  });
}

enum Layout { kSorted, kScattered, kMixed, kOverlapping, kPartial };

std::vector<std::vector<int64_t>> subsets_of(int64_t columns, Layout layout) {
  std::vector<int64_t> order(columns);
  for (int64_t c = 0; c < columns; c++) order[c] = c;
  std::mt19937 random(11);
  if (layout == kScattered || layout == kPartial) std::shuffle(order.begin(), order.end(), random);
  if (layout == kMixed && columns > 8)
    std::shuffle(order.begin() + columns / 2, order.end(), random);
  const auto part = [&](int64_t begin, int64_t end) {
    return std::vector<int64_t>(order.begin() + begin, order.begin() + std::max(begin + 1, end));
  };
  if (layout == kOverlapping)
    return {part(0, columns), part(columns / 3, columns), part(columns - 1, columns)};
  if (layout == kPartial) return {part(0, columns / 3)};
  if (columns < 3) return {part(0, columns)};
  return {part(0, columns / 3), part(columns / 3, columns - 1), part(columns - 1, columns)};
}

template <class Storage>
void subset_distillation(int64_t columns, Layout layout, bool column_temperature) {
  using Acc = Accumulate<Storage>;
  const int64_t rows = 3;
  check::context = std::string(check::kTypeName<Storage>) + " C = " + std::to_string(columns) +
                   " layout " + std::to_string(layout);
  std::mt19937 random(3);
  const auto subsets = subsets_of(columns, layout);
  const std::vector<Acc> temperature = uniform<Acc>(columns, 0.5, 2);
  SubsetDistillationParams<Acc> p{};
  Matrix<Storage> student(rows, columns), grad(rows, columns), first(rows, columns);
  check::fill_normal(student, random, 3);
  std::vector<Matrix<Storage>> teachers;
  for (size_t l = 0; l < subsets.size(); l++) {
    const int64_t size = static_cast<int64_t>(subsets[l].size());
    teachers.emplace_back(rows, size);
    check::fill_normal(teachers[l], random, 3);
    p.teacher[l] = teachers[l].data();
    p.teacher_stride[l] = size;
    p.classes[l] = subsets[l].data();
    p.offset[l + 1] = p.offset[l] + size;
    p.kl_factor[l] = static_cast<Acc>(l + 1);
  }
  Matrix<Storage> teacher_grad(1, rows * p.offset[subsets.size()]);
  Matrix<Storage> first_teacher_grad(1, rows * p.offset[subsets.size()]);
  Matrix<Acc> row_loss(rows, 1), first_loss(rows, 1);
  Matrix<Acc> grad_scale(1 + static_cast<int64_t>(subsets.size()), rows);
  p.rows = rows;
  p.columns = columns;
  p.subsets = static_cast<int>(subsets.size());
  p.student = student.data();
  p.student_stride = columns;
  p.temperature = Acc(1.5);
  p.column_temperature = column_temperature ? temperature.data() : nullptr;
  p.reduction_factor = 1;
  p.row_loss = row_loss.data();
  p.student_grad = grad.data();
  p.teacher_grad = column_temperature ? teacher_grad.data() : nullptr;
  if (std::is_same_v<Storage, Half>) p.grad_scale = grad_scale.data();
  const SubsetPlanner<Acc> planner(p);
  check::that(planner.valid(), "good classes are refused");
  for_each_isa([&](Isa isa) {
    grad.poison();
    teacher_grad.poison();
    row_loss.poison();
    auto run = [&](auto scratch_size, auto kernel) {
      Scratch<Acc> scratch(scratch_size(p, planner.plan()));
      kernel(p, planner.plan(), check::kDType<Storage>, 0, rows, scratch.data());
    };
    switch (isa) {
#define LTK_CASE(name)                                                                \
  case Isa::name:                                                                     \
    run(name::subset_distillation_scratch<Acc>, name::subset_distillation_rows<Acc>); \
    break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
    if (isa == Isa::baseline) {
      std::memcpy(first.data(), grad.data(), rows * columns * sizeof(Storage));
      std::memcpy(first_loss.data(), row_loss.data(), rows * sizeof(Acc));
      std::memcpy(first_teacher_grad.data(), teacher_grad.data(), teacher_grad.bytes().size());
    }
    const double size = p.grad_scale ? std::pow(2.0, 14) : 40.0;
    same(grad, first, size, "gradient");
    same(row_loss, first_loss, 1000.0, "loss");
    if (p.teacher_grad != nullptr) same(teacher_grad, first_teacher_grad, size, "teacher's");
  });
}

void bad_classes() {
  check::context = "bad classes";
  for (const std::vector<int64_t>& bad :
       {std::vector<int64_t>{0, 5}, {0, -1}, {3, 3}, {int64_t{1} << 32, 1}}) {
    SubsetDistillationParams<float> p{};
    p.columns = 5;
    p.subsets = 1;
    p.classes[0] = bad.data();
    p.offset[1] = 2;
    check::that(!SubsetPlanner<float>(p).valid(), "bad classes are accepted");
  }
}

enum ExpertsFeature { kRide, kByColumn, kOwn, kOfMean, kPairwise, kWeighted, kHoles, kMargin };

template <class Storage>
void experts(int64_t columns, ExpertsFeature feature) {
  using Acc = Accumulate<Storage>;
  const int64_t rows = 2, count = feature == kWeighted ? 5 : 3;
  check::context = std::string(check::kTypeName<Storage>) +
                   " experts, C = " + std::to_string(columns) + " feature " +
                   std::to_string(feature);
  std::mt19937 random(9);
  std::vector<Matrix<Storage>> logits;
  ExpertsParams<Acc> p{};
  for (int64_t k = 0; k < count; k++) {
    logits.emplace_back(rows, columns);
    check::fill_normal(logits[k], random, 3);
    p.logits[k] = logits[k].data();
    p.logits_stride[k] = columns;
  }
  if (feature == kHoles && columns > 2)  // of one in the first row, of all in the second
    for (int64_t k = 0; k < count; k++) {
      if (k == 1) logits[k].set(0, columns / 2, -std::numeric_limits<double>::infinity());
      logits[k].set(1, columns / 3, -std::numeric_limits<double>::infinity());
    }
  const std::vector<Acc> temperature = uniform<Acc>(columns, 0.5, 2);
  const std::vector<Acc> margin = uniform<Acc>(columns, 0, 1), far(columns, Acc(300));
  const std::vector<Acc> weight = uniform<Acc>(count * rows, 0, 1);
  std::vector<Acc> inverse(columns + 16);
  for (int64_t c = 0; c < columns; c++) inverse[c] = 1 / temperature[c];
  const std::vector<int64_t> target{0, columns - 1};

  Matrix<Storage> grad(count * rows, columns), first(count * rows, columns);
  Matrix<Acc> row_loss(rows, 1), first_loss(rows, 1), grad_scale(count * rows, 1);
  ExpertsTables<Acc> tables{nullptr, 0};
  p.rows = rows;
  p.columns = columns;
  p.experts = static_cast<int>(count);
  p.cross_entropy = feature == kOfMean     ? ExpertCrossEntropy::OfMean
                    : feature == kWeighted ? ExpertCrossEntropy::None
                                           : ExpertCrossEntropy::Each;
  p.target = feature == kWeighted ? nullptr : target.data();
  p.margin = feature == kMargin ? far.data() : margin.data();
  p.ce_factor = p.ce_reduction = p.kl_reduction = 1;
  p.divergence = feature == kPairwise || feature == kWeighted || feature == kHoles
                     ? ExpertDivergence::Pairwise
                     : ExpertDivergence::Mean;
  p.temperature = feature == kRide ? Acc(2) : feature == kOwn ? Acc(1.5) : Acc(1);
  if (feature == kByColumn) {
    p.column_temperature = temperature.data();
    tables = {inverse.data(), 2};
  }
  p.kl_factor = Acc(-0.45);
  p.sample_weight = feature == kWeighted ? weight.data() : nullptr;
  p.weight_of_second = p.first_gradient = p.second_gradient = true;
  p.row_loss = row_loss.data();
  p.grad = grad.data();
  if (std::is_same_v<Storage, Half>) p.grad_scale = grad_scale.data();
  for_each_isa([&](Isa isa) {
    grad.poison();
    row_loss.poison();
    auto run = [&](auto scratch_size, auto kernel) {
      Scratch<Acc> scratch(scratch_size(p));
      kernel(p, tables, check::kDType<Storage>, 0, rows, scratch.data());
    };
    switch (isa) {
#define LTK_CASE(name) \
  case Isa::name: run(name::experts_scratch<Acc>, name::experts_rows<Acc>); break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
    const double size = p.grad_scale ? std::pow(2.0, 13) : static_cast<double>(columns);
    if (isa == Isa::baseline) {
      std::memcpy(first.data(), grad.data(), count * rows * columns * sizeof(Storage));
      std::memcpy(first_loss.data(), row_loss.data(), rows * sizeof(Acc));
    }
    same(grad, first, size, "gradient");
    same(row_loss, first_loss, columns * 10.0 + 1000, "loss");
  });
}

template <class Storage>
void info_nce(int64_t columns, int64_t queue_rows, bool transposed, int64_t parts) {
  using Acc = Accumulate<Storage>;
  const int64_t rows = 19;
  check::context = std::string(check::kTypeName<Storage>) + " D = " + std::to_string(columns) +
                   " Q = " + std::to_string(queue_rows);
  std::mt19937 random(9);
  Matrix<Storage> query(rows, columns, columns + 1), key(rows, columns);
  Matrix<Storage> queue(transposed ? columns : queue_rows, transposed ? queue_rows : columns);
  for (Matrix<Storage>* m : {&query, &key, &queue})
    check::fill_normal(*m, random, 1 / std::sqrt(double(columns)));
  Matrix<Storage> grad(rows, columns), first(rows, columns);
  Matrix<Acc> row_loss(rows, 1), grad_scale(rows, 1), first_loss(rows, 1);
  InfoNceParams<Acc> p{};
  p.rows = rows;
  p.columns = columns;
  p.queue_rows = queue_rows;
  p.query = {query.data(), check::kDType<Storage>, columns + 1, 1};
  p.key = {key.data(), check::kDType<Storage>, columns, 1};
  p.queue = {queue.data(), check::kDType<Storage>, transposed ? 1 : columns,
             transposed ? queue_rows : 1};
  p.temperature = Acc(0.5);
  p.factor = 1;
  cut_queue(p, parts);
  p.row_loss = row_loss.data();
  p.grad = grad.data();
  if (std::is_same_v<Storage, Half>) p.grad_scale = grad_scale.data();
  for_each_isa([&](Isa isa) {
    grad.poison();
    row_loss.poison();
    switch (isa) {
#define LTK_CASE(name)                                          \
  case Isa::name: {                                             \
    const int64_t tile = name::info_nce_tile<Acc>();            \
    const int64_t tiles = (rows + tile - 1) / tile;             \
    Scratch<Acc> workspace(name::info_nce_workspace(p));        \
    p.workspace = workspace.data();                             \
    name::info_nce_pack(p, 0, tiles);                           \
    for (int64_t task = 0; task < tiles * p.parts; task += 3) { \
      Scratch<Acc> scratch(name::info_nce_scratch(p));          \
      const int64_t end = std::min(task + 3, tiles * p.parts);  \
      name::info_nce_tasks(p, task, end, scratch.data());       \
    }                                                           \
    Scratch<Acc> scratch(name::info_nce_scratch(p));            \
    name::info_nce_finish(p, 0, tiles, scratch.data());         \
    break;                                                      \
  }
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
    if (isa == Isa::baseline) {
      std::memcpy(first.data(), grad.data(), rows * columns * sizeof(Storage));
      std::memcpy(first_loss.data(), row_loss.data(), rows * sizeof(Acc));
    }
    same(grad, first, p.grad_scale ? std::pow(2.0, 13) : 4.0, "gradient");
    same(row_loss, first_loss, 10, "loss");
  });
}

template <class Storage>
void knowledge_balance_weight(int64_t columns) {
  using Acc = Accumulate<Storage>;
  const int64_t rows = 2;
  check::context = std::string(check::kTypeName<Storage>) + " C = " + std::to_string(columns);
  std::mt19937 random(4);
  Matrix<Storage> ref(rows, columns), cls(rows, columns);
  check::fill_normal(ref, random, 3);
  check::fill_normal(cls, random, 3);
  const std::vector<int64_t> target{0, columns - 1};
  Matrix<Acc> weight(rows, 1), first(rows, 1);
  KnowledgeBalanceWeightParams<Acc> p{};
  p.rows = rows;
  p.columns = columns;
  p.ref_logits = ref.data();
  p.ref_stride = columns;
  p.cls_logits = cls.data();
  p.cls_stride = columns;
  p.target = target.data();
  p.eps = Acc(0.1);
  p.smallest_variance = Acc(0.01);
  p.weight = weight.data();
  for_each_isa([&](Isa isa) {
    weight.poison();
    auto run = [&](auto scratch_size, auto kernel) {
      Scratch<Acc> scratch(scratch_size(p));
      kernel(p, check::kDType<Storage>, 0, rows, scratch.data());
    };
    switch (isa) {
#define LTK_CASE(name)                                                                          \
  case Isa::name:                                                                               \
    run(name::knowledge_balance_weight_scratch<Acc>, name::knowledge_balance_weight_rows<Acc>); \
    break;
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
    if (isa == Isa::baseline) std::memcpy(first.data(), weight.data(), rows * sizeof(Acc));
    same(weight, first, 100, "weight");
  });
}

// The router's kernels: gates and labels the same on every instruction set, and as route_experts
// sees them.
template <class Storage>
void router(int64_t columns, int64_t z) {
  using Acc = Accumulate<Storage>;
  const int64_t rows = 5, width = 19, hidden = 5, padded = padded_units(hidden);
  check::context = std::string(check::kTypeName<Storage>) + " C = " + std::to_string(columns) +
                   " z = " + std::to_string(z);
  std::mt19937 random(11);
  Matrix<Storage> logits(rows, columns), feature(rows, width);
  Matrix<Acc> w1(hidden, width), w1_transposed(width, padded), b1(1, hidden), w2(1, z + hidden);
  Matrix<Acc> b2(1, 1), upstream(1, rows);
  check::fill_normal(logits, random, 3);
  check::fill_normal(feature, random, 1);
  for (Matrix<Acc>* x : {&w1, &b1, &w2, &b2, &upstream}) check::fill_normal(*x, random, 1);
  for (int64_t d = 0; d < width; d++)
    for (int64_t j = 0; j < padded; j++) w1_transposed.set(d, j, j < hidden ? w1(j, d) : 0);
  Matrix<Acc> gate(1, rows), top(rows, z), units(rows, hidden), inverse_norm(1, rows);
  std::vector<int32_t> index(rows * z);
  TopzGateParams<Acc> p{rows,
                        columns,
                        width,
                        hidden,
                        z,
                        logits.data(),
                        columns,
                        feature.data(),
                        width,
                        check::kDType<Storage>,
                        w1.data(),
                        b1.data(),
                        w2.data(),
                        b2.data(),
                        gate.data(),
                        top.data(),
                        index.data(),
                        units.data(),
                        inverse_norm.data()};
  Matrix<Storage> d_logits(rows, columns), d_feature(rows, width);
  Matrix<Acc> d_w1(hidden, width), d_b1(1, hidden), d_w2(1, z + hidden), d_b2(1, 1);
  TopzGateGradientParams<Acc> g{rows,
                                columns,
                                width,
                                hidden,
                                z,
                                upstream.data(),
                                feature.data(),
                                width,
                                check::kDType<Storage>,
                                w1.data(),
                                w2.data(),
                                top.data(),
                                index.data(),
                                units.data(),
                                inverse_norm.data(),
                                d_logits.data(),
                                d_feature.data(),
                                d_w1.data(),
                                d_b1.data(),
                                d_w2.data(),
                                d_b2.data()};
  Matrix<Acc> mean(rows, columns), first_gate(1, rows), first_d_w1(hidden, width);
  std::vector<int64_t> used(rows), target(rows, columns - 1);
  RouteExpertsParams<Acc> route{};
  route.rows = rows;
  route.columns = columns;
  route.width = width;
  route.hidden = hidden;
  route.z = z;
  route.experts = 2;
  route.feature[0] = feature.data();
  route.feature_stride[0] = width;
  route.feature_dtype = check::kDType<Storage>;
  route.b1 = b1.data();
  route.w2 = w2.data();
  route.b2 = b2.data();
  route.mean = mean.data();
  route.used = used.data();
  const std::unique_ptr<bool[]> needs_help(new bool[rows]);
  RoutingTargetParams labels{};
  labels.rows = rows;
  labels.columns = columns;
  labels.experts = 2;
  labels.target = target.data();
  labels.needs_help = needs_help.get();
  for (int k = 0; k < 2; k++) {
    labels.logits[k] = route.logits[k] = logits.data();
    labels.logits_stride[k] = route.logits_stride[k] = columns;
  }
  const DType dtype = check::kDType<Storage>;
  for_each_isa([&](Isa isa) {
    for (Matrix<Acc>* x : {&gate, &d_w1, &mean}) x->poison();
    for (Matrix<Storage>* x : {&d_logits, &d_feature}) x->poison();
    switch (isa) {
#define LTK_CASE(name)                                                                      \
  case Isa::name: {                                                                         \
    Scratch<Acc> scratch(name::topz_gate_scratch(p)), of_row(width + hidden);               \
    name::topz_gate_rows(p, w1_transposed.data(), dtype, 0, rows, scratch.data());          \
    name::topz_gate_gradient_rows(g, dtype, 0, rows, of_row.data());                        \
    std::vector<Acc> slope(rows * hidden);                                                  \
    name::topz_gate_gradient_sums(g, slope.data());                                         \
    name::topz_gate_gradient_columns(g, slope.data(), 0, width);                            \
    Scratch<Acc> of_route(name::route_experts_scratch(route));                              \
    name::route_experts_rows(route, w1_transposed.data(), dtype, 0, rows, of_route.data()); \
    name::routing_target_rows(labels, dtype, 0, rows);                                      \
    break;                                                                                  \
  }
      LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
    }
    if (isa == Isa::baseline) {
      std::memcpy(first_gate.data(), gate.data(), rows * sizeof(Acc));
      std::memcpy(first_d_w1.data(), d_w1.data(), hidden * width * sizeof(Acc));
    }
    same(gate, first_gate, 10.0 * (z + hidden), "gate");
    same(d_w1, first_d_w1, 10.0 * rows, "d_w1");
    for (int64_t n = 0; n < rows; n++) {
      check::that(used[n] == (gate(0, n) > 0 ? 2 : 1), "the number of experts");
      check::that(!needs_help[n], "equal experts help each other");
      for (int64_t c = 0; c < columns; c++) check::close(mean(n, c), logits(n, c), 0, "the mean");
      for (int64_t k = 0; k < z; k++)
        check::close(top(n, k), logits(n, index[n * z + k]), 0, "the top");
    }
  });
}

template <class Storage>
void every_kernel() {
  for (int64_t columns : {1, 7, 64, 65, 131}) {
    for (int64_t queue_rows : {0, 1, 63, 64, 65, 200}) {
      info_nce<Storage>(columns, queue_rows, false, 1);
      info_nce<Storage>(columns, queue_rows, true, 3);
    }
  }
  for (int64_t columns : kColumns) {
    knowledge_balance_weight<Storage>(columns);
    for (int64_t z : {int64_t{1}, (columns + 3) / 4, columns}) router<Storage>(columns, z);
    for (int feature = kPlain; feature <= kTeacherGradient; feature++)
      distillation<Storage>(columns, static_cast<Feature>(feature));
    for (int layout = kSorted; layout <= kPartial; layout++)
      for (bool column_temperature : {false, true})
        subset_distillation<Storage>(columns, static_cast<Layout>(layout), column_temperature);
    for (int feature = kRide; feature <= kMargin; feature++)
      experts<Storage>(columns, static_cast<ExpertsFeature>(feature));
    for (bool adjusted : {false, true})
      for (double smoothing : {0.0, 0.1})
        adjusted_cross_entropy<Storage>(columns, adjusted, smoothing);
  }
}

}  // namespace

int main() {
  std::printf("instruction sets up to %s\n", isa_name(selected_isa()));
  check::test("float32", every_kernel<float>);
  check::test("float64", every_kernel<double>);
  check::test("float16", every_kernel<Half>);
  check::test("bfloat16", every_kernel<BFloat16>);
  check::test("classes out of range or twice", bad_classes);
  return check::finish();
}
