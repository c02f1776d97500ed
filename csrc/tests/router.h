// What the tests of the router's CUDA kernels share: odd rows of logits, and the order of the sort.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/check.h"

namespace router {

constexpr double kInf = std::numeric_limits<double>::infinity();

enum class Kind { Normal, Rising, Ties, Equal, Holes, Special };
constexpr Kind kKinds[] = {Kind::Normal, Kind::Rising, Kind::Ties,
                           Kind::Equal,  Kind::Holes,  Kind::Special};

template <class Storage>
void fill(check::Matrix<Storage>& logits, std::mt19937& random, Kind kind) {
  check::fill_normal(logits, random, 2);
  const int64_t columns = logits.columns();
  for (int64_t n = 0; n < logits.rows(); ++n) {
    for (int64_t c = 0; c < columns; ++c) {
      if (kind == Kind::Rising) logits.set(n, c, (n % 2 ? -1 : 1) * double(c));
      if (kind == Kind::Ties) logits.set(n, c, std::round(logits(n, c)));
      if (kind == Kind::Equal) logits.set(n, c, 1);
      if (kind == Kind::Holes && (n == 0 || c % 16 != n)) logits.set(n, c, -kInf);
    }
    if (kind == Kind::Special) {
      logits.set(n, columns / 2, n % 2 ? kInf : std::nan(""));
      if (n > 1) logits.set(n, 0, -std::nan(""));
      logits.set(n, columns - 1, -0.);
    }
  }
}

// The columns of a row, sorted.
template <class Storage>
std::vector<int64_t> sorted(const check::Matrix<Storage>& logits, int64_t n) {
  std::vector<int64_t> order(size_t(logits.columns()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const double x = logits(n, a), y = logits(n, b);
    return std::isnan(x) ? !std::isnan(y) : x > y;
  });
  return order;
}

inline double as_gate_takes_it(double x, double first) {
  return x != -kInf ? x : first == -kInf ? std::nan("") : 0;
}

}  // namespace router
