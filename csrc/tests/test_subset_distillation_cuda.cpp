// The CUDA kernels of subset distillation, run on the CPU in three thread orders against the
// definition in double precision: every kernel, storage type and feature. The host entry is the one
// that ships.
#include <sys/mman.h>

#include <algorithm>

#include "ops/subset_distillation/subset_distillation_cuda.cu"
#include "tests/check.h"

namespace {

using namespace ltk;
using check::Matrix;

constexpr double kInf = std::numeric_limits<double>::infinity();

// How the subsets of C columns lie.
enum class Subsets { Sorted, Scattered, Overlapping, One, All, OneClass, Most };

struct Features {
  const char* name;
  double temperature = 2;
  bool row_temperature = false, column_temperature = false;
  bool subset_factor = false, row_factor = false;
  bool student_grad = true, teacher_grad = false, reduced = true;
};

enum class Logits { Normal, Huge, Holes };

std::vector<std::vector<int64_t>> classes_of(Subsets kind, int64_t columns, std::mt19937& random) {
  std::vector<int64_t> order(static_cast<size_t>(columns));
  for (int64_t c = 0; c < columns; ++c) order[size_t(c)] = c;
  if (kind != Subsets::Sorted) std::shuffle(order.begin(), order.end(), random);
  const auto part = [&](int64_t begin, int64_t end) {
    begin = std::min(begin, columns - 1);
    return std::vector<int64_t>(order.begin() + begin,
                                order.begin() + std::min(columns, std::max(begin + 1, end)));
  };
  std::vector<std::vector<int64_t>> all;
  switch (kind) {
    case Subsets::Sorted:
    case Subsets::Scattered:
      if (columns < 3) return {part(0, columns)};
      return {part(0, columns / 3), part(columns / 3, columns - 1), part(columns - 1, columns)};
    case Subsets::Overlapping:
      return {part(0, columns), part(columns / 4, columns), part(0, columns / 2)};
    case Subsets::One: return {part(0, columns / 3)};
    case Subsets::All: return {part(0, columns)};
    case Subsets::OneClass: return {part(0, 1), part(columns / 2, columns / 2 + 1)};
    case Subsets::Most:
      for (int l = 0; l < kMostSubsets; ++l) all.push_back(part(l, l + columns / 4));
      return all;
  }
  return all;
}

template <class Storage>
struct Problem {
  using Acc = Accumulate<Storage>;

  Features features;
  int64_t rows, columns;
  std::vector<std::vector<int64_t>> classes;
  Matrix<Storage> student, student_grad;
  std::vector<Matrix<Storage>> teachers;
  Matrix<Storage> teacher_grad;
  Matrix<Acc> row_loss, grad_scale;
  std::vector<Acc> row_temperature, column_temperature, subset_factor, row_factor;
  Acc loss = 0;
  unsigned counter = 77;  // whatever was there

  // `gap` values between rows, the first one `offset` behind a multiple of 16 bytes.
  Problem(const Features& f, Subsets subsets, int64_t rows, int64_t columns, int64_t gap,
          int64_t offset, Logits kind)
      : features(f),
        rows(rows),
        columns(columns),
        student(rows, columns, columns + gap, offset),
        student_grad(rows, columns, 0, offset),
        teacher_grad(0, 0),
        row_loss(rows, 1),
        grad_scale(0, 0) {
    std::mt19937 random(static_cast<unsigned>(columns * 7 + rows));
    classes = classes_of(subsets, columns, random);
    const double scale = kind == Logits::Huge ? 1e4 : 3;
    check::fill_normal(student, random, scale);
    int64_t all = 0;
    for (const auto& subset : classes) {
      const int64_t size = static_cast<int64_t>(subset.size());
      teachers.emplace_back(rows, size, size + gap, offset);
      check::fill_normal(teachers.back(), random, scale);
      all += size;
    }
    teacher_grad = Matrix<Storage>(1, std::max<int64_t>(1, rows * all));
    grad_scale = Matrix<Acc>(1 + static_cast<int64_t>(classes.size()), std::max<int64_t>(1, rows));
    std::uniform_real_distribution<double> uniform(0, 1);
    const auto vector = [&](int64_t size, double low, double high) {
      std::vector<Acc> values(static_cast<size_t>(size));
      for (Acc& value : values) value = static_cast<Acc>(low + (high - low) * uniform(random));
      return values;
    };
    row_temperature = vector(rows, 1, 5);
    column_temperature = vector(columns, 0.5, 4);
    subset_factor = vector(static_cast<int64_t>(classes.size()), 0, 2);
    row_factor = vector(rows, 0, 2);
    if (kind == Logits::Holes) dig_holes();
  }

  // Row by row, as far as there are rows, in the first subset: -inf in the teacher, in both, in the
  // student alone (KL is infinite), everywhere; NaN on either side.
  void dig_holes() {
    const std::vector<int64_t>& subset = classes[0];
    Matrix<Storage>& teacher = teachers[0];
    const int64_t size = static_cast<int64_t>(subset.size());
    const auto at = [&](int64_t j) { return subset[size_t(j)]; };
    for (int64_t j = 0; j < size; j += 3) {
      if (rows > 0 && size > 1) teacher.set(0, j, -kInf);
      if (rows > 1 && size > 1) teacher.set(1, j, -kInf), student.set(1, at(j), -kInf);
    }
    if (rows > 2) student.set(2, at(size / 3), -kInf), teacher.set(2, size / 3, 9);
    for (int64_t j = 0; j < size; ++j) {
      if (rows > 3) student.set(3, at(j), -kInf);
      if (rows > 4) teacher.set(4, j, -kInf);
    }
    if (rows > 5) student.set(5, at(size - 1), std::nan(""));
    if (rows > 6) teacher.set(6, size - 1, std::nan(""));
    // The student's -inf meets a teacher's probability that turns out to be 0 only later.
    for (int64_t j = 0; j < std::min<int64_t>(8, size - 1) && rows > 7; ++j) {
      teacher.set(7, j, -60000);
      student.set(7, at(j), -kInf);
    }
  }

  SubsetDistillationParams<Acc> params() {
    SubsetDistillationParams<Acc> p{};
    p.rows = rows;
    p.columns = columns;
    p.subsets = static_cast<int>(classes.size());
    p.student = student.data();
    p.student_stride = student.stride();
    for (size_t l = 0; l < classes.size(); ++l) {
      p.teacher[l] = teachers[l].data();
      p.teacher_stride[l] = teachers[l].stride();
      p.classes[l] = classes[l].data();
      p.offset[l + 1] = p.offset[l] + static_cast<int64_t>(classes[l].size());
      p.kl_factor[l] = Acc(0.7 + 0.4 * double(l));
    }
    p.temperature = Acc(features.temperature);
    p.row_temperature = features.row_temperature ? row_temperature.data() : nullptr;
    p.column_temperature = features.column_temperature ? column_temperature.data() : nullptr;
    p.subset_factor = features.subset_factor ? subset_factor.data() : nullptr;
    p.row_factor = features.row_factor ? row_factor.data() : nullptr;
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
    return subset_distillation_cuda(params(), check::kDType<Storage>,
                                    CudaLaunch{nullptr, 0, &counter});
  }
};

// softmax in double, with the largest value taken off.
struct Softmax {
  std::vector<double> value, log;
  explicit Softmax(const std::vector<double>& x) : value(x.size()), log(x.size()) {
    double top = -kInf, sum = 0;
    for (double v : x) top = v > top ? v : top;
    for (double v : x) sum += top == -kInf ? std::nan("") : std::exp(v - top);
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
  const SubsetDistillationParams<Acc> p = problem.params();
  const double f = p.reduction_factor;
  double total = 0, total_tolerance = 0;
  for (int64_t n = 0; n < p.rows; ++n) {
    const std::string where = " of row " + std::to_string(n);
    const auto scale_of = [&](int64_t side) {
      if (!p.grad_scale || (side == 0 ? !p.student_grad : !p.teacher_grad)) return 1.0;
      const double scale = double(p.grad_scale[side * p.rows + n]);
      int exponent;
      check::that(scale > 0 && std::frexp(scale, &exponent) == 0.5,
                  "the scale" + where + " is no power of two: " + check::number(scale));
      return scale;
    };
    const auto compare_gradient = [&](double stored, double scale, double want, double tolerance,
                                      const char* what, int64_t column) {
      check::close(stored * scale, want,
                   tolerance + check::kRounding<Storage> * std::fabs(want) +
                       (p.grad_scale ? scale * 6e-8 : 1e-38),
                   [&] { return what + (" at column " + std::to_string(column)) + where; });
    };
    std::vector<double> want(static_cast<size_t>(p.columns), 0), allowed(want);
    double loss = 0, loss_tolerance = 0;
    for (int l = 0; l < p.subsets; ++l) {
      const size_t size = problem.classes[size_t(l)].size();
      const auto temperature = [&](size_t j) {
        return double(p.column_temperature ? p.column_temperature[p.classes[l][j]]
                      : p.row_temperature  ? p.row_temperature[n]
                                           : p.temperature);
      };
      std::vector<double> a, b;
      double largest = 0, coldest = kInf;
      for (size_t j = 0; j < size; ++j) {
        const double x = problem.student(n, p.classes[l][j]);
        const double t = problem.teachers[size_t(l)](n, int64_t(j));
        a.push_back(x / temperature(j));
        b.push_back(t / temperature(j));
        if (std::isfinite(x)) largest = std::max(largest, std::fabs(x));
        if (std::isfinite(t)) largest = std::max(largest, std::fabs(t));
        coldest = std::min(coldest, temperature(j));
      }
      const Softmax student(a), teacher(b);
      double kl = 0;
      for (size_t j = 0; j < size; ++j) {
        if (teacher.value[j] != 0) kl += teacher.value[j] * (teacher.log[j] - student.log[j]);
      }
      for (double v : student.value) kl += 0 * v;  // NaN without a finite logit
      const double k = double(p.kl_factor[l]) * (p.subset_factor ? p.subset_factor[l] : 1) *
                       (p.row_factor ? p.row_factor[n] : 1);
      // Scaled logits that were rounded to floats have this error; it is also plain PyTorch's.
      const double tolerance =
          check::kArithmetic<Storage> + check::kRounding<Acc> * 4 * largest / coldest;
      loss += k * kl;
      loss_tolerance += tolerance * (std::fabs(k * kl) + std::fabs(k) + 1);
      const double slope = f * k;
      for (size_t j = 0; j < size; ++j) {
        const size_t c = size_t(p.classes[l][j]);
        const double q = a[j] == -kInf ? 0 : teacher.value[j];
        want[c] += slope / temperature(j) * (student.value[j] - q) + 0 * teacher.value[j];
        allowed[c] += tolerance * std::fabs(slope) / coldest;
      }
      if (!p.teacher_grad) continue;
      const double scale = scale_of(1 + l);
      const Storage* stored =
          problem.teacher_grad.data() + p.rows * p.offset[l] + n * int64_t(size);
      for (size_t j = 0; j < size; ++j) {
        const double gap = teacher.log[j] - student.log[j] - kl;
        const double of_gap = slope / temperature(j) * teacher.value[j];
        const double exact = kl == kInf ? 0 : teacher.value[j] == 0 ? 0 * kl : of_gap * gap;
        const double gap_size = std::isfinite(gap) ? 1 + std::fabs(gap) + std::fabs(kl) : 1;
        compare_gradient(cuda::widen(stored[j]), scale, exact,
                         tolerance * (std::fabs(slope) / coldest + std::fabs(of_gap) * gap_size +
                                      std::fabs(exact)),
                         "the teacher's gradient", int64_t(j));
      }
    }
    check::close(problem.row_loss(n, 0), loss, loss_tolerance, "the loss" + where);
    total += loss;
    total_tolerance += loss_tolerance;
    if (!p.student_grad) continue;
    const double scale = scale_of(0);
    for (int64_t c = 0; c < p.columns; ++c) {
      compare_gradient(problem.student_grad(n, c), scale, want[size_t(c)], allowed[size_t(c)],
                       "the gradient", c);
    }
  }
  if (p.loss) {
    check::close(problem.loss, f * total, f * total_tolerance + 1e-12, "the reduced loss");
  }
}

template <class Storage>
void run_and_compare(const Features& features, Subsets subsets, int64_t rows, int64_t columns,
                     int64_t gap = 0, int64_t offset = 0, Logits kind = Logits::Normal) {
  check::context = std::string(check::kTypeName<Storage>) + " N=" + std::to_string(rows) +
                   " C=" + std::to_string(columns) + " " + features.name + ", subsets " +
                   std::to_string(static_cast<int>(subsets));
  Problem<Storage> problem(features, subsets, rows, columns, gap, offset, kind);
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

constexpr Subsets kLayouts[] = {Subsets::Sorted, Subsets::Scattered, Subsets::Overlapping,
                                Subsets::One,    Subsets::All,       Subsets::OneClass,
                                Subsets::Most};
const Features kFeatures[] = {
    {"plain"},
    {"without gradient", 2, false, false, true, true, false},
    {"row temperature, factors", 2, true, false, true, true},
    {"no reduction", 1, false, false, false, true, true, false, false},
    {"column temperature", 2, false, true, true, false},
    {"both gradients", 3, true, false, true, true, true, true},
    {"column temperature, teacher gradient alone", 2, false, true, false, true, false, true},
};

template <class Storage>
void every_shape() {
  const std::vector<int64_t> shapes =
      check::kReduced ? std::vector<int64_t>{1, 5, 33, 300, 1030}
                      : std::vector<int64_t>{1,   2,   5,   31,  33,   64,   65,   100,
                                             192, 257, 365, 600, 1000, 1537, 2048, 3001};
  for (int64_t columns : shapes) {
    for (const Features& features : kFeatures) {
      run_and_compare<Storage>(features, Subsets::Scattered, 5, columns);
    }
    for (Subsets subsets : kLayouts) run_and_compare<Storage>(kFeatures[2], subsets, 3, columns);
    run_and_compare<Storage>(kFeatures[5], Subsets::Overlapping, 3, columns);
  }
  if (check::kReduced) return;
  for (int64_t columns : {4100, 8142, 12500, 25000, 70001}) {  // the last in two tiles
    for (int i : {0, 5}) {
      run_and_compare<Storage>(kFeatures[i], Subsets::Scattered, 2, columns);
      run_and_compare<Storage>(kFeatures[i], Subsets::Sorted, 1, columns);
    }
  }
  run_and_compare<Storage>(kFeatures[2], Subsets::Overlapping, 2, 8142);
}

template <class Storage>
void other_layouts() {
  for (int64_t offset : {1, 3}) {
    for (int64_t columns : {10, 100, 365, check::kReduced ? 700 : 3003}) {
      for (int i : {2, 5}) {
        run_and_compare<Storage>(kFeatures[i], Subsets::Scattered, 5, columns, 3, offset);
        run_and_compare<Storage>(kFeatures[i], Subsets::Overlapping, 5, columns, 0, offset);
      }
    }
  }
}

// Shared memory of a device decides on `resident`, and on the tiles of `general`.
template <class Storage>
void small_device() {
  simt::settings.shared_memory = 20 * 1024;
  for (int64_t columns : {1500, 5000, 12301}) {
    for (int i : {0, 5}) {
      run_and_compare<Storage>(kFeatures[i], Subsets::Scattered, 2, columns, 0, 1);
      run_and_compare<Storage>(kFeatures[i], Subsets::Overlapping, 2, columns);
    }
  }
  run_and_compare<Storage>(kFeatures[5], Subsets::Scattered, 8, 5000, 0, 0, Logits::Holes);
  simt::settings.shared_memory = 227 * 1024;
}

template <class Storage>
void special_values() {
  for (int64_t columns : {7, 40, check::kReduced ? 300 : 2500}) {
    for (const Features& features : kFeatures) {
      for (Subsets subsets : {Subsets::Sorted, Subsets::Scattered, Subsets::Overlapping}) {
        run_and_compare<Storage>(features, subsets, 8, columns, 0, 0, Logits::Holes);
      }
    }
    for (double temperature : {0.05, 100.}) {
      Features features{"huge logits", temperature};
      run_and_compare<Storage>(features, Subsets::Scattered, 3, columns, 0, 0, Logits::Huge);
      features.teacher_grad = true;
      run_and_compare<Storage>(features, Subsets::Scattered, 3, columns, 0, 0, Logits::Huge);
    }
  }
}

void no_rows() {
  Problem<float> problem({"no rows"}, Subsets::Sorted, 0, 10, 0, 0, Logits::Normal);
  check::that(!problem.run(), "an error");
  check::close(problem.loss, 0, 0, "the sum of no rows");
}

void bad_classes() {
  for (int64_t bad : {-1, 100}) {
    for (const Features& features : {kFeatures[0], kFeatures[5]}) {
      Problem<float> problem(features, Subsets::Scattered, 3, 100, 0, 0, Logits::Normal);
      problem.classes[1][3] = bad;
      check::fails_with("class out of range", [&] { problem.run(); });
    }
  }
}

void refusals() {
  Problem<float> problem({"refused"}, Subsets::Sorted, 2, 10, 0, 0, Logits::Normal);
  const CudaLaunch where{nullptr, 0, &problem.counter};
  const auto refused = [&](const SubsetDistillationParams<float>& p, DType dtype) {
    return subset_distillation_cuda(p, dtype, where) != nullptr;
  };
  check::that(refused(problem.params(), DType::Float64), "float64 with float parameters");
  SubsetDistillationParams<float> wrong = problem.params();
  wrong.columns = (int64_t{1} << 30) + 1;
  check::that(refused(wrong, DType::Float32), "too many columns");
  wrong = problem.params();
  wrong.subsets = kMostSubsets + 1;
  check::that(refused(wrong, DType::Float32), "too many subsets");
}

// Blocks loop over rows, the last block sums them all.
void many_rows() {
  run_and_compare<float>(kFeatures[2], Subsets::Overlapping, 1500, 30);
  run_and_compare<BFloat16>(kFeatures[2], Subsets::Scattered, 301, 100, 0, 1);
  simt::settings.multiprocessors = 1;
  run_and_compare<float>(kFeatures[2], Subsets::Scattered, 9, check::kReduced ? 3000 : 13001);
  run_and_compare<Half>(kFeatures[5], Subsets::Overlapping, 9, 1300);
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
  for (const Features& features : {kFeatures[0], kFeatures[5]}) {
    Problem<BFloat16> near(features, Subsets::All, 2, kColumns, 0, 0, Logits::Normal);
    check::that(!near.run(), "an error");
    const std::vector<char> want = near.student_grad.bytes();
    for (bool of_teacher : {false, true}) {
      const Matrix<BFloat16>& from = of_teacher ? near.teachers[0] : near.student;
      for (int64_t n = 0; n < 2; ++n) {
        for (int64_t c = 0; c < kColumns; ++c) far[n * kStride + c] = from.at(n, c);
      }
      near.student_grad.poison();
      SubsetDistillationParams<float> p = near.params();
      (of_teacher ? p.teacher[0] : p.student) = far;
      (of_teacher ? p.teacher_stride[0] : p.student_stride) = kStride;
      const CudaLaunch where{nullptr, 0, &near.counter};
      check::that(!subset_distillation_cuda(p, DType::BFloat16, where), "an error");
      check::that(near.student_grad.bytes() == want, "another result than with rows side by side");
    }
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
  check::that((ran(subset_distillation_resident<Storage, 32, 2>)), "32 x 2");
  check::that((ran(subset_distillation_resident<Storage, 32, 8>)), "32 x 8");
  check::that((ran(subset_distillation_resident<Storage, 32, 16>)), "32 x 16");
  check::that((ran(subset_distillation_resident<Storage, 128, 8>)), "128 x 8");
  check::that((ran(subset_distillation_resident<Storage, 512, 8>)), "512 x 8");
  check::that((ran(subset_distillation_resident<Storage, 512, 16>)), "512 x 16");
  check::that(ran(subset_distillation_general<Storage>), "general");
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
    if (!check::kReduced) small_device<double>();
  });
  check::test("many rows", many_rows);
  check::test("no rows", no_rows);
  check::test("classes out of range", bad_classes);
  check::test("calls that are refused", refusals);
  check::test("rows more than 2^31 values apart", rows_far_apart);
  if (!check::kReduced) {
    check::test("every kernel ran", [] {
      every_kernel_ran<float>();
      every_kernel_ran<Half>();
      every_kernel_ran<BFloat16>();
      check::that(ran(cuda::subset_distillation_general<double>), "general, float64");
    });
  }
  return check::finish();
}
