// The CUDA kernels of knowledge_balance_weight, run on the CPU in three thread orders against the
// definition in double precision: every kernel and storage type.
#include "ops/knowledge_balance_weight/knowledge_balance_weight_cuda.cu"
#include "tests/check.h"

namespace {

using namespace ltk;
using check::Matrix;

constexpr double kInf = std::numeric_limits<double>::infinity();

template <class Storage>
double cross_entropy(const Matrix<Storage>& logits, int64_t n, int64_t y, double eps) {
  double sum = 0, count = 0, squares = 0, top = -kInf, exponentials = 0;
  const auto each = [&](auto f) {
    for (int64_t c = 0; c < logits.columns(); ++c) {
      if (logits(n, c) != -kInf) f(logits(n, c));
    }
  };
  each([&](double z) { sum += z, count += 1, top = std::fmax(top, z); });
  each([&](double z) { squares += (z - sum / count) * (z - sum / count); });
  const double variance = squares / std::max(count - 1, 1.);
  const double sigma = std::sqrt(variance < eps * eps ? eps * eps : variance);
  each([&](double z) { exponentials += std::exp((z - top) / sigma); });
  return std::log(exponentials) + (top - logits(n, y)) / sigma;
}

template <class Storage>
void run(Matrix<Storage>& ref, Matrix<Storage>& cls, double eps = 1e-6) {
  using Acc = Accumulate<Storage>;
  const int64_t rows = ref.rows(), columns = ref.columns();
  std::vector<int64_t> target;
  for (int64_t n = 0; n < rows; ++n) target.push_back((n * 7 + 3) % columns);
  Matrix<Acc> weight(rows, 1);
  KnowledgeBalanceWeightParams<Acc> p{};
  p.rows = rows;
  p.columns = columns;
  p.ref_logits = ref.data();
  p.ref_stride = ref.stride();
  p.cls_logits = cls.data();
  p.cls_stride = cls.stride();
  p.target = target.data();
  p.eps = Acc(eps);
  p.smallest_variance = Acc(eps * eps);
  p.weight = weight.data();
  for (simt::Order order : check::kOrders) {
    check::context = std::string(check::kTypeName<Storage>) + " " + std::to_string(rows) + " x " +
                     std::to_string(columns) + " " + check::order_name(order);
    simt::settings.order = order;
    weight.poison();
    const char* error =
        knowledge_balance_weight_cuda(p, check::kDType<Storage>, CudaLaunch{nullptr, 0, nullptr});
    if (!check::that(!error, error ? error : "")) return;
    for (int64_t n = 0; n < rows; ++n) {
      const double of_cls = cross_entropy(cls, n, target[size_t(n)], eps);
      const double of_ref = cross_entropy(ref, n, target[size_t(n)], eps);
      const double divisor = of_ref < eps ? eps : of_ref, want = of_cls / divisor;
      const double arithmetic = check::kArithmetic<Storage> * std::log(2. + double(columns));
      check::close(weight(n, 0), want,
                   arithmetic * (std::fabs(want) + (1 + std::fabs(want)) / divisor),
                   [&] { return "the weight of row " + std::to_string(n); });
    }
  }
}

template <class Storage>
void every_size() {
  const int64_t most = check::kReduced ? 1100 : 40000;
  for (int64_t columns : {1, 2, 7, 31, 33, 100, 129, 365, 1000, 1024, 1100, 8142, 8200, 40000}) {
    if (columns > most) continue;
    for (int64_t gap : {0, 3}) {
      const int64_t rows = columns < 200 ? 21 : 3;
      std::mt19937 random(static_cast<unsigned>(columns));
      Matrix<Storage> ref(rows, columns, columns + gap, gap % 2);
      Matrix<Storage> cls(rows, columns, columns + 2 * gap);
      check::fill_normal(ref, random, 3);
      check::fill_normal(cls, random, 0.5);
      // A common offset does not cost digits: the deviation is taken around the mean.
      for (int64_t c = 0; c < columns; ++c) ref.set(rows - 1, c, ref(rows - 1, c) + 300);
      run(ref, cls);
    }
  }
}

template <class Storage>
void edges() {
  for (int64_t columns : {int64_t{40}, check::kReduced ? int64_t{600} : int64_t{9000}}) {
    std::mt19937 random(1);
    Matrix<Storage> ref(9, columns), cls(9, columns);
    check::fill_normal(ref, random, 2);
    check::fill_normal(cls, random, 2);
    const auto target = [&](int64_t n) { return (n * 7 + 3) % columns; };
    for (int64_t c = 0; c < columns; c += 2) {
      if (c != target(0)) ref.set(0, c, -kInf);
    }
    ref.set(1, target(1), -kInf);
    cls.set(2, target(2), -kInf);
    for (int64_t c = 0; c < columns; ++c) {
      ref.set(3, c, -kInf);
      cls.set(4, c, 1.5);
      ref.set(5, c, c == target(5) ? 1. : -kInf);  // one class is left: CE is 0, the divisor eps
    }
    ref.set(6, 1, std::nan(""));
    cls.set(7, 1, kInf);
    ref.set(8, target(8), 60000.);
    run(ref, cls);
    run(ref, cls, 0.5);
  }
  Matrix<Storage> none(0, 5);
  run(none, none);
}

void refused() {
  Matrix<float> logits(2, 3);
  std::mt19937 random(1);
  check::fill_normal(logits, random, 1);
  const std::vector<int64_t> target{0, 3};
  std::vector<float> weight(2);
  KnowledgeBalanceWeightParams<float> p{};
  p.rows = 2;
  p.columns = 3;
  p.ref_logits = p.cls_logits = logits.data();
  p.ref_stride = p.cls_stride = 3;
  p.target = target.data();
  p.weight = weight.data();
  check::fails_with("target out of range", [&] {
    knowledge_balance_weight_cuda(p, DType::Float32, CudaLaunch{nullptr, 0, nullptr});
  });
  p.columns = int64_t{1} << 31;
  check::that(knowledge_balance_weight_cuda(p, DType::Float32, CudaLaunch{nullptr, 0, nullptr}),
              "too many columns");
}

}  // namespace

int main() {
  check::test("float32", every_size<float>);
  check::test("float64", every_size<double>);
  check::test("float16", every_size<Half>);
  check::test("bfloat16", every_size<BFloat16>);
  check::test("float32: edges", edges<float>);
  check::test("float64: edges", edges<double>);
  check::test("float16: edges", edges<Half>);
  check::test("bfloat16: edges", edges<BFloat16>);
  check::test("refused", refused);
  return check::finish();
}
