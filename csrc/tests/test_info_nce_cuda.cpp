// The CUDA kernels of info_nce, run on the CPU in three thread orders against the definition in
// double precision: every tiling, type, layout and number of parts.
#include "ops/info_nce/info_nce_cuda.cu"
#include "tests/check.h"

namespace {

using namespace ltk;
using check::Matrix;

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Features {
  Reduction reduction = Reduction::Mean;
  bool gradient = true, row_temperature = false, transposed_queue = false;
  double scale = 1, temperature = 0.2;
  int multiprocessors = 4;
};

template <class QueryType, class QueueType>
struct Problem {
  using Acc = Accumulate<QueryType>;

  Features features;
  int64_t rows, columns, queue_rows;
  Matrix<QueryType> query, key, grad;
  Matrix<QueueType> queue;
  Matrix<Acc> row_loss, grad_scale;
  std::vector<Acc> temperature, workspace;
  Acc loss = 0;
  unsigned counter = 77;  // whatever was there

  Problem(const Features& f, int64_t n, int64_t d, int64_t q)
      : features(f),
        rows(n),
        columns(d),
        queue_rows(q),
        query(n, d, d + 3, 1),
        key(n, d),
        grad(n, d),
        queue(f.transposed_queue ? d : q, f.transposed_queue ? q : d,
              (f.transposed_queue ? q : d) + 1, 1),
        row_loss(n, 1),
        grad_scale(n, 1) {
    std::mt19937 random(static_cast<unsigned>(n * 31 + d * 7 + q));
    const double norm = f.scale / std::sqrt(double(d));
    check::fill_normal(query, random, norm);
    check::fill_normal(key, random, norm);
    check::fill_normal(queue, random, norm);
    std::uniform_real_distribution<double> uniform(0.1, 1);
    for (int64_t i = 0; i < n; ++i) temperature.push_back(Acc(uniform(random)));
  }

  double u(int64_t j, int64_t d) const {
    return features.transposed_queue ? queue(d, j) : queue(j, d);
  }
  double tau(int64_t n) const {
    return features.row_temperature ? double(temperature[size_t(n)]) : features.temperature;
  }

  InfoNceParams<Acc> params() {
    InfoNceParams<Acc> p{};
    p.rows = rows;
    p.columns = columns;
    p.queue_rows = queue_rows;
    p.query = {query.data(), check::kDType<QueryType>, query.stride(), 1};
    p.key = {key.data(), check::kDType<QueryType>, key.stride(), 1};
    const bool t = features.transposed_queue;
    p.queue = {queue.data(), check::kDType<QueueType>, t ? 1 : queue.stride(),
               t ? queue.stride() : 1};
    p.temperature = Acc(features.temperature);
    p.row_temperature = features.row_temperature ? temperature.data() : nullptr;
    p.reduction = features.reduction;
    p.factor = p.reduction == Reduction::Mean ? Acc(1) / Acc(rows) : Acc(1);
    p.row_loss = row_loss.data();
    p.loss = p.reduction == Reduction::None ? nullptr : &loss;
    p.grad = features.gradient ? grad.data() : nullptr;
    p.grad_scale =
        features.gradient && std::is_same_v<QueryType, Half> ? grad_scale.data() : nullptr;
    return p;
  }

  const char* run(int64_t* parts = nullptr) {
    grad.poison();
    row_loss.poison();
    loss = -1;
    simt::settings.multiprocessors = features.multiprocessors;
    InfoNceParams<Acc> p = params();
    if (const char* error = info_nce_cuda_plan(p, 0)) return error;
    workspace.assign(size_t(info_nce_cuda_workspace(p)), std::numeric_limits<Acc>::quiet_NaN());
    p.workspace = workspace.data();
    if (parts) *parts = p.parts;
    return info_nce_cuda(p, CudaLaunch{nullptr, 0, &counter});
  }
};

template <class QueryType, class QueueType>
void compare(Problem<QueryType, QueueType>& problem) {
  const int64_t rows = problem.rows, columns = problem.columns, size = problem.queue_rows;
  const Features& f = problem.features;
  const double arithmetic = check::kArithmetic<QueryType>;
  const double factor = f.reduction == Reduction::Mean ? 1. / double(rows) : 1;
  double total = 0, room = 0;
  for (int64_t n = 0; n < rows; ++n) {
    const double tau = problem.tau(n);
    std::vector<double> s(size_t(size) + 1, 0.);
    double most = 0, top = -kInf;
    for (int64_t j = 0; j <= size; ++j) {
      double terms = 0;
      for (int64_t d = 0; d < columns; ++d) {
        const double term =
            problem.query(n, d) * (j == 0 ? problem.key(n, d) : problem.u(j - 1, d)) / tau;
        s[size_t(j)] += term;
        terms += std::fabs(term);
      }
      if (std::isfinite(terms)) most = std::max(most, terms);
      top = std::fmax(top, s[size_t(j)]);
    }
    double sum = 0;
    for (double x : s) sum += std::exp(x - top);
    const double loss = top + std::log(sum) - s[0];
    total += loss;
    const double tolerance = arithmetic * (1 + most);
    room += tolerance;
    check::close(problem.row_loss(n, 0), loss, tolerance * (1 + std::fabs(loss)),
                 [&] { return "the loss of row " + std::to_string(n); });
    if (!f.gradient) continue;
    const double stored = problem.params().grad_scale ? double(problem.grad_scale(n, 0)) : 1;
    std::vector<double> want(size_t(columns), 0.);
    double largest = 0;
    for (int64_t d = 0; d < columns; ++d) {
      double g = (std::exp(s[0] - top) / sum - 1) * problem.key(n, d);
      double magnitude = std::fabs(problem.key(n, d));
      for (int64_t j = 0; j < size; ++j) {
        const double p = std::exp(s[size_t(j) + 1] - top) / sum;
        g += p * problem.u(j, d);
        magnitude += p * std::fabs(problem.u(j, d));
      }
      g *= factor / tau;
      const double off = tolerance * magnitude * factor / tau;
      largest = std::max(largest, std::fabs(g));
      check::close(
          problem.grad(n, d) * stored, g,
          2 * off + 2 * check::kRounding<QueryType> * std::fabs(g) +
              stored * 6e-8 * (stored == 1 ? 0 : 1),
          [&] { return "the gradient of " + std::to_string(n) + ", " + std::to_string(d); });
    }
    if (problem.params().grad_scale && largest > 0 && std::isfinite(largest)) {
      check::that(largest / stored < 65000 && largest / stored > 100, "the range of float16");
    }
  }
  if (f.reduction != Reduction::None) {
    const double want = f.reduction == Reduction::Mean ? total / double(rows) : total;
    check::close(problem.loss, want, room + 1e-6 * std::fabs(want), "the loss");
  }
}

template <class QueryType, class QueueType>
void run(const Features& f, int64_t n, int64_t d, int64_t q,
         const std::function<void(Problem<QueryType, QueueType>&)>& change = nullptr) {
  Problem<QueryType, QueueType> problem(f, n, d, q);
  if (change) change(problem);
  for (simt::Order order : check::kOrders) {
    check::context = std::string(check::kTypeName<QueryType>) + " " + std::to_string(n) + " x " +
                     std::to_string(d) + ", queue " + check::kTypeName<QueueType> + " " +
                     std::to_string(q) + ", " + check::order_name(order);
    simt::settings.order = order;
    const std::vector<char> before = problem.queue.bytes();
    const char* error = problem.run();
    if (!check::that(!error, error ? error : "")) return;
    check::that(problem.queue.bytes() == before, "the queue was written to");
    check::that(problem.counter == 0, "the counter is left at zero");
    compare(problem);
  }
}

template <class QueryType, class QueueType>
void every_size() {
  Features f;
  run<QueryType, QueueType>(f, 1, 1, 1);
  run<QueryType, QueueType>(f, 5, 64, 63);
  f.reduction = Reduction::Sum;
  f.row_temperature = true;
  run<QueryType, QueueType>(f, 70, 65, 200);
  f.transposed_queue = true;
  run<QueryType, QueueType>(f, 33, 128, 130);
  f.reduction = Reduction::None;
  f.row_temperature = false;
  run<QueryType, QueueType>(f, 17, 130, 300);
  if (check::kReduced) return;
  f.transposed_queue = false;
  run<QueryType, QueueType>(f, 20, 300, 150);
  run<QueryType, QueueType>(f, 9, 700, 140);
  f.gradient = false;
  run<QueryType, QueueType>(f, 66, 70, 140);
}

template <class Type>
void edges() {
  Features f;
  for (bool gradient : {true, false}) {
    f.gradient = gradient;
    run<Type, Type>(f, 3, 5, 0);  // the loss is 0
    f.scale = 100;
    run<Type, Type>(f, 4, 70, 200);
    f.scale = 1;
    f.reduction = Reduction::None;
    for (double bad : {kInf, -kInf, std::nan("")}) {
      run<Type, Type>(f, 3, 5, 70, [&](auto& problem) { problem.query.set(1, 2, bad); });
      run<Type, Type>(f, 3, 5, 70, [&](auto& problem) { problem.key.set(1, 2, bad); });
    }
    // Similarities of -inf alone, then one that is finite; of -inf to the key.
    run<Type, Type>(f, 2, 1, 300, [&](auto& problem) {
      for (int64_t j = 0; j < 300; ++j) problem.queue.set(j, 0, j < 290 ? -kInf : 1.);
      problem.query.set(0, 0, 1);
      problem.query.set(1, 0, 2);
    });
    f.reduction = Reduction::Mean;
  }
  Problem<Type, Type> nothing(f, 0, 4, 3);
  for (Reduction reduction : {Reduction::Mean, Reduction::Sum, Reduction::None}) {
    nothing.features.reduction = reduction;
    check::that(!nothing.run(), "no rows");
    const double want = reduction == Reduction::Mean  ? std::nan("")
                        : reduction == Reduction::Sum ? 0
                                                      : -1;
    check::close(nothing.loss, want, 0, "the loss of no rows");
  }
}

void parts() {
  Features f;
  // Twice the multiprocessors; 16 blocks in parts of at least two, all as long as the first.
  for (auto [multiprocessors, want] : {std::pair<int, int64_t>{1, 2}, {2, 4}, {5, 6}, {40, 6}}) {
    f.multiprocessors = multiprocessors;
    Problem<float, float> problem(f, 20, 40, 1000);
    int64_t parts = 0;
    problem.run(&parts);
    check::close(double(parts), double(want), 0, "the number of parts");
    compare(problem);
  }
}

// The accumulators of all parts take at most half the memory of the queue.
void memory() {
  for (int64_t n : {1, 64, 256, 4096}) {
    for (int64_t q : {0, 1024, 65536}) {
      for (DType dtype : {DType::Float32, DType::BFloat16}) {
        simt::settings.multiprocessors = 132;
        InfoNceParams<float> p{};
        p.rows = n;
        p.columns = 128;
        p.queue_rows = q;
        p.queue = {nullptr, dtype, 128, 1};
        p.grad = &p;
        check::that(!info_nce_cuda_plan(p, 0), "a plan");
        const int64_t bytes = info_nce_cuda_workspace(p) * 4;
        const int64_t queue = q * 128 * (dtype == DType::Float32 ? 4 : 2);
        check::that(bytes <= std::max(queue / 2, n * 130 * 4), "the workspace");
        check::that(p.parts >= 1 && (q == 0 || p.parts * p.part_rows >= q), "the whole queue");
      }
    }
  }
}

}  // namespace

int main() {
  check::test("float32", every_size<float, float>);
  check::test("float64", every_size<double, double>);
  check::test("float16", every_size<Half, Half>);
  check::test("bfloat16", every_size<BFloat16, BFloat16>);
  check::test("float16 against float32", every_size<Half, float>);
  check::test("float64 against bfloat16", every_size<double, BFloat16>);
  check::test("float32: edges", edges<float>);
  check::test("float64: edges", edges<double>);
  check::test("bfloat16: edges", edges<BFloat16>);
  check::test("the queue in parts", parts);
  check::test("memory", memory);
  return check::finish();
}
