// The CUDA kernels of topz_gate, run on the CPU in three thread orders against the definition in
// double precision: every kernel, storage type and kind of row.
#include "ops/topz_gate/topz_gate_cuda.cu"
#include "tests/router.h"

namespace {

using namespace ltk;
using check::Matrix;
using router::Kind;

template <class Storage>
struct Problem {
  using Acc = Accumulate<Storage>;

  int64_t rows, columns, width, hidden, z;
  Matrix<Storage> logits, feature;
  Matrix<Acc> w1, b1, w2, b2, upstream;
  Matrix<Acc> gate, top, units, inverse_norm;
  std::vector<int32_t> index;
  Matrix<Storage> d_logits, d_feature;
  Matrix<Acc> d_w1, d_b1, d_w2, d_b2;

  Problem(int64_t rows, int64_t columns, int64_t width, int64_t hidden, int64_t z, int64_t gap,
          Kind kind)
      : rows(rows),
        columns(columns),
        width(width),
        hidden(hidden),
        z(z),
        logits(rows, columns, columns + gap, gap),
        feature(rows, width, width + gap),
        w1(hidden, width),
        b1(1, hidden),
        w2(1, z + hidden),
        b2(1, 1),
        upstream(1, rows),
        gate(1, rows),
        top(rows, z),
        units(rows, hidden),
        inverse_norm(1, rows),
        index(size_t(rows * z)),
        d_logits(rows, columns),
        d_feature(rows, width),
        d_w1(hidden, width),
        d_b1(1, hidden),
        d_w2(1, z + hidden),
        d_b2(1, 1) {
    std::mt19937 random(static_cast<unsigned>(columns * 3 + z));
    router::fill(logits, random, kind);
    check::fill_normal(feature, random, 1);
    for (int64_t d = 0; d < width && rows > 2; ++d) feature.set(2, d, 0);
    for (Matrix<Acc>* x : {&w1, &b1, &w2, &b2, &upstream}) check::fill_normal(*x, random, 1);
  }

  const char* forward() {
    for (Matrix<Acc>* x : {&gate, &top, &units, &inverse_norm}) x->poison();
    TopzGateParams<Acc> p{};
    p.rows = rows;
    p.columns = columns;
    p.width = width;
    p.hidden = hidden;
    p.z = z;
    p.logits = logits.data();
    p.logits_stride = logits.stride();
    p.feature = feature.data();
    p.feature_stride = feature.stride();
    p.feature_dtype = check::kDType<Storage>;
    p.w1 = w1.data();
    p.b1 = b1.data();
    p.w2 = w2.data();
    p.b2 = b2.data();
    p.gate = gate.data();
    p.top = top.data();
    p.index = index.data();
    p.units = units.data();
    p.inverse_norm = inverse_norm.data();
    std::unique_ptr<char[]> workspace(new char[size_t(topz_gate_workspace(p))]);
    return topz_gate_cuda(p, check::kDType<Storage>, workspace.get(),
                          CudaLaunch{nullptr, 0, nullptr});
  }

  const char* backward() {
    for (Matrix<Storage>* x : {&d_logits, &d_feature}) x->poison();
    for (Matrix<Acc>* x : {&d_w1, &d_b1, &d_w2, &d_b2}) x->poison();
    TopzGateGradientParams<Acc> p{};
    p.rows = rows;
    p.columns = columns;
    p.width = width;
    p.hidden = hidden;
    p.z = z;
    p.upstream = upstream.data();
    p.feature = feature.data();
    p.feature_stride = feature.stride();
    p.feature_dtype = check::kDType<Storage>;
    p.w1 = w1.data();
    p.w2 = w2.data();
    p.top = top.data();
    p.index = index.data();
    p.units = units.data();
    p.inverse_norm = inverse_norm.data();
    p.d_logits = d_logits.data();
    p.d_feature = d_feature.data();
    p.d_w1 = d_w1.data();
    p.d_b1 = d_b1.data();
    p.d_w2 = d_w2.data();
    p.d_b2 = d_b2.data();
    return topz_gate_gradient_cuda(p, check::kDType<Storage>, CudaLaunch{nullptr, 0, nullptr});
  }
};

template <class Storage>
void compare(const Problem<Storage>& x) {
  const double tolerance = check::kArithmetic<Storage> * 20 * double(x.hidden + x.z + 4);
  const double stored = check::kRounding<Storage>;
  const auto vector = [](int64_t size) { return std::vector<double>(size_t(size), 0.); };
  std::vector<double> d_w1 = vector(x.hidden * x.width), d_b1 = vector(x.hidden);
  std::vector<double> d_w2 = vector(x.z + x.hidden), size_w2 = vector(x.z + x.hidden);
  double d_b2 = 0, least = 1e-12;
  for (int64_t n = 0; n < x.rows; ++n) {
    const std::string where = " of row " + std::to_string(n);
    const auto order = router::sorted(x.logits, n);
    const double first = x.logits(n, order[0]), g = x.upstream(0, n);
    double gate = x.b2(0, 0), norm = 0;
    std::vector<double> d_logits = vector(x.columns);
    for (int64_t k = 0; k < x.z; ++k) {
      const int64_t c = order[size_t(k)];
      const double t = router::as_gate_takes_it(x.logits(n, c), first);
      const bool none = x.logits(n, c) == -router::kInf;
      check::close(x.top(n, k), t, 0, "the top" + where);
      check::that(x.index[size_t(n * x.z + k)] == (none ? -1 : c), "the index" + where);
      gate += x.w2(0, k) * t;
      d_w2[size_t(k)] += g * t;
      size_w2[size_t(k)] += std::fabs(g * t);
      if (!none) d_logits[size_t(c)] = g * x.w2(0, k);
    }
    for (int64_t d = 0; d < x.width; ++d) norm += x.feature(n, d) * x.feature(n, d);
    norm = std::sqrt(norm);
    const double r = 1 / std::max(norm, least);
    std::vector<double> of_unit = vector(x.width);
    for (int64_t j = 0; j < x.hidden; ++j) {
      double u = 0;
      for (int64_t d = 0; d < x.width; ++d) u += x.w1(j, d) * x.feature(n, d) * r;
      u += x.b1(0, j);
      check::close(x.units(n, j), u > 0 ? u : 0, tolerance, "a unit" + where);
      const double slope = u > 0 ? g * x.w2(0, x.z + j) : 0;
      if (u > 0) gate += u * x.w2(0, x.z + j);
      d_w2[size_t(x.z + j)] += u > 0 ? g * u : 0;
      size_w2[size_t(x.z + j)] += std::fabs(g * u);
      d_b1[size_t(j)] += slope;
      for (int64_t d = 0; d < x.width; ++d) {
        d_w1[size_t(j * x.width + d)] += slope * x.feature(n, d) * r;
        of_unit[size_t(d)] += slope * x.w1(j, d);
      }
    }
    check::close(x.gate(0, n), gate, tolerance * (1 + std::fabs(gate)), "the gate" + where);
    d_b2 += g;
    for (int64_t c = 0; c < x.columns; ++c) {
      const double want = d_logits[size_t(c)];
      check::close(x.d_logits(n, c), want, (stored + 1e-7) * std::fabs(want) + 1e-7,
                   [&] { return "the gradient of logit " + std::to_string(c) + where; });
    }
    double along = 0, size = 1;
    for (int64_t d = 0; d < x.width; ++d) {
      along += x.feature(n, d) * r * of_unit[size_t(d)];
      size += std::fabs(of_unit[size_t(d)]);
    }
    if (norm < least) along = 0;
    for (int64_t d = 0; d < x.width; ++d) {
      const double want = r * (of_unit[size_t(d)] - x.feature(n, d) * r * along);
      if (std::is_same_v<Storage, Half> && std::fabs(want) > 6e4) continue;  // overflows
      check::close(x.d_feature(n, d), want, r * size * tolerance + stored * std::fabs(want),
                   [&] { return "the gradient of feature " + std::to_string(d) + where; });
    }
  }
  const double many = tolerance * double(x.rows + 1) * 10;
  for (int64_t i = 0; i < x.hidden * x.width; ++i)
    check::close(x.d_w1.data()[i], d_w1[size_t(i)], many, "d_w1");
  for (int64_t j = 0; j < x.hidden; ++j) check::close(x.d_b1(0, j), d_b1[size_t(j)], many, "d_b1");
  for (int64_t k = 0; k < x.z + x.hidden; ++k)
    check::close(x.d_w2(0, k), d_w2[size_t(k)], many * (1 + size_w2[size_t(k)]), "d_w2");
  check::close(x.d_b2(0, 0), d_b2, many, "d_b2");
}

template <class Storage>
void run(int64_t rows, int64_t columns, int64_t width, int64_t hidden, int64_t z, int64_t gap = 0,
         Kind kind = Kind::Normal) {
  check::context = std::string(check::kTypeName<Storage>) + " N=" + std::to_string(rows) +
                   " C=" + std::to_string(columns) + " z=" + std::to_string(z) + " kind " +
                   std::to_string(static_cast<int>(kind));
  Problem<Storage> problem(rows, columns, width, hidden, z, gap, kind);
  std::vector<char> first;
  for (simt::Order order : check::kOrders) {
    simt::settings.order = order;
    for (const char* error : {problem.forward(), problem.backward()})
      if (!check::that(!error, error ? error : "")) return;
    compare(problem);
    std::vector<char> bytes = problem.gate.bytes();
    for (const auto& more : {problem.d_w1.bytes(), problem.d_w2.bytes(), problem.d_feature.bytes()})
      bytes.insert(bytes.end(), more.begin(), more.end());
    if (first.empty()) first = bytes;
    check::that(bytes == first, "the result depends on the order of the threads");
  }
}

template <class Storage>
void every_kernel() {
  // A warp a row: less than a step, steps and a rest, ties over several merges.
  run<Storage>(3, 1, 1, 1, 1);
  run<Storage>(9, 7, 3, 2, 7, 3);
  run<Storage>(11, 100, 33, 16, 30, 1);
  run<Storage>(5, 300, 5, 9, 64);
  run<Storage>(0, 10, 4, 3, 2);
  for (Kind kind : router::kKinds) run<Storage>(6, 130, 6, 4, 33, 1, kind);
  // A block a row.
  for (Kind kind : router::kKinds) run<Storage>(4, 1031, 6, 4, 50, 1, kind);
  if (!check::kReduced) run<Storage>(3, 8142, 70, 16, 30);
  // More than a warp keeps.
  run<Storage>(3, 65, 5, 4, 65, 1);
  for (Kind kind : router::kKinds) run<Storage>(4, 150, 6, 4, 80, 1, kind);
}

}  // namespace

int main() {
  check::test("float32: every kernel", every_kernel<float>);
  check::test("float16: every kernel", every_kernel<Half>);
  check::test("bfloat16: every kernel", every_kernel<BFloat16>);
  check::test("float64: every kernel", every_kernel<double>);
  check::test("keys are ordered as the values", [] {
    using namespace ltk::cuda;
    const float inf = kInfinity<float>;
    float before = -inf;
    check::that(key_of(-inf) > 0 && key_of(-0.f) == key_of(0.f), "the keys of -inf and -0");
    for (float x : {-3e38f, -1.f, -1e-40f, 0.f, 1e-40f, 1.f, 3e38f, inf, kNaN<float>}) {
      check::that(key_of(x) > key_of(before), "the key of " + check::number(x));
      check::close(value_of<float>(key_of(x)), x, 0, "the value of a key");
      before = x;
    }
    check::that(key_of(-kNaN<float>) == key_of(kNaN<float>), "the keys of NaN");
  });
  check::test("more hidden units than shared memory holds are refused", [] {
    Problem<float> problem(1, 3, 1, 60000, 1, 0, Kind::Normal);
    const char* error = problem.forward();
    check::that(error && std::string(error).find("hidden") != std::string::npos, "no error");
  });
  return check::finish();
}
