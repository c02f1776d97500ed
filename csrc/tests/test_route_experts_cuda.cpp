// The CUDA kernels of route_experts, run on the CPU in three thread orders against the definition
// in double precision. Logits and features of experts that a sample does not come to are NaN: they
// must not be read.
#include "ops/route_experts/route_experts_cuda.cu"
#include "tests/router.h"

namespace {

using namespace ltk;
using check::Matrix;
using router::Kind;

template <class Storage>
void route_of(int experts, int64_t rows, int64_t columns, int64_t z, bool shared_w2, Kind kind) {
  using Acc = Accumulate<Storage>;
  const int64_t width = 5, hidden = 9, routers = experts - 1;
  check::context = std::string(check::kTypeName<Storage>) + " K=" + std::to_string(experts) +
                   " N=" + std::to_string(rows) + " C=" + std::to_string(columns) +
                   " z=" + std::to_string(z) + " kind " + std::to_string(static_cast<int>(kind));
  std::mt19937 random(static_cast<unsigned>(columns + experts));
  std::vector<Matrix<Storage>> logits, feature;
  Matrix<Acc> w1(routers * hidden, width), b1(routers, hidden), w2(routers, z + hidden);
  Matrix<Acc> b2(1, routers), mean(rows, columns);
  for (Matrix<Acc>* x : {&w1, &b1, &w2, &b2}) check::fill_normal(*x, random, 1);
  std::vector<int64_t> used(size_t(rows), -1), want_used;
  RouteExpertsParams<Acc> p{};
  p.rows = rows;
  p.columns = columns;
  p.width = width;
  p.hidden = hidden;
  p.z = z;
  p.experts = experts;
  for (int k = 0; k < experts; ++k) {
    logits.emplace_back(rows, columns, columns + k, k % 3);
    router::fill(logits.back(), random, kind);
    p.logits[k] = logits.back().data();
    p.logits_stride[k] = logits.back().stride();
    if (k == routers) break;
    feature.emplace_back(rows, width, width + k);
    check::fill_normal(feature.back(), random, 1);
    p.feature[k] = feature.back().data();
    p.feature_stride[k] = feature.back().stride();
  }
  p.feature_dtype = check::kDType<Storage>;
  p.w1 = w1.data();
  p.b1 = b1.data();
  p.w2 = w2.data();
  p.w2_stride = shared_w2 ? 0 : z + hidden;
  p.b2 = b2.data();
  p.b2_stride = shared_w2 ? 0 : 1;
  p.threshold = 0;
  p.mean = mean.data();
  p.used = used.data();

  Matrix<double> want(rows, columns);
  for (int64_t n = 0; n < rows; ++n) {
    Matrix<double> sum(1, columns);
    for (int64_t c = 0; c < columns; ++c) sum.set(0, c, logits[0](n, c));
    int count = 1;
    for (; count < experts; ++count) {
      const int64_t i = count - 1, of = shared_w2 ? 0 : i;
      const auto order = router::sorted(sum, 0);
      double gate = b2(0, of), norm = 0;
      for (int64_t k = 0; k < z; ++k)
        gate += w2(of, k) * router::as_gate_takes_it(sum(0, order[size_t(k)]), sum(0, order[0])) /
                count;
      for (int64_t d = 0; d < width; ++d) norm += std::pow(feature[size_t(i)](n, d), 2);
      for (int64_t j = 0; j < hidden; ++j) {
        double u = b1(i, j);
        for (int64_t d = 0; d < width; ++d)
          u += w1(i * hidden + j, d) * feature[size_t(i)](n, d) / std::sqrt(norm);
        gate += w2(of, z + j) * std::max(u, 0.);
      }
      check::that(!(std::fabs(gate) < 1e-3), "a gate too close to the threshold to test");
      if (!(gate > 0)) break;
      for (int64_t c = 0; c < columns; ++c) sum.set(0, c, sum(0, c) + logits[size_t(count)](n, c));
    }
    want_used.push_back(count);
    for (int64_t c = 0; c < columns; ++c) want.set(n, c, sum(0, c) / count);
    for (int k = count; k < experts; ++k) {
      for (int64_t c = 0; c < columns; ++c) logits[size_t(k)].set(n, c, std::nan(""));
      for (int64_t d = 0; d < width && k < routers; ++d) feature[size_t(k)].set(n, d, std::nan(""));
    }
  }
  for (simt::Order order : check::kOrders) {
    simt::settings.order = order;
    mean.poison();
    std::unique_ptr<char[]> workspace(new char[size_t(route_experts_workspace(p))]);
    const char* error = route_experts_cuda(p, check::kDType<Storage>, workspace.get(),
                                           CudaLaunch{nullptr, 0, nullptr});
    if (!check::that(!error, error ? error : "")) return;
    check::that(used == want_used, "the numbers of experts");
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t c = 0; c < columns; ++c)
        check::close(mean(n, c), want(n, c), check::kArithmetic<Storage> * 10,
                     [&] { return "logit " + std::to_string(c) + " of row " + std::to_string(n); });
  }
}

template <class Storage>
void every_kernel() {
  for (Kind kind : {Kind::Normal, Kind::Ties, Kind::Holes})
    for (bool shared_w2 : {false, true}) {
      route_of<Storage>(3, 9, 37, 7, shared_w2, kind);
      route_of<Storage>(4, 7, 130, 64, shared_w2, kind);
      route_of<Storage>(3, 4, 140, 70, shared_w2, kind);
    }
  route_of<Storage>(2, 6, 1100, 30, true, Kind::Normal);
  route_of<Storage>(1, 3, 5, 2, true, Kind::Normal);
  route_of<Storage>(3, 0, 5, 2, true, Kind::Normal);
}

}  // namespace

int main() {
  check::test("float32: every kernel", every_kernel<float>);
  check::test("float16: every kernel", every_kernel<Half>);
  check::test("bfloat16: every kernel", every_kernel<BFloat16>);
  check::test("float64: every kernel", every_kernel<double>);
  return check::finish();
}
