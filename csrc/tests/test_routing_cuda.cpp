// The CUDA kernels of routing_loss and routing_target, run on the CPU in three thread orders
// against the definition in double precision.
#include "ops/routing/routing_cuda.cu"
#include "tests/router.h"

namespace {

using namespace ltk;
using check::Matrix;
using router::Kind;

template <class Storage>
void loss_of(int64_t count, bool flags, Reduction reduction) {
  using Acc = Accumulate<Storage>;
  check::context = std::string(check::kTypeName<Storage>) + " M=" + std::to_string(count);
  std::mt19937 random(5);
  Matrix<Storage> gate(1, count);
  check::fill_normal(gate, random, 20);
  const double odd[] = {router::kInf, -router::kInf, 0, 6e4, -6e4, std::nan("")};
  for (int64_t i = 0; i < count && i < 6; ++i) gate.set(0, i, odd[i]);
  Matrix<Acc> share(1, count), each(1, count), grad(1, count), loss(1, 1);
  const std::unique_ptr<bool[]> flag(new bool[size_t(count)]);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (int64_t i = 0; i < count; ++i) {
    flag[size_t(i)] = uniform(random) < 0.5;
    share.set(0, i, uniform(random));
  }
  unsigned counter = 77;
  RoutingLossParams<Acc> p{};
  p.count = count;
  p.gate = gate.data();
  p.help_flag = flags ? flag.get() : nullptr;
  p.help_share = flags ? nullptr : share.data();
  p.pos_weight = 100;
  p.reduction = reduction;
  p.each = each.data();
  p.loss = reduction == Reduction::None ? nullptr : loss.data();
  p.grad = grad.data();
  for (simt::Order order : check::kOrders) {
    simt::settings.order = order;
    each.poison();
    grad.poison();
    const char* error =
        routing_loss_cuda(p, check::kDType<Storage>, CudaLaunch{nullptr, 0, &counter});
    if (!check::that(!error, error ? error : "")) return;
    check::that(counter == 0, "the counter is not zero again");
    double total = 0;
    const double divisor = reduction == Reduction::Mean ? double(count) : 1;
    for (int64_t i = 0; i < count; ++i) {
      const double g = gate(0, i), y = flags ? double(flag[size_t(i)]) : share(0, i);
      const double rest = std::log1p(std::exp(-std::fabs(g)));
      const auto term = [](double w, double x) { return w == 0 && std::isinf(x) ? 0 : w * x; };
      const double want =
          term(100 * y, std::max(-g, 0.) + rest) + term(1 - y, std::max(g, 0.) + rest);
      const double sigmoid = 1 / (1 + std::exp(-g));
      const double slope = (1 - y) * sigmoid - 100 * y / (1 + std::exp(g));
      const double tolerance = check::kArithmetic<Storage>;
      check::close(each(0, i), std::isnan(g) ? g : want, tolerance * (1 + std::fabs(want)),
                   "a loss");
      check::close(grad(0, i), slope / divisor, tolerance * 100 / divisor, "a gradient");
      total += each(0, i);
    }
    if (p.loss)
      check::close(loss(0, 0), total / divisor, 1e-6 * std::fabs(total / divisor), "the loss");
  }
}

template <class Storage>
void labels_of(int experts, int64_t rows, int64_t columns, int64_t gap, Kind kind) {
  using Acc = Accumulate<Storage>;
  check::context = std::string(check::kTypeName<Storage>) + " K=" + std::to_string(experts) +
                   " N=" + std::to_string(rows) + " C=" + std::to_string(columns) + " kind " +
                   std::to_string(static_cast<int>(kind));
  std::mt19937 random(static_cast<unsigned>(columns + experts));
  std::vector<Matrix<Storage>> logits;
  RoutingTargetParams p{};
  p.rows = rows;
  p.columns = columns;
  p.experts = experts;
  for (int k = 0; k < experts; ++k) {
    logits.emplace_back(rows, columns, columns + gap * k, k % 3);
    router::fill(logits.back(), random, kind);
    p.logits[k] = logits.back().data();
    p.logits_stride[k] = logits.back().stride();
  }
  // Sums in the arithmetic of the kernel: the labels are exact.
  std::vector<int64_t> target, predicted;
  for (int64_t n = 0; n < rows; ++n) {
    std::vector<Acc> sum(size_t(columns), 0);
    for (int k = 0; k < experts; ++k) {
      int64_t best = 0;
      for (int64_t c = 0; c < columns; ++c) {
        const Acc x = static_cast<Acc>(logits[size_t(k)](n, c));
        Acc& s = sum[size_t(c)];
        s = k == 0 ? x : s + x;
        const Acc top = sum[size_t(best)];
        if (top == top && (s > top || s != s)) best = c;
      }
      predicted.push_back(best);
    }
    target.push_back(predicted[size_t(n * experts + (n % 4 < experts ? n % 4 : 0))]);
    if (n % 5 == 4) target.back() = columns - 1;
  }
  p.target = target.data();
  const size_t size = size_t((experts - 1) * rows);
  const std::unique_ptr<bool[]> needs_help(new bool[size]);
  p.needs_help = needs_help.get();
  for (simt::Order order : check::kOrders) {
    simt::settings.order = order;
    std::memset(needs_help.get(), 0, size);
    const char* error =
        routing_target_cuda(p, check::kDType<Storage>, CudaLaunch{nullptr, 0, nullptr});
    if (!check::that(!error, error ? error : "")) return;
    for (int64_t n = 0; n < rows; ++n) {
      bool later = false;
      for (int k = experts; k-- > 0;) {
        const bool right = predicted[size_t(n * experts + k)] == target[size_t(n)];
        if (k + 1 < experts)
          check::that(needs_help[size_t(k * rows + n)] == (!right && later),
                      "the label of row " + std::to_string(n));
        later |= right;
      }
    }
  }
}

template <class Storage>
void losses() {
  for (int64_t count : {0, 1, 6, 700, 3000})
    for (bool flags : {false, true})
      for (Reduction reduction : {Reduction::None, Reduction::Mean, Reduction::Sum})
        loss_of<Storage>(count, flags, reduction);
}

template <class Storage>
void labels() {
  for (Kind kind : router::kKinds) {
    for (int experts : {2, 3, 4, 5}) {
      labels_of<Storage>(experts, 9, 37, 1, kind);
      labels_of<Storage>(experts, 3, 1100, 0, kind);
    }
    labels_of<Storage>(16, 2, 5, 0, kind);
  }
  labels_of<Storage>(3, 0, 5, 0, Kind::Normal);
  labels_of<Storage>(2, 4, 1, 0, Kind::Normal);
}

}  // namespace

int main() {
  check::test("float32: losses", losses<float>);
  check::test("float16: losses", losses<Half>);
  check::test("bfloat16: losses", losses<BFloat16>);
  check::test("float64: losses", losses<double>);
  check::test("float32: labels", labels<float>);
  check::test("float16: labels", labels<Half>);
  check::test("bfloat16: labels", labels<BFloat16>);
  check::test("float64: labels", labels<double>);
  check::test("a target out of range stops the kernel", [] {
    Matrix<float> logits(1, 3);
    const int64_t target = 3;
    bool help = false;
    RoutingTargetParams p{1, 3, 2, {logits.data(), logits.data()}, {3, 3}, &target, &help};
    check::fails_with("target out of range", [&] {
      routing_target_cuda(p, DType::Float32, CudaLaunch{nullptr, 0, nullptr});
    });
  });
  return check::finish();
}
