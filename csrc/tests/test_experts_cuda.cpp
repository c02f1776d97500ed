// The CUDA kernels of experts, run on the CPU in three thread orders against the definition in
// double precision: every kernel, storage type, form and number of experts.
#include "ops/experts/experts_cuda.cu"
#include "tests/check.h"

namespace {

using namespace ltk;
using check::Matrix;
using Ce = ExpertCrossEntropy;
using Kl = ExpertDivergence;

enum class T { Scalar, Row, Column };
enum class Pair { Both, First, Second };  // which distributions have a gradient

struct Features {
  const char* name;
  Ce ce = Ce::None;
  Kl kl = Kl::None;
  double temperature = 1;
  T kind = T::Scalar;
  double margin = 0;  // the largest
  bool class_weight = false, sample_weight = false, weight_of_second = false;
  Pair pair = Pair::Both;
  Reduction reduction = Reduction::Mean;
  bool gradient = true, row_factor = false;
};

enum class Logits { Normal, Huge, Holes };

template <class Storage>
struct Problem {
  using Acc = Accumulate<Storage>;

  Features features;
  int experts;
  int64_t rows, columns;
  std::vector<Matrix<Storage>> logits;
  Matrix<Storage> grad;
  Matrix<Acc> row_loss, grad_scale;
  std::vector<int64_t> target;
  std::vector<Acc> margin, class_weight, row_temperature, column_temperature, row_factor;
  std::vector<Acc> sample_weight;
  Acc loss = 0;
  unsigned counter = 77;  // whatever was there

  Problem(const Features& f, int experts, int64_t rows, int64_t columns, int64_t gap,
          int64_t offset, Logits kind)
      : features(f),
        experts(experts),
        rows(rows),
        columns(columns),
        grad(experts * rows, columns),
        row_loss(rows, 1),
        grad_scale(experts * rows, 1) {
    std::mt19937 random(static_cast<unsigned>(columns * 5 + rows + experts));
    std::uniform_real_distribution<double> uniform(0, 1);
    for (int k = 0; k < experts; ++k) {  // the last expert starts elsewhere
      logits.emplace_back(rows, columns, columns + gap, k == experts - 1 ? offset : 0);
      check::fill_normal(logits.back(), random, kind == Logits::Huge ? 1e4 : 2);
    }
    for (int64_t c = 0; c < columns; ++c) {
      margin.push_back(Acc(f.margin * (2 * uniform(random) - 0.5)));
      class_weight.push_back(c % 7 == 3 ? Acc(0) : Acc(0.1 + uniform(random)));
      column_temperature.push_back(Acc(0.5 + uniform(random)));
    }
    for (int64_t n = 0; n < rows; ++n) {
      target.push_back(static_cast<int64_t>(uniform(random) * double(columns)));
      row_temperature.push_back(n % 3 == 1 ? Acc(2) : Acc(0.5 + uniform(random)));
      row_factor.push_back(Acc(uniform(random) + 0.5));
    }
    for (int64_t i = 0; i < experts * rows; ++i) {
      sample_weight.push_back(i % 5 == 2 ? Acc(0) : Acc(uniform(random) * 2));
    }
    if (kind == Logits::Holes) dig_holes();
  }

  void dig_holes() {
    const double inf = std::numeric_limits<double>::infinity();
    const int last = experts - 1;
    const auto row = [&](int64_t n) { return n < rows; };
    for (int64_t c = 0; c < columns; ++c) {
      if (row(0) && c % 2 == 0) logits[0].set(0, c, -inf);  // one expert lacks classes
      if (row(2)) logits[0].set(2, c, -inf);                // one expert has none
      if (row(6) && c % 2 == 1) {                           // all lack the same
        for (auto& z : logits) z.set(6, c, -inf);
      }
      if (row(7)) logits[size_t(c % 2 ? last : 0)].set(7, c, -inf);  // none in the mean
    }
    if (row(1)) logits[size_t(last)].set(1, target[1], -inf);
    if (row(3)) logits[0].set(3, columns - 1, std::nan(""));
    if (row(4)) logits[size_t(last)].set(4, 0, inf);
    for (auto& z : logits) {
      if (row(5)) z.set(5, target[5], 200);  // nearly sure
      if (row(8)) z.set(8, 0, -300);         // probability 0 of what one expert lacks
      if (row(9)) z.set(9, 0, -80);          // and next to 0
    }
    if (row(8)) logits[size_t(last)].set(8, 0, -inf);
    if (row(9)) logits[size_t(last)].set(9, 0, -inf);
  }

  ExpertsParams<Acc> params() {
    ExpertsParams<Acc> p{};
    p.rows = rows;
    p.columns = columns;
    p.experts = experts;
    for (int k = 0; k < experts; ++k) {
      p.logits[k] = logits[size_t(k)].data();
      p.logits_stride[k] = logits[size_t(k)].stride();
    }
    const Features& f = features;
    const bool mean = f.reduction == Reduction::Mean;
    p.cross_entropy = f.ce;
    if (f.ce != Ce::None) {
      p.target = target.data();
      p.margin = f.margin != 0 ? margin.data() : nullptr;
      p.class_weight = f.class_weight ? class_weight.data() : nullptr;
      p.ce_factor = Acc(0.75);
      p.ce_reduction = !mean ? Acc(1) : f.class_weight ? Acc(-1) : 1 / Acc(rows);
    }
    p.divergence = f.kl;
    if (f.kl != Kl::None) {
      p.temperature = Acc(f.temperature);
      p.row_temperature = f.kind == T::Row ? row_temperature.data() : nullptr;
      p.column_temperature = f.kind == T::Column ? column_temperature.data() : nullptr;
      p.kl_factor = f.kl == Kl::Mean ? Acc(-0.45) : Acc(1.5);
      p.row_factor = f.row_factor ? row_factor.data() : nullptr;
      p.row_factor_stride = rows % 2 ? 1 : 0;
      p.kl_reduction = mean ? 1 / Acc(rows) : Acc(1);
      p.sample_weight = f.sample_weight ? sample_weight.data() : nullptr;
      p.weight_of_second = f.weight_of_second;
      p.first_gradient = f.pair != Pair::Second;
      p.second_gradient = f.pair != Pair::First;
    }
    p.row_loss = row_loss.data();
    p.loss = f.reduction == Reduction::None ? nullptr : &loss;
    p.grad = f.gradient ? grad.data() : nullptr;
    p.grad_scale = f.gradient && std::is_same_v<Storage, Half> ? grad_scale.data() : nullptr;
    return p;
  }

  const char* run() {
    grad.poison();
    row_loss.poison();
    grad_scale.poison();
    loss = -1;
    return experts_cuda(params(), check::kDType<Storage>, CudaLaunch{nullptr, 0, &counter});
  }
};

using Vector = std::vector<double>;
using Rows = std::vector<Vector>;

// log softmax(z / T); NaN where no logit is finite.
Vector log_softmax(const Vector& z, const Vector& temperature) {
  Vector x(z.size());
  double top = -INFINITY, sum = 0;
  for (size_t c = 0; c < z.size(); ++c) {
    x[c] = z[c] / temperature[c];
    top = std::isnan(x[c]) || x[c] > top ? x[c] : top;
  }
  for (double v : x) sum += std::exp(v - top);
  for (double& v : x) v = top == -INFINITY ? NAN : v - top - std::log(sum);
  return x;
}

// weight * term, where a weight of 0 takes an infinite term out.
double weighted(double weight, double term) {
  return weight == 0 && std::isinf(term) ? 0 : weight * term;
}

// What a row should give, and what rounding may change.
struct Expected {
  double loss = 0, loss_size = 0;
  Rows grad, size;
};

template <class Storage>
Expected expected(const Problem<Storage>& problem, const ExpertsParams<Accumulate<Storage>>& p,
                  int64_t n, double ce_reduction) {
  // Of what is -inf and what rounds to it, the arithmetic of the kernel decides.
  const double least = std::is_same_v<Storage, double> ? -745.13 : -103.97;
  const size_t K = size_t(p.experts), C = size_t(p.columns);
  Expected out;
  out.grad.assign(K, Vector(C, 0));
  out.size.assign(K, Vector(C, 0));
  Rows z(K, Vector(C));
  Vector mean(C, 0), one(C, 1), temperature(C, double(p.temperature));
  for (size_t c = 0; c < C; ++c) {
    for (size_t k = 0; k < K; ++k) {
      z[k][c] = problem.logits[k](n, int64_t(c));
      mean[c] += z[k][c] / double(K);
    }
    if (p.row_temperature) temperature[c] = double(p.row_temperature[n]);
    if (p.column_temperature) temperature[c] = double(p.column_temperature[c]);
  }

  if (p.cross_entropy != Ce::None) {
    const size_t y = size_t(p.target[n]);
    const double w = p.class_weight ? double(p.class_weight[y]) : 1;
    const double e = double(p.ce_factor) * ce_reduction * w;
    const auto add = [&](Vector logits, const std::vector<size_t>& to) {
      const bool constant = logits[y] == -INFINITY;
      if (p.margin) logits[y] -= double(p.margin[y]);
      const Vector log_prob = log_softmax(logits, one);
      out.loss += double(p.ce_factor) * ce_reduction * weighted(w, -log_prob[y]);
      out.loss_size += weighted(std::fabs(e), 1 + std::fabs(log_prob[y]));
      for (size_t k : to) {
        for (size_t c = 0; c < C; ++c) {
          const double pull = c == y && !constant ? 1 : 0;
          out.grad[k][c] += e / double(to.size()) * (std::exp(log_prob[c]) - pull);
          out.size[k][c] += std::fabs(e) / double(to.size());
        }
      }
    };
    std::vector<size_t> all(K);
    for (size_t k = 0; k < K; ++k) all[k] = k;
    if (p.cross_entropy == Ce::OfMean) add(mean, all);
    for (size_t k = 0; k < K && p.cross_entropy == Ce::Each; ++k) add(z[k], {k});
  }
  if (p.divergence == Kl::None) return out;

  const double factor = double(p.kl_factor) *
                        (p.row_factor ? double(p.row_factor[n * p.row_factor_stride]) : 1) *
                        double(p.kl_reduction);
  Rows log_prob;
  for (const Vector& logits : z) log_prob.push_back(log_softmax(logits, temperature));
  const auto prob = [&](double log_p) { return log_p < least ? 0 : std::exp(log_p); };

  if (p.divergence == Kl::Mean) {
    const Vector log_q = log_softmax(mean, temperature);
    for (size_t k = 0; k < K; ++k) {
      for (size_t c = 0; c < C; ++c) {
        const double q = prob(log_q[c]);
        const double term = q == 0 ? 0 : q * (log_q[c] - log_prob[k][c]);
        out.loss += factor * term;
        out.loss_size += std::fabs(factor) * (std::fabs(term) + 1. / double(C));
        const double slope = factor / temperature[c];
        out.grad[k][c] += slope * (prob(log_prob[k][c]) - q);
        out.size[k][c] += std::fabs(slope);
      }
    }
    return out;
  }

  bool infinite = false, poisoned = false;
  for (size_t c = 0; c < C; ++c) {
    bool held = false, lacking = false;
    for (size_t k = 0; k < K; ++k) {
      held = held || prob(log_prob[k][c]) > 0;
      lacking = lacking || log_prob[k][c] == -INFINITY;
      poisoned = poisoned || std::isnan(log_prob[k][c]);
    }
    infinite = infinite || (held && lacking);
  }
  const auto weight = [&](size_t k) {
    return p.sample_weight ? double(p.sample_weight[int64_t(k) * p.rows + n]) : 1.;
  };
  for (size_t i = 0; i < K; ++i) {
    for (size_t j = 0; j < K; ++j) {
      const double w = weight(p.weight_of_second ? j : i);
      double kl = 0, size = 1;
      const auto term = [&](size_t c) {
        const double q = prob(log_prob[i][c]);
        return q == 0 || i == j ? 0 * q : q * (log_prob[i][c] - log_prob[j][c]);
      };
      for (size_t c = 0; c < C; ++c) {
        kl += term(c);
        size += std::fabs(term(c));
      }
      out.loss += weighted(w, factor * kl);
      out.loss_size += weighted(std::fabs(w * factor), size);
      for (size_t c = 0; c < C; ++c) {
        const double k = factor / temperature[c] * w;
        const double q = prob(log_prob[i][c]), r = prob(log_prob[j][c]);
        if (p.second_gradient && z[j][c] != -INFINITY) out.grad[j][c] += k * (r - q);
        if (p.first_gradient && !infinite && q > 0) out.grad[i][c] += k * (term(c) - q * kl);
        out.size[j][c] += std::fabs(k);
        // The sums of the exponents meet before they cancel.
        out.size[i][c] += infinite ? 0 : std::fabs(k) * (size + std::fabs(term(c)));
      }
    }
  }
  for (size_t k = 0; k < K && poisoned; ++k) out.grad[k].assign(C, NAN);
  return out;
}

template <class Storage>
void compare(Problem<Storage>& problem) {
  using Acc = Accumulate<Storage>;
  const ExpertsParams<Acc> p = problem.params();
  double ce_reduction = double(p.ce_reduction);
  if (ce_reduction < 0) {
    double sum = 0;
    for (int64_t n = 0; n < p.rows; ++n) sum += double(p.class_weight[p.target[n]]);
    ce_reduction = 1 / sum;
  }
  double total = 0, total_tolerance = 0;
  for (int64_t n = 0; n < p.rows; ++n) {
    const std::string where = " of row " + std::to_string(n);
    const Expected want = expected(problem, p, n, ce_reduction);
    double largest = 1;
    for (const auto& logits : problem.logits) {
      for (int64_t c = 0; c < p.columns; ++c) {
        if (std::isfinite(logits(n, c))) largest = std::max(largest, std::fabs(logits(n, c)));
      }
    }
    // Logits over a temperature and means of logits are rounded, as in plain PyTorch.
    const double tolerance = check::kArithmetic<Storage> + 8 * check::kRounding<Acc> * largest * 2;
    const double loss_tolerance = tolerance * (want.loss_size + std::fabs(want.loss)) + 1e-30;
    check::close(problem.row_loss(n, 0), want.loss, loss_tolerance, "the loss" + where);
    total += want.loss;
    total_tolerance += loss_tolerance;
    if (!p.grad) continue;
    if (p.grad_scale && p.cross_entropy == Ce::None && !p.second_gradient) {
      // Of gradients that may be far below their bounds, the scale follows the largest.
      double most = 0;
      for (const Vector& row : want.grad) {
        for (double g : row) most = std::fmax(most, std::fabs(g));
      }
      check::that(!(most > 1e-25) || double(p.grad_scale[n]) < most / 4096,
                  "the scale is far too large" + where);
    }
    for (int64_t k = 0; k < p.experts; ++k) {
      const double scale = p.grad_scale ? double(p.grad_scale[k * p.rows + n]) : 1;
      for (int64_t c = 0; c < p.columns; ++c) {
        const double g = want.grad[size_t(k)][size_t(c)];
        check::close(problem.grad(k * p.rows + n, c) * scale, g,
                     tolerance * want.size[size_t(k)][size_t(c)] +
                         (check::kRounding<Storage> + 4 * check::kRounding<Acc>)*std::fabs(g) +
                         (std::is_same_v<Storage, Half> ? scale * 6e-8 : 1e-37),
                     [&] {
                       return "the gradient of expert " + std::to_string(k) + " at column " +
                              std::to_string(c) + where;
                     });
      }
    }
  }
  if (p.loss) {
    check::close(problem.loss, total, total_tolerance + 1e-7 * std::fabs(total), "the loss");
  }
}

template <class Storage>
void run_and_compare(const Features& features, int experts, int64_t rows, int64_t columns,
                     int64_t gap = 0, int64_t offset = 0, Logits kind = Logits::Normal) {
  check::context = std::string(check::kTypeName<Storage>) + " K=" + std::to_string(experts) +
                   " N=" + std::to_string(rows) + " C=" + std::to_string(columns) + " " +
                   features.name;
  Problem<Storage> problem(features, experts, rows, columns, gap, offset, kind);
  std::vector<char> first;
  for (simt::Order order : check::kOrders) {
    simt::settings.order = order;
    const char* error = problem.run();
    if (!check::that(!error, error ? error : "")) return;
    check::that(problem.counter == 0 || rows == 0, "the counter is not zero again");
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
    {"ride", Ce::Each, Kl::Mean, 1, T::Scalar, 0.5},
    {"ride, reweighted", Ce::Each, Kl::Mean, 1, T::Column, 0.5, true},
    {"ride without diversity, summed", Ce::Each, Kl::None, 1, T::Scalar, 0.5, true, false, false,
     Pair::Both, Reduction::Sum},
    {"ride, pairwise", Ce::Each, Kl::Pairwise, 2, T::Scalar, 20, true},
    {"collaborative", Ce::OfMean, Kl::Mean, 4, T::Scalar, 0.5},
    {"collaborative alone, no reduction", Ce::OfMean, Kl::None, 1, T::Scalar, 0, true, false, false,
     Pair::Both, Reduction::None},
    {"collaborative, pairwise by class", Ce::OfMean, Kl::Pairwise, 1, T::Column, 300},
    {"wide margins", Ce::Each, Kl::Mean, 1.5, T::Scalar, 200},
    {"diversity by row", Ce::None, Kl::Mean, 1, T::Row, 0, false, false, false, Pair::Both,
     Reduction::Mean, true, true},
    {"diversity by class, no gradient", Ce::None, Kl::Mean, 1, T::Column, 0, false, false, false,
     Pair::Both, Reduction::Mean, false},
    {"pairs", Ce::None, Kl::Pairwise},
    {"pairs, weight of first", Ce::None, Kl::Pairwise, 1, T::Row, 0, false, true, false, Pair::Both,
     Reduction::Sum, true, true},
    {"pairs, weight of second", Ce::None, Kl::Pairwise, 2, T::Scalar, 0, false, true, true},
    {"pairs, gradient of first", Ce::None, Kl::Pairwise, 0.5, T::Scalar, 0, false, true, true,
     Pair::First, Reduction::None},
    {"pairs, gradient of second", Ce::None, Kl::Pairwise, 1, T::Column, 0, false, true, false,
     Pair::Second},
};

// Every `stride`-th of the features, another set each time.
template <class Storage>
void some_features(int stride, int experts, int64_t rows, int64_t columns, Logits kind) {
  constexpr int kCount = sizeof(kFeatures) / sizeof(kFeatures[0]);
  static int turn = 0;
  for (int i = turn++ % stride; i < kCount; i += stride) {
    run_and_compare<Storage>(kFeatures[i], experts, rows, columns, 0, 0, kind);
  }
}

template <class Storage>
void every_shape() {
  const int stride = (std::is_same_v<Storage, float> ? 2 : 4) * (check::kReduced ? 4 : 1);
  for (int64_t columns : {1, 3, 31, 64, 65, 100}) {
    for (int experts : {1, 2, 3, 4, 5, 16}) {
      some_features<Storage>(experts == 16 ? 2 * stride : stride, experts, 3, columns,
                             Logits::Normal);
    }
  }
  for (int64_t columns : {200, 365, 513}) {  // one for each way to hold the rows
    for (int experts : {2, 3, 4}) {
      for (int i : {0, 12}) run_and_compare<Storage>(kFeatures[i], experts, 2, columns);
      if (!check::kReduced) some_features<Storage>(4, experts, 2, columns, Logits::Normal);
    }
  }
  if (check::kReduced) return;
  for (int i : {0, 1, 3, 12}) run_and_compare<Storage>(kFeatures[i], 3, 2, 2049);
  run_and_compare<Storage>(kFeatures[3], 2, 2, 8143);
}

template <class Storage>
void other_layouts() {
  for (int64_t columns : {10, 100, 365, 530}) {
    for (int64_t gap : {1, 8}) {
      for (int i : {0, 1, 3, 12}) {
        run_and_compare<Storage>(kFeatures[i], 3, 3, columns, gap, gap == 8 ? 3 : i % 3);
        if (check::kReduced) break;
      }
    }
  }
}

template <class Storage>
void special_values() {
  const int stride = (std::is_same_v<Storage, float> ? 2 : 4) * (check::kReduced ? 3 : 1);
  for (int64_t columns : {2, 7, 40, 270, 520}) {
    for (int experts : {1, 2, 3, 5}) {
      if (columns > 100 && experts != 3) continue;
      some_features<Storage>(columns > 100 ? 2 * stride : stride, experts, 10, columns,
                             Logits::Holes);
      some_features<Storage>(2 * stride, experts, 3, columns, Logits::Huge);
    }
  }
}

// The rows do not fit into shared memory.
void small_device() {
  simt::settings.shared_memory = 6 * 1024;
  const int stride = check::kReduced ? 7 : 2;
  some_features<float>(stride, 2, 2, 601, Logits::Normal);
  some_features<float>(stride, 3, 10, 530, Logits::Holes);
  some_features<float>(stride, 4, 2, 600, Logits::Huge);
  for (int experts : {2, 3, 4}) {
    some_features<Half>(3 * stride, experts, 2, 1301, Logits::Normal);
    some_features<BFloat16>(3 * stride, experts, 10, 1300, Logits::Holes);
  }
  run_and_compare<float>(kFeatures[3], 3, 3, 701, 2, 1);
  run_and_compare<Half>(kFeatures[12], 3, 3, 1301, 2, 1);
  simt::settings.shared_memory = 227 * 1024;
}

void no_rows() {
  for (Reduction reduction : {Reduction::Mean, Reduction::Sum}) {
    for (const Features& given : kFeatures) {
      Features features = given;
      features.reduction = reduction;
      Problem<float> problem(features, 3, 0, 10, 0, 0, Logits::Normal);
      check::that(!problem.run(), "an error");
      check::close(problem.loss, reduction == Reduction::Mean ? std::nan("") : 0, 0,
                   "the loss of no row");
    }
  }
}

void refusals() {
  for (int64_t bad : {-1, 100}) {
    for (int i : {0, 1}) {  // the second adds up the weights of the targets
      Problem<float> problem(kFeatures[i], 3, 3, 100, 0, 0, Logits::Normal);
      problem.target[2] = bad;
      check::fails_with("target out of range", [&] { problem.run(); });
    }
  }
  Problem<float> problem(kFeatures[0], 3, 3, 100, 0, 0, Logits::Normal);
  const CudaLaunch where{nullptr, 0, &problem.counter};
  check::that(experts_cuda(problem.params(), DType::Float64, where) != nullptr,
              "float64 with float parameters");
  for (int experts : {0, 17}) {
    ExpertsParams<float> p = problem.params();
    p.experts = experts;
    check::that(experts_cuda(p, DType::Float32, where) != nullptr, "0 or 17 experts");
  }
}

template <class Kernel>
bool ran(Kernel* kernel) {
  return simt::launched.count(reinterpret_cast<const void*>(kernel)) != 0;
}

template <class Storage, int kExperts, cuda::Form kForm>
void kernels_of_form_ran() {
  constexpr int kHeld = (kExperts == 4 ? 8 : 16) / cuda::kChunk<Storage>;
  const std::string of =
      " of " + std::to_string(kExperts) + " experts, " + check::kTypeName<Storage>;
  check::that((ran(cuda::experts_resident<Storage, kExperts, kForm, 8, kHeld>)), "8" + of);
  check::that((ran(cuda::experts_resident<Storage, kExperts, kForm, 32, kHeld>)), "32" + of);
  check::that((ran(cuda::experts_shared<Storage, kExperts, kForm>)), "shared" + of);
}

template <class Storage, int kExperts>
void kernels_ran() {
  kernels_of_form_ran<Storage, kExperts, cuda::Form::ToMean>();
  kernels_of_form_ran<Storage, kExperts, cuda::Form::Pairs>();
  check::that((ran(cuda::experts_stream<Storage, kExperts>)), "stream");
}

template <class Storage>
void every_kernel_ran() {
  kernels_ran<Storage, 2>();
  kernels_ran<Storage, 3>();
  kernels_ran<Storage, 4>();
  check::that((ran(cuda::experts_stream<Storage, 0>)), "general");
}

template <class Storage>
void every_feature() {
  const std::string type = check::kTypeName<Storage>;
  check::test((type + ": every shape and feature").c_str(), every_shape<Storage>);
  check::test((type + ": rows that start anywhere").c_str(), other_layouts<Storage>);
  check::test((type + ": -inf, inf, NaN, huge logits").c_str(), special_values<Storage>);
}

}  // namespace

int main() {
  every_feature<float>();
  every_feature<Half>();
  every_feature<BFloat16>();
  every_feature<double>();
  check::test("little shared memory", small_device);
  check::test("many rows", [] {
    run_and_compare<float>(kFeatures[0], 3, check::kReduced ? 600 : 1100, 10);
    run_and_compare<BFloat16>(kFeatures[3], 3, check::kReduced ? 60 : 150, 150);
    simt::settings.multiprocessors = 1;  // blocks loop over the rows, too
    run_and_compare<float>(kFeatures[0], 3, 40, 520);
    run_and_compare<Half>(kFeatures[12], 2, 40, 520);
    run_and_compare<float>(kFeatures[1], 3, 12, 600);
    simt::settings.multiprocessors = 4;
  });
  check::test("no rows", no_rows);
  check::test("bad targets and calls that are refused", refusals);
  if (!check::kReduced) {
    check::test("every kernel ran", [] {
      every_kernel_ran<float>();
      every_kernel_ran<Half>();
      every_kernel_ran<BFloat16>();
      check::that((ran(cuda::experts_stream<double, 0>)), "general, float64");
    });
  }
  return check::finish();
}
