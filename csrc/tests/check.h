// What the tests of the CUDA kernels share: checks, data, and the three thread orders.
#pragma once

#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "common/cuda/numeric.cuh"
#include "tests/simt.h"

namespace check {

inline int failures = 0;
inline int checks = 0;
inline std::string context;  // what is being tested, named by a failure

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kReduced = true;  // a sanitizer is slow: fewer shapes
#else
constexpr bool kReduced = false;
#endif

inline bool that(bool holds, const std::string& what) {
  ++checks;
  if (!holds && ++failures <= 20) {
    std::printf("FAIL %s: %s\n", context.c_str(), what.c_str());
    std::fflush(stdout);
  }
  return holds;
}

inline std::string number(double x) {
  char text[40];
  std::snprintf(text, sizeof(text), "%.9g", x);
  return text;
}

// Equal up to `tolerance`, and infinite or NaN alike. `what` is a text, or makes one when it is
// needed.
template <class What>
bool close(double got, double want, double tolerance, const What& what) {
  ++checks;
  const bool same = std::isnan(want)   ? std::isnan(got)
                    : std::isinf(want) ? got == want
                                       : std::fabs(got - want) <= tolerance;
  if (same) return true;
  --checks;  // `that` counts it
  std::string text;
  if constexpr (std::is_invocable_v<What>) {
    text = what();
  } else {
    text = what;
  }
  return that(false, text + " is " + number(got) + ", expected " + number(want) + " +- " +
                         number(tolerance));
}

// Runs one test, prints its line.
inline void test(const char* name, const std::function<void()>& body) {
  const int failed_before = failures, checked_before = checks;
  context = name;
  try {
    body();
  } catch (const std::exception& error) {
    that(false, error.what());
  }
  std::printf("%-6s %s (%d checks)\n", failures == failed_before ? "ok" : "FAILED", name,
              checks - checked_before);
  std::fflush(stdout);
}

inline int finish() {
  if (failures) std::printf("%d of %d checks failed\n", failures, checks);
  return failures ? 1 : 0;
}

// Runs `body`, which must fail with a text that contains `text`.
inline void fails_with(const std::string& text, const std::function<void()>& body) {
  try {
    body();
    that(false, "expected a failure with \"" + text + "\"");
  } catch (const simt::Error& error) {
    that(std::string(error.what()).find(text) != std::string::npos,
         "expected \"" + text + "\", got \"" + error.what() + "\"");
  }
}

constexpr simt::Order kOrders[] = {simt::Order::Forward, simt::Order::Reverse, simt::Order::Random};
inline const char* order_name(simt::Order order) {
  return order == simt::Order::Forward   ? "forward"
         : order == simt::Order::Reverse ? "reverse"
                                         : "random";
}

template <class Storage>
constexpr const char* kTypeName = "float32";
template <>
inline constexpr const char* kTypeName<double> = "float64";
template <>
inline constexpr const char* kTypeName<ltk::Half> = "float16";
template <>
inline constexpr const char* kTypeName<ltk::BFloat16> = "bfloat16";

template <class Storage>
constexpr ltk::DType kDType = ltk::DType::Float32;
template <>
inline constexpr ltk::DType kDType<double> = ltk::DType::Float64;
template <>
inline constexpr ltk::DType kDType<ltk::Half> = ltk::DType::Float16;
template <>
inline constexpr ltk::DType kDType<ltk::BFloat16> = ltk::DType::BFloat16;

// Relative error of rounding to Storage.
template <class Storage>
constexpr double kRounding = 6e-8;
template <>
inline constexpr double kRounding<double> = 1.2e-16;
template <>
inline constexpr double kRounding<ltk::Half> = 1.0 / 2048;
template <>
inline constexpr double kRounding<ltk::BFloat16> = 1.0 / 256;

// Relative error of the arithmetic.
template <class Storage>
constexpr double kArithmetic = std::is_same_v<Storage, double> ? 1e-12 : 3e-6;

// A matrix [rows, columns] whose rows start `stride` apart, the first one `offset` values behind a
// multiple of 16 bytes. All else is NaN, and nothing lies behind the last value, so that a read
// outside the rows shows in the result or to AddressSanitizer.
template <class Storage>
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns, int64_t stride = 0, int64_t offset = 0)
      : rows_(rows), columns_(columns), stride_(stride ? stride : columns), offset_(offset) {
    const int64_t size = rows ? offset + (rows - 1) * stride_ + columns : offset;
    bytes_ = static_cast<size_t>(size) * sizeof(Storage);
    memory_.reset(static_cast<Storage*>(std::malloc(bytes_ ? bytes_ : 1)), std::free);
    poison();
  }
  // NaN in every type.
  void poison() { std::memset(static_cast<void*>(memory_.get()), 0xff, bytes_); }

  Storage* data() const { return memory_.get() + offset_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t stride() const { return stride_; }
  Storage& at(int64_t n, int64_t c) const { return data()[n * stride_ + c]; }
  double operator()(int64_t n, int64_t c) const { return ltk::cuda::widen(at(n, c)); }
  void set(int64_t n, int64_t c, double value) {
    at(n, c) = ltk::cuda::narrow<Storage>(static_cast<ltk::Accumulate<Storage>>(value));
  }
  std::vector<char> bytes() const {
    const char* first = reinterpret_cast<const char*>(memory_.get());
    return std::vector<char>(first, first + bytes_);
  }

 private:
  int64_t rows_, columns_, stride_, offset_;
  size_t bytes_;
  std::shared_ptr<Storage> memory_;
};

template <class Storage>
void fill_normal(Matrix<Storage>& matrix, std::mt19937& random, double scale) {
  std::normal_distribution<double> normal(0, scale);
  for (int64_t n = 0; n < matrix.rows(); ++n) {
    for (int64_t c = 0; c < matrix.columns(); ++c) matrix.set(n, c, normal(random));
  }
}

}  // namespace check
