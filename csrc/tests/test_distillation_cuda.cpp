// The CUDA kernels of distillation, run on the CPU in three thread orders against the definition in
// double precision: every kernel, storage type and feature. The host entry is the one that ships.
#include <sys/mman.h>

#include "ops/distillation/distillation_cuda.cu"
#include "tests/check.h"

namespace {

using namespace ltk;
using check::Matrix;

enum class Ce { None, Hard, Mixup, RowMixup, Soft };

struct Features {
  const char* name;
  double temperature = 2;
  bool row_temperature = false, column_temperature = false;
  bool class_weight = false;
  int row_factor = 0;  // 1: [N], 2: [1] with stride 0
  Ce ce = Ce::None;
  bool student_grad = true, teacher_grad = false, reduced = true;
};

// How the matrices lie: extra values between rows, values before the first one.
struct Layout {
  int64_t student_gap = 0, teacher_gap = 0, student_offset = 0, teacher_offset = 0,
          gradient_offset = 0;
};

enum class Logits { Normal, Huge, Holes };

template <class Storage>
struct Problem {
  using Acc = Accumulate<Storage>;

  Features features;
  int64_t rows, columns;
  Matrix<Storage> student, teacher, student_grad, teacher_grad;
  Matrix<Acc> soft_target, row_loss, grad_scale;
  std::vector<int64_t> target, target_b;
  std::vector<Acc> row_temperature, column_temperature, class_weight, row_factor, row_lam;
  Acc loss = 0;
  unsigned counter = 77;  // whatever was there

  Problem(const Features& f, int64_t rows, int64_t columns, const Layout& layout, Logits kind)
      : features(f),
        rows(rows),
        columns(columns),
        student(rows, columns, columns + layout.student_gap, layout.student_offset),
        teacher(rows, columns, columns + layout.teacher_gap, layout.teacher_offset),
        student_grad(rows, columns, 0, layout.gradient_offset),
        teacher_grad(rows, columns, 0, layout.gradient_offset),
        soft_target(rows, columns, columns + layout.student_gap),
        row_loss(rows, 1),
        grad_scale(rows, 1) {
    std::mt19937 random(static_cast<unsigned>(columns * 7 + rows));
    const double scale = kind == Logits::Huge ? 1e4 : 3;
    check::fill_normal(student, random, scale);
    check::fill_normal(teacher, random, scale);
    std::uniform_real_distribution<double> uniform(0, 1);
    const auto vector = [&](int64_t size, double low, double high) {
      std::vector<Acc> values(static_cast<size_t>(size));
      for (Acc& value : values) value = static_cast<Acc>(low + (high - low) * uniform(random));
      return values;
    };
    row_temperature = vector(rows, 1, 5);
    column_temperature = vector(columns, 0.5, 4);
    class_weight = vector(columns, 0.1, 3);
    if (columns > 1) class_weight[static_cast<size_t>(columns) / 2] = 0;
    row_factor = vector(f.row_factor == 2 ? 1 : rows, 0, 2);
    row_lam = vector(rows, 0, 1);
    for (int64_t n = 0; n < rows; ++n) {
      target.push_back(static_cast<int64_t>(uniform(random) * double(columns)));
      target_b.push_back(n == 0 ? target[0]
                                : static_cast<int64_t>(uniform(random) * double(columns)));
      double sum = 0;
      for (int64_t c = 0; c < columns; ++c) sum += soft_target.at(n, c) = Acc(uniform(random));
      for (int64_t c = 0; c < columns; ++c) soft_target.at(n, c) /= Acc(sum);
    }
    if (kind == Logits::Holes) dig_holes();
  }

  // Row by row, as far as there are rows: -inf in the teacher, in both, in the student alone (KL is
  // infinite), at a target, everywhere; NaN on either side.
  void dig_holes() {
    const double inf = std::numeric_limits<double>::infinity();
    for (int64_t j = 0; j < columns; j += 3) {
      if (rows > 0) teacher.set(0, j, -inf);
      if (rows > 1) teacher.set(1, j, -inf), student.set(1, j, -inf);
    }
    if (rows > 2) student.set(2, columns / 3, -inf), teacher.set(2, columns / 3, 9);
    if (rows > 3) student.set(3, target[3], -inf);
    for (int64_t c = 0; c < columns && rows > 4; ++c) student.set(4, c, -inf);
    for (int64_t j = 0; j < columns && rows > 5; ++j) teacher.set(5, j, -inf);
    if (rows > 6) student.set(6, columns - 1, std::nan(""));
    if (rows > 7) teacher.set(7, columns - 1, std::nan(""));
    // The student's -inf meets a teacher's probability that turns out to be 0 only later.
    for (int64_t j = 0; j < std::min<int64_t>(8, columns - 1) && rows > 8; ++j) {
      teacher.set(8, j, -60000);
      student.set(8, j, -inf);
    }
  }

  DistillationParams<Acc> params() {
    const bool hard =
        features.ce == Ce::Hard || features.ce == Ce::Mixup || features.ce == Ce::RowMixup;
    DistillationParams<Acc> p{};
    p.rows = rows;
    p.columns = columns;
    p.student = student.data();
    p.student_stride = student.stride();
    p.teacher = teacher.data();
    p.teacher_stride = teacher.stride();
    p.temperature = Acc(features.temperature);
    p.row_temperature = features.row_temperature ? row_temperature.data() : nullptr;
    p.column_temperature = features.column_temperature ? column_temperature.data() : nullptr;
    p.class_weight = features.class_weight ? class_weight.data() : nullptr;
    p.kl_factor = Acc(0.7 * features.temperature * features.temperature);
    p.row_factor = features.row_factor ? row_factor.data() : nullptr;
    p.row_factor_stride = features.row_factor == 1;
    p.target = hard ? target.data() : nullptr;
    p.target_b = hard && features.ce != Ce::Hard ? target_b.data() : nullptr;
    p.lam = Acc(0.3);
    p.row_lam = features.ce == Ce::RowMixup ? row_lam.data() : nullptr;
    p.soft_target = features.ce == Ce::Soft ? soft_target.data() : nullptr;
    p.soft_target_stride = soft_target.stride();
    p.reduction_factor = features.reduced && rows ? Acc(1) / Acc(rows) : Acc(1);
    p.row_loss = row_loss.data();
    p.loss = features.reduced ? &loss : nullptr;
    p.student_grad = features.student_grad ? student_grad.data() : nullptr;
    p.teacher_grad = features.teacher_grad ? teacher_grad.data() : nullptr;
    p.grad_scale = std::is_same_v<Storage, Half> ? grad_scale.data() : nullptr;
    return p;
  }

  const char* run() {
    student_grad.poison();
    teacher_grad.poison();
    row_loss.poison();
    grad_scale.poison();
    loss = -1;
    return distillation_cuda(params(), check::kDType<Storage>, CudaLaunch{nullptr, 0, &counter});
  }
};

// softmax in double, with the largest value taken off.
struct Softmax {
  std::vector<double> value, log;
  explicit Softmax(const std::vector<double>& x) : value(x.size()), log(x.size()) {
    const double inf = std::numeric_limits<double>::infinity();
    double top = -inf, sum = 0;
    for (double v : x) top = v > top ? v : top;
    for (double v : x) sum += top == -inf ? std::nan("") : std::exp(v - top);
    for (size_t i = 0; i < x.size(); ++i) {
      log[i] = x[i] - top - std::log(sum);
      value[i] = std::exp(log[i]);
    }
  }
};

// The definition, row by row, from the header of the op.
template <class Storage>
void compare(Problem<Storage>& problem) {
  using Acc = Accumulate<Storage>;
  const double inf = std::numeric_limits<double>::infinity();
  const DistillationParams<Acc> p = problem.params();
  double total = 0, total_tolerance = 0;
  for (int64_t n = 0; n < p.rows; ++n) {
    const auto temperature = [&](int64_t j) {
      return double(p.column_temperature ? p.column_temperature[j]
                    : p.row_temperature  ? p.row_temperature[n]
                                         : p.temperature);
    };
    std::vector<double> a, b, s;
    double largest = 0, coldest = inf;
    for (int64_t j = 0; j < p.columns; ++j) {
      const double x = problem.student(n, j), t = problem.teacher(n, j);
      a.push_back(x / temperature(j));
      b.push_back(t / temperature(j) + (p.class_weight ? std::log(double(p.class_weight[j])) : 0));
      if (std::isfinite(x)) largest = std::max(largest, std::fabs(x));
      if (std::isfinite(t)) largest = std::max(largest, std::fabs(t));
      coldest = std::min(coldest, temperature(j));
    }
    for (int64_t c = 0; c < p.columns; ++c) s.push_back(problem.student(n, c));
    const Softmax student(a), teacher(b), plain(s);
    double kl = 0;
    for (size_t j = 0; j < a.size(); ++j) {
      if (teacher.value[j] != 0) kl += teacher.value[j] * (teacher.log[j] - student.log[j]);
    }
    double student_nan = 0;  // NaN in a row without a finite logit
    for (double v : student.value) student_nan += 0 * v;
    kl += student_nan;

    std::vector<double> y(s.size(), 0);
    if (p.target) {
      const double lam = !p.target_b ? 1 : double(p.row_lam ? p.row_lam[n] : p.lam);
      y[size_t(p.target[n])] += lam;
      if (p.target_b) y[size_t(p.target_b[n])] += 1 - lam;
    }
    if (p.soft_target) {
      for (size_t c = 0; c < y.size(); ++c)
        y[c] = p.soft_target[n * p.soft_target_stride + int64_t(c)];
    }
    const bool has_ce = p.target || p.soft_target;
    double ce = 0, mass = 0;
    for (size_t c = 0; c < y.size(); ++c) {
      mass += y[c];
      if (y[c] != 0) ce -= y[c] * plain.log[c];
    }
    const double k =
        double(p.kl_factor) * (p.row_factor ? double(p.row_factor[n * p.row_factor_stride]) : 1);
    const double loss = k * kl + (has_ce ? ce : 0);

    // Scaled logits that were rounded to floats have this error; it is also that of plain PyTorch.
    const double rounded =
        check::kRounding<Accumulate<Storage>> *
        (std::is_same_v<Storage, double> || p.class_weight || p.column_temperature ||
                 problem.features.teacher_grad || p.soft_target
             ? 4 * largest / coldest
             : 0);
    const double tolerance = check::kArithmetic<Storage> + rounded;
    const std::string where = " of row " + std::to_string(n);
    const double loss_tolerance = tolerance * (std::fabs(loss) + std::fabs(k) + 1);
    check::close(problem.row_loss(n, 0), loss, loss_tolerance, "the loss" + where);
    total += loss;
    total_tolerance += loss_tolerance;

    const double f = p.reduction_factor;
    double scale = 1;
    if (p.grad_scale) {
      scale = p.grad_scale[n];
      int exponent;
      if (p.student_grad || p.teacher_grad) {
        check::that(scale > 0 && std::frexp(scale, &exponent) == 0.5,
                    "the scale" + where + " is no power of two: " + check::number(scale));
      }
    }
    const auto compare_gradient = [&](double stored, double want, double size, const char* what,
                                      int64_t column) {
      check::close(stored * scale, want,
                   tolerance * size + check::kRounding<Storage> * std::fabs(want) +
                       (p.grad_scale ? scale * 6e-8 : 1e-38),
                   [&] { return what + (" at column " + std::to_string(column)) + where; });
    };
    const double size = f * (std::fabs(k) / coldest + mass);
    if (p.student_grad) {
      std::vector<double> want(s.size(), 0);
      for (size_t j = 0; j < a.size(); ++j) {
        const double q = s[j] == -inf ? 0 : teacher.value[j];
        want[j] = f * k / temperature(int64_t(j)) * (student.value[j] - q) + 0 * teacher.value[j];
      }
      for (size_t c = 0; c < s.size() && has_ce; ++c) {
        want[c] += f * (mass * plain.value[c] - (s[c] == -inf ? 0 : y[c]));
      }
      for (size_t c = 0; c < s.size(); ++c) {
        compare_gradient(problem.student_grad(n, int64_t(c)), want[c], size, "the gradient",
                         int64_t(c));
      }
    }
    if (p.teacher_grad) {
      for (size_t j = 0; j < a.size(); ++j) {
        const double gap = teacher.log[j] - student.log[j] - kl;
        const double slope = f * k / temperature(int64_t(j)) * teacher.value[j];
        const double want = kl == inf ? 0 : teacher.value[j] == 0 ? 0 * kl : slope * gap;
        // q (x + error): the gap itself is a difference of large numbers.
        const double gap_size = std::isfinite(gap) ? 1 + std::fabs(gap) + std::fabs(kl) : 1;
        compare_gradient(problem.teacher_grad(n, int64_t(j)), want,
                         size + std::fabs(slope) * gap_size + std::fabs(want),
                         "the teacher's gradient", int64_t(j));
      }
    }
  }
  if (p.loss) {
    check::close(problem.loss, double(p.reduction_factor) * total,
                 double(p.reduction_factor) * total_tolerance + 1e-12, "the reduced loss");
  }
}

template <class Storage>
void run_and_compare(const Features& features, int64_t rows, int64_t columns,
                     const Layout& layout = {}, Logits kind = Logits::Normal) {
  check::context = std::string(check::kTypeName<Storage>) + " N=" + std::to_string(rows) +
                   " C=" + std::to_string(columns) + " " + features.name;
  Problem<Storage> problem(features, rows, columns, layout, kind);
  std::vector<char> first;
  for (simt::Order order : check::kOrders) {
    simt::settings.order = order;
    const char* error = problem.run();
    if (!check::that(!error, error ? error : "")) return;
    check::that(problem.counter == 0, "the counter is not zero again");
    std::vector<char> bytes = problem.row_loss.bytes();
    for (const auto& part :
         {problem.student_grad.bytes(), problem.teacher_grad.bytes(), problem.grad_scale.bytes()}) {
      bytes.insert(bytes.end(), part.begin(), part.end());
    }
    const char* loss = reinterpret_cast<const char*>(&problem.loss);
    bytes.insert(bytes.end(), loss, loss + sizeof(problem.loss));
    if (order == simt::Order::Forward) {
      first = bytes;
      compare(problem);
    } else {
      check::that(bytes == first,
                  std::string("another result in ") + check::order_name(order) + " order");
    }
  }
}

const Features kFast[] = {
    {"kd"},
    {"kd without gradient", 2, false, false, true, 1, Ce::None, false},
    {"kd, row temperature and factor", 2, true, false, false, 1, Ce::None},
    {"kd, weights, no reduction", 3, false, false, true, 0, Ce::None, true, false, false},
    {"bkd, T=1", 1, false, false, false, 2, Ce::Hard},
    {"bkd, T=2", 2, false, false, true, 0, Ce::Hard},
    {"bkd, T=4, mixup by row", 4, false, false, true, 1, Ce::RowMixup},
    {"bkd, T=3, mixup", 3, false, false, true, 0, Ce::Mixup},
};
const Features kGeneral[] = {
    {"column temperature, teacher gradient", 2, false, true, false, 0, Ce::None, true, true},
    {"column temperature", 2, false, true, true, 1},
    {"teacher gradient alone", 2, true, false, true, 0, Ce::None, false, true},
    {"bkd, soft target", 2, false, false, true, 0, Ce::Soft},
    {"bkd, hard target, both gradients", 3, true, false, true, 1, Ce::Mixup, true, true},
};

// The shapes: each side of every limit between kernels, and rows that start anywhere.
std::vector<int64_t> shapes() {
  if (check::kReduced) return {1, 5, 33, 100, 1025, 6150};
  return {1, 2, 5, 31, 32, 33, 64, 65, 100, 128, 129, 256, 257, 365, 1000, 1024, 1025, 2048, 3001};
}
std::vector<int64_t> large_shapes() {
  if (check::kReduced) return {};
  return {4097, 6144, 6150, 8142, 20000, 32003};
}

template <class Storage>
void every_shape() {
  for (int64_t columns : shapes()) {
    for (const Features& features : kFast) run_and_compare<Storage>(features, 3, columns);
    for (const Features& features : kGeneral) run_and_compare<Storage>(features, 3, columns);
    run_and_compare<Storage>(kFast[5], 1, columns);
  }
  for (int64_t columns : large_shapes()) {
    for (int i : {0, 1, 5, 7}) run_and_compare<Storage>(kFast[i], 2, columns);
    for (int i : {0, 4}) run_and_compare<Storage>(kGeneral[i], 2, columns);
  }
}

template <class Storage>
void other_layouts() {
  const Layout layouts[] = {
      {3, 0, 0, 0, 0},  // a slice beside contiguous tensors
      {0, 5, 0, 2, 0},
      {1, 1, 1, 1, 1},
      {16, 8, 3, 2, 5},
  };
  for (const Layout& layout : layouts) {
    for (int64_t columns : {10, 100, 365, 1030, check::kReduced ? 1500 : 7003}) {
      for (int i : {0, 5, 7}) run_and_compare<Storage>(kFast[i], 3, columns, layout);
      run_and_compare<Storage>(kGeneral[4], 3, columns, layout);
    }
  }
}

// Shared memory of a device decides between `shared` and `stream`.
template <class Storage>
void small_device() {
  simt::settings.shared_memory = 48 * 1024;
  for (int64_t columns : {12301, 20002}) {
    for (const Features& features : kFast) {
      run_and_compare<Storage>(features, 2, columns, {0, 3, 0, 0, 0});
    }
    run_and_compare<Storage>(kFast[5], 9, columns, {}, Logits::Holes);
  }
  simt::settings.shared_memory = 227 * 1024;
}

template <class Storage>
void special_values() {
  for (int64_t columns : {7, 40, 700, check::kReduced ? 1500 : 7000}) {
    for (const Features& features : kFast) {
      run_and_compare<Storage>(features, 9, columns, {}, Logits::Holes);
    }
    for (const Features& features : kGeneral) {
      run_and_compare<Storage>(features, 9, columns, {}, Logits::Holes);
    }
    for (double temperature : {0.05, 100.}) {
      Features kd{"huge logits", temperature}, bkd{"huge logits, bkd", temperature};
      bkd.ce = Ce::Hard;
      run_and_compare<Storage>(kd, 3, columns, {}, Logits::Huge);
      run_and_compare<Storage>(bkd, 3, columns, {}, Logits::Huge);
      bkd.teacher_grad = bkd.class_weight = true;
      run_and_compare<Storage>(bkd, 3, columns, {}, Logits::Huge);
    }
  }
}

void no_rows() {
  Problem<float> problem({"no rows"}, 0, 10, {}, Logits::Normal);
  check::that(!problem.run(), "an error");
  check::close(problem.loss, 0, 0, "the sum of no rows");
}

void bad_targets() {
  for (int64_t bad : {-1, 100}) {
    for (const Features& features : {kFast[4], kGeneral[4]}) {
      Problem<float> problem(features, 3, 100, {}, Logits::Normal);
      problem.target[1] = bad;
      check::fails_with("target out of range", [&] { problem.run(); });
    }
  }
}

void refusals() {
  Problem<float> problem({"refused"}, 2, 10, {}, Logits::Normal);
  const CudaLaunch where{nullptr, 0, &problem.counter};
  check::that(distillation_cuda(problem.params(), DType::Float64, where) != nullptr,
              "float64 with float parameters");
  DistillationParams<float> wide = problem.params();
  wide.columns = (int64_t{1} << 30) + 1;
  check::that(distillation_cuda(wide, DType::Float32, where) != nullptr, "too many columns");
}

// Many rows: blocks loop over rows, the last block sums them all.
void many_rows() {
  for (int64_t columns : {10, 100}) run_and_compare<float>(kFast[5], 2000, columns);
  run_and_compare<BFloat16>(kFast[7], 300, 1500);
  simt::settings.multiprocessors = 1;  // blocks of 512 threads loop, too
  for (int64_t columns : {8201, 33333}) {
    run_and_compare<float>(kFast[5], 9, columns);
    run_and_compare<BFloat16>(kFast[7], 9, columns, {0, 3, 0, 0, 0});
  }
  run_and_compare<Half>(kGeneral[4], 9, 4500);
  simt::settings.multiprocessors = 4;
}

// Rows 2^31 + 5 values apart: memory that is reserved but hardly touched.
void rows_far_apart() {
  constexpr int64_t kStride = (int64_t{1} << 31) + 5, kColumns = 100;
  const size_t bytes = (kStride + kColumns) * sizeof(BFloat16);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (!check::that(memory != MAP_FAILED, "no address space for the test")) return;
  BFloat16* const far = static_cast<BFloat16*>(memory);
  for (const Features& features : {kFast[5], kGeneral[4]}) {
    Problem<BFloat16> near(features, 2, kColumns, {}, Logits::Normal);
    check::that(!near.run(), "an error");
    const std::vector<char> want = near.student_grad.bytes();
    for (int64_t n = 0; n < 2; ++n) {
      for (int64_t c = 0; c < kColumns; ++c) far[n * kStride + c] = near.student.at(n, c);
    }
    near.student_grad.poison();
    DistillationParams<float> p = near.params();
    p.student = far;
    p.student_stride = kStride;
    check::that(!distillation_cuda(p, DType::BFloat16, CudaLaunch{nullptr, 0, &near.counter}),
                "an error");
    check::that(near.student_grad.bytes() == want, "another result than with rows side by side");
  }
  munmap(memory, bytes);
}

template <class Kernel>
bool ran(Kernel* kernel) {
  return simt::launched.count(reinterpret_cast<const void*>(kernel)) != 0;
}

template <class Storage>
void every_kernel_ran() {
  using namespace cuda;
  constexpr int kHeld = 32 / kChunk<Storage>;
  check::that((ran(distillation_resident<Storage, 8, 1>)), "8 x 1");
  check::that((ran(distillation_resident<Storage, 32, 1>)), "32 x 1");
  check::that((ran(distillation_resident<Storage, 32, 2>)), "32 x 2");
  check::that((ran(distillation_resident<Storage, 32, 4>)), "32 x 4");
  check::that((ran(distillation_resident<Storage, 64, kHeld>)), "64");
  check::that((ran(distillation_resident<Storage, 128, kHeld>)), "128");
  check::that((ran(distillation_resident<Storage, 256, kHeld * 3 / 4>)), "256");
  check::that(ran(distillation_shared<Storage>), "shared");
  check::that(ran(distillation_stream<Storage>), "stream");
  check::that(ran(distillation_general<Storage>), "general");
}

template <class Storage>
void every_feature() {
  const std::string type = check::kTypeName<Storage>;
  check::test((type + ": every shape and feature").c_str(), every_shape<Storage>);
  check::test((type + ": rows that start anywhere").c_str(), other_layouts<Storage>);
  check::test((type + ": -inf, NaN, huge logits").c_str(), special_values<Storage>);
}

}  // namespace

int main() {
  every_feature<float>();
  every_feature<Half>();
  every_feature<BFloat16>();
  every_feature<double>();
  check::test("little shared memory", [] {
    small_device<float>();
    small_device<BFloat16>();
    if (!check::kReduced) small_device<Half>();
  });
  check::test("many rows", many_rows);
  check::test("no rows", no_rows);
  check::test("targets out of range", bad_targets);
  check::test("calls that are refused", refusals);
  check::test("rows more than 2^31 values apart", rows_far_apart);
  if (!check::kReduced) {
    check::test("every kernel ran", [] {
      every_kernel_ran<float>();
      every_kernel_ran<Half>();
      every_kernel_ran<BFloat16>();
      check::that((ran(cuda::distillation_resident<float, 8, 2>)), "8 x 2");
      check::that((ran(cuda::distillation_resident<float, 32, 8>)), "32 x 8");
      check::that(ran(cuda::distillation_general<double>), "general, float64");
    });
  }
  return check::finish();
}
