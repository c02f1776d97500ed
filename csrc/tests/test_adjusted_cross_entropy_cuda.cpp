// The CUDA kernels of adjusted_cross_entropy, run on the CPU in three thread orders against the
// definition in double precision: every kernel, storage type and feature.
#include "ops/adjusted_cross_entropy/adjusted_cross_entropy_cuda.cu"
#include "tests/check.h"

namespace {

using namespace ltk;
using check::Matrix;

constexpr int64_t kIgnored = -100;

struct Features {
  const char* name;
  double scale = 1;
  bool margin = false, bias = false, class_weight = false;
  double label_smoothing = 0, focal_gamma = 0;
  bool ignored_rows = false;
  Reduction reduction = Reduction::Mean;
  bool gradient = true;
};

enum class Logits { Normal, Huge, Holes };

template <class Storage>
struct Problem {
  using Acc = Accumulate<Storage>;

  Features features;
  int64_t rows, columns;
  Matrix<Storage> logits, grad;
  Matrix<Acc> row_loss, grad_scale;
  std::vector<int64_t> target;
  std::vector<Acc> margin, bias, class_weight;
  Acc loss = 0;
  unsigned counter = 77;  // whatever was there

  Problem(const Features& f, int64_t rows, int64_t columns, int64_t gap, int64_t offset,
          Logits kind)
      : features(f),
        rows(rows),
        columns(columns),
        logits(rows, columns, columns + gap, offset),
        grad(rows, columns),
        row_loss(rows, 1),
        grad_scale(rows, 1) {
    std::mt19937 random(static_cast<unsigned>(columns * 5 + rows));
    check::fill_normal(logits, random, kind == Logits::Huge ? 1e4 : 2);
    std::uniform_real_distribution<double> uniform(0, 1);
    for (int64_t c = 0; c < columns; ++c) {
      margin.push_back(Acc(uniform(random) / 2));
      bias.push_back(Acc(-5 * uniform(random)));
      class_weight.push_back(c % 7 == 3 ? Acc(0) : Acc(0.1 + uniform(random)));
    }
    for (int64_t n = 0; n < rows; ++n) {
      target.push_back(f.ignored_rows && n % 3 != 1
                           ? kIgnored
                           : static_cast<int64_t>(uniform(random) * double(columns)));
    }
    if (kind == Logits::Holes) dig_holes();
  }

  // Row by row: -inf beside the target, at the target, everywhere; NaN; a row that is nearly sure.
  // And a bias of -inf, at the target of the last row.
  void dig_holes() {
    const double inf = std::numeric_limits<double>::infinity();
    if (rows > 5 && target[5] >= 0) bias[size_t(target[5])] = Acc(-inf);
    for (int64_t c = 0; c < columns; c += 2) {
      if (rows > 0 && c != target[0]) logits.set(0, c, -inf);
    }
    if (rows > 1 && target[1] >= 0) logits.set(1, target[1], -inf);
    for (int64_t c = 0; c < columns && rows > 2; ++c) logits.set(2, c, -inf);
    if (rows > 3) logits.set(3, columns - 1, std::nan(""));
    if (rows > 4 && target[4] >= 0) logits.set(4, target[4], 200);
  }

  AdjustedCrossEntropyParams<Acc> params() {
    AdjustedCrossEntropyParams<Acc> p{};
    p.rows = rows;
    p.columns = columns;
    p.logits = logits.data();
    p.logits_stride = logits.stride();
    p.target = target.data();
    p.scale = Acc(features.scale);
    p.margin = features.margin ? margin.data() : nullptr;
    p.bias = features.bias ? bias.data() : nullptr;
    p.class_weight = features.class_weight ? class_weight.data() : nullptr;
    p.label_smoothing = Acc(features.label_smoothing);
    p.focal_gamma = Acc(features.focal_gamma);
    p.ignore_index = kIgnored;
    p.reduction = features.reduction;
    p.row_loss = row_loss.data();
    p.loss = features.reduction == Reduction::None ? nullptr : &loss;
    p.grad = features.gradient ? grad.data() : nullptr;
    const bool scaled = std::is_same_v<Storage, Half> || features.reduction == Reduction::Mean;
    p.grad_scale = features.gradient && scaled ? grad_scale.data() : nullptr;
    return p;
  }

  const char* run() {
    grad.poison();
    row_loss.poison();
    grad_scale.poison();
    loss = -1;
    return adjusted_cross_entropy_cuda(params(), check::kDType<Storage>,
                                       CudaLaunch{nullptr, 0, &counter});
  }
};

template <class Storage>
void compare(Problem<Storage>& problem) {
  using Acc = Accumulate<Storage>;
  const double inf = std::numeric_limits<double>::infinity();
  const AdjustedCrossEntropyParams<Acc> p = problem.params();
  const double e = p.label_smoothing, scale = p.scale, gamma = p.focal_gamma;
  const auto weight = [&](int64_t c) { return p.class_weight ? double(p.class_weight[c]) : 1.; };

  double divisor = 1;
  if (p.reduction == Reduction::Mean) {
    divisor = 0;
    for (int64_t n = 0; n < p.rows; ++n) {
      if (p.target[n] != p.ignore_index) divisor += weight(p.target[n]);
    }
  }
  double total = 0, total_tolerance = 0;
  for (int64_t n = 0; n < p.rows; ++n) {
    const std::string where = " of row " + std::to_string(n);
    const int64_t y = p.target[n];
    std::vector<double> want(size_t(p.columns), 0);
    double loss = 0, loss_tolerance = 0, size = 0;
    if (y != p.ignore_index) {
      std::vector<double> z;
      double top = -inf, sum = 0, largest = 1;
      for (int64_t c = 0; c < p.columns; ++c) {
        const double x = problem.logits(n, c) - (c == y && p.margin ? double(p.margin[c]) : 0);
        z.push_back(scale * x + (p.bias ? double(p.bias[c]) : 0));
        top = z.back() > top ? z.back() : top;
        if (std::isfinite(z.back())) largest = std::max(largest, std::fabs(z.back()));
      }
      for (double v : z) sum += top == -inf ? std::nan("") : std::exp(v - top);
      const double lse = top + std::log(sum);
      double smooth_weight = 0, plain = 0;
      if (weight(y) * (1 - e) != 0) plain = (1 - e) * weight(y) * (lse - z[size_t(y)]);
      for (int64_t c = 0; c < p.columns && e != 0; ++c) {
        smooth_weight += weight(c);
        if (weight(c) != 0) plain += e / double(p.columns) * weight(c) * (lse - z[size_t(c)]);
      }
      plain += 0 * std::log(sum);  // NaN in the row
      // The scaled and shifted logits are rounded to floats, as in plain PyTorch.
      const double exact = p.bias || p.margin || scale != 1 || std::is_same_v<Storage, double>
                               ? 8 * check::kRounding<Acc> * largest
                               : 0;
      const double tolerance = check::kArithmetic<Storage> + exact;
      const double u = std::exp(-plain);
      double slope = 1;
      loss = plain;
      if (gamma > 0) {
        loss = plain * std::pow(1 - u, gamma);
        slope = std::pow(1 - u, gamma);
        if (plain > 0 && plain < inf) slope += gamma * plain * u * std::pow(1 - u, gamma - 1);
      }
      const double mass = (1 - e) * weight(y) + e / double(p.columns) * smooth_weight;
      loss_tolerance = tolerance * (std::fabs(loss) + (1 + gamma) * (1 + mass));
      // Where the focal factor is steep, the error of l is what counts.
      if (gamma > 0 && gamma < 1 && plain < 0.01) loss_tolerance += 1e-3, size += 1;
      size += (std::fabs(slope) + gamma) * std::fabs(scale) * (mass + 1e-30);
      for (int64_t c = 0; c < p.columns; ++c) {
        const bool constant = problem.logits(n, c) == -inf || (p.bias && p.bias[c] == Acc(-inf));
        double g = mass * std::exp(z[size_t(c)] - lse);
        if (!constant) g -= (c == y ? (1 - e) * weight(y) : 0) + e / double(p.columns) * weight(c);
        want[size_t(c)] = slope * scale * g;
      }
      size *= tolerance / check::kArithmetic<Storage>;
    }
    check::close(problem.row_loss(n, 0), loss, loss_tolerance, "the loss" + where);
    total += loss;
    total_tolerance += loss_tolerance;
    if (!p.grad) continue;
    const double stored_scale = p.grad_scale ? double(p.grad_scale[n]) : 1;
    const double f = p.reduction == Reduction::Mean && divisor == 0 ? 0 : 1 / divisor;
    for (int64_t c = 0; c < p.columns; ++c) {
      const double w = f * want[size_t(c)];
      check::close(problem.grad(n, c) * stored_scale, w,
                   check::kArithmetic<Storage> * f * size +
                       (check::kRounding<Storage> + 4 * check::kRounding<Acc>)*std::fabs(w) +
                       (std::is_same_v<Storage, Half> ? stored_scale * 6e-8 : 1e-38),
                   [&] { return "the gradient at column " + std::to_string(c) + where; });
    }
  }
  if (p.loss) {
    check::close(problem.loss, total / divisor,
                 total_tolerance / divisor + 1e-7 * std::fabs(total / divisor), "the loss");
  }
}

template <class Storage>
void run_and_compare(const Features& features, int64_t rows, int64_t columns, int64_t gap = 0,
                     int64_t offset = 0, Logits kind = Logits::Normal) {
  check::context = std::string(check::kTypeName<Storage>) + " N=" + std::to_string(rows) +
                   " C=" + std::to_string(columns) + " " + features.name;
  Problem<Storage> problem(features, rows, columns, gap, offset, kind);
  std::vector<char> first;
  for (simt::Order order : check::kOrders) {
    simt::settings.order = order;
    const char* error = problem.run();
    if (!check::that(!error, error ? error : "")) return;
    check::that(problem.counter == 0, "the counter is not zero again");
    std::vector<char> bytes = problem.row_loss.bytes();
    for (const auto& part : {problem.grad.bytes(), problem.grad_scale.bytes()}) {
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

const Features kFeatures[] = {
    {"plain"},
    {"plain sum", 1, false, false, false, 0, 0, false, Reduction::Sum},
    {"plain, no reduction", 1, false, false, false, 0, 0, true, Reduction::None},
    {"balanced softmax, ignored rows", 1, false, true, false, 0, 0, true},
    {"ldam", 30, true, false, true},
    {"focal", 1, false, false, false, 0, 2},
    {"class-balanced focal, no gradient", 1, false, false, true, 0, 0.5, false, Reduction::Mean,
     false},
    {"label smoothing", 1, false, false, false, 0.1},
    {"everything", 2, true, true, true, 0.2, 1.5, true},
    {"everything, summed", 2, true, true, true, 0.2, 1, false, Reduction::Sum},
};

std::vector<int64_t> shapes() {
  if (check::kReduced) return {1, 5, 33, 100, 1025, 8200};
  return {1,   2,   5,    31,   32,   33,   64,   65,   100,  128,  129,
          257, 365, 1000, 1024, 1025, 2048, 2049, 4097, 8142, 8192, 8200};
}

template <class Storage>
void every_shape() {
  for (int64_t columns : shapes()) {
    for (const Features& features : kFeatures) run_and_compare<Storage>(features, 3, columns);
    run_and_compare<Storage>(kFeatures[8], 1, columns);
  }
  if (check::kReduced) return;
  for (int64_t columns : {20000, 32003, 70001}) {
    for (int i : {0, 4, 8}) run_and_compare<Storage>(kFeatures[i], 2, columns);
  }
}

template <class Storage>
void other_layouts() {
  for (int64_t columns : {10, 100, 365, 1030, check::kReduced ? 1500 : 9001}) {
    for (int64_t gap : {1, 8}) {
      for (int64_t offset : {0, 3}) {
        run_and_compare<Storage>(kFeatures[0], 3, columns, gap, offset);
        run_and_compare<Storage>(kFeatures[8], 3, columns, gap, offset);
      }
    }
  }
}

template <class Storage>
void special_values() {
  for (int64_t columns : {7, 40, 700, check::kReduced ? 1500 : 9000}) {
    for (const Features& features : kFeatures) {
      run_and_compare<Storage>(features, 6, columns, 0, 0, Logits::Holes);
      run_and_compare<Storage>(features, 3, columns, 0, 0, Logits::Huge);
    }
  }
}

void small_device() {
  simt::settings.shared_memory = 32 * 1024;
  for (const Features& features : kFeatures) {
    run_and_compare<float>(features, 3, 9001, 2);
    run_and_compare<Half>(features, 3, 9001, 2);
    run_and_compare<BFloat16>(features, 6, 9001, 2, 1, Logits::Holes);
  }
  simt::settings.shared_memory = 227 * 1024;
}

void nothing_to_average() {
  for (int64_t rows : {0, 3}) {
    Problem<float> problem(kFeatures[0], rows, 10, 0, 0, Logits::Normal);
    problem.target.assign(size_t(rows), kIgnored);
    check::that(!problem.run(), "an error");
    check::that(std::isnan(problem.loss), "the mean of nothing is not NaN");
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t c = 0; c < 10; ++c) {
        check::close(problem.grad(n, c) * problem.grad_scale(n, 0), 0, 0, "its gradient");
      }
    }
  }
}

void refusals() {
  for (int64_t bad : {-1, 100}) {
    Problem<float> problem(kFeatures[0], 3, 100, 0, 0, Logits::Normal);
    problem.target[2] = bad;
    check::fails_with("target out of range", [&] { problem.run(); });
  }
  Problem<float> problem(kFeatures[0], 3, 100, 0, 0, Logits::Normal);
  AdjustedCrossEntropyParams<float> p = problem.params();
  p.grad_scale = nullptr;
  const CudaLaunch where{nullptr, 0, &problem.counter};
  check::that(adjusted_cross_entropy_cuda(p, DType::Float32, where) != nullptr,
              "a mean without grad_scale");
  check::that(adjusted_cross_entropy_cuda(problem.params(), DType::Float64, where) != nullptr,
              "float64 with float parameters");
}

template <class Kernel>
bool ran(Kernel* kernel) {
  return simt::launched.count(reinterpret_cast<const void*>(kernel)) != 0;
}

template <class Storage>
void every_kernel_ran() {
  using namespace cuda;
  constexpr int kHeld = 32 / kChunk<Storage>;
  check::that((ran(adjusted_cross_entropy_resident<Storage, 8, 1>)), "8 x 1");
  check::that((ran(adjusted_cross_entropy_resident<Storage, 32, 1>)), "32 x 1");
  check::that((ran(adjusted_cross_entropy_resident<Storage, 32, 2>)), "32 x 2");
  check::that((ran(adjusted_cross_entropy_resident<Storage, 32, 4>)), "32 x 4");
  check::that((ran(adjusted_cross_entropy_resident<Storage, 64, kHeld>)), "64");
  check::that((ran(adjusted_cross_entropy_resident<Storage, 128, kHeld>)), "128");
  check::that((ran(adjusted_cross_entropy_resident<Storage, 256, kHeld>)), "256");
  check::that(ran(adjusted_cross_entropy_shared<Storage>), "shared");
  check::that(ran(adjusted_cross_entropy_stream<Storage>), "stream");
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
  check::test("little shared memory", small_device);
  check::test("many rows", [] {
    run_and_compare<float>(kFeatures[8], 2000, 10);
    run_and_compare<BFloat16>(kFeatures[4], 300, 1500);
    simt::settings.multiprocessors = 1;  // blocks of 512 threads loop, too
    run_and_compare<float>(kFeatures[8], 9, 8201);
    run_and_compare<Half>(kFeatures[8], 9, 8201);
    run_and_compare<float>(kFeatures[4], 9, 70001);
    simt::settings.multiprocessors = 4;
  });
  check::test("no rows, or only ignored ones", nothing_to_average);
  check::test("bad targets and calls that are refused", refusals);
  if (!check::kReduced) {
    check::test("every kernel ran", [] {
      every_kernel_ran<float>();
      every_kernel_ran<Half>();
      every_kernel_ran<BFloat16>();
      check::that((ran(cuda::adjusted_cross_entropy_resident<float, 8, 2>)), "8 x 2");
      check::that((ran(cuda::adjusted_cross_entropy_resident<float, 32, 8>)), "32 x 8");
      check::that(ran(cuda::adjusted_cross_entropy_stream<double>), "stream, float64");
    });
  }
  return check::finish();
}
