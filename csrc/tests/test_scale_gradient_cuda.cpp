// The CUDA kernel of scale_gradient, run on the CPU: every value exactly as the formula rounds it.
// And the number formats it shares with the other kernels.
#include "ops/scale_gradient/scale_gradient_cuda.cu"
#include "tests/check.h"

namespace {

using namespace ltk;
using namespace ltk::cuda;
using check::Matrix;

template <class Storage>
void scaled(int64_t rows, int64_t columns, bool by_row, bool with_scale, int64_t in_offset,
            int64_t out_offset) {
  using Acc = Accumulate<Storage>;
  check::context = std::string(check::kTypeName<Storage>) + " " + std::to_string(rows) + " x " +
                   std::to_string(columns);
  std::mt19937 random(3);
  Matrix<Storage> in(rows, columns, 0, in_offset), out(rows, columns, 0, out_offset);
  Matrix<Acc> upstream(by_row ? rows : 1, 1), scale(rows, 1);
  check::fill_normal(in, random, 1);
  check::fill_normal(upstream, random, 1);
  check::fill_normal(scale, random, 1e-3);
  ScaleGradientParams<Acc> p{};
  p.rows = rows;
  p.columns = columns;
  p.gradient = in.data();
  p.upstream = upstream.data();
  p.upstream_stride = by_row;
  p.scale = with_scale ? scale.data() : nullptr;
  p.out = out.data();
  for (simt::Order order : check::kOrders) {
    simt::settings.order = order;
    out.poison();
    const char* error =
        scale_gradient_cuda(p, check::kDType<Storage>, CudaLaunch{nullptr, 0, nullptr});
    if (!check::that(!error, error ? error : "")) return;
    for (int64_t n = 0; n < rows; ++n) {
      const Acc u = upstream.at(by_row ? n : 0, 0);
      const Acc factor = with_scale ? u * scale.at(n, 0) : u;
      for (int64_t c = 0; c < columns; ++c) {
        const double want = widen(narrow<Storage>(widen(in.at(n, c)) * factor));
        check::close(out(n, c), want, 0, [&] { return "row " + std::to_string(n); });
      }
    }
  }
}

template <class Storage>
void every_layout() {
  for (auto [rows, columns] : {std::pair<int64_t, int64_t>{0, 5},
                               {1, 1},
                               {3, 1},
                               {9, 2},
                               {5, 7},
                               {4, 100},
                               {3, 365},
                               {1000, 10},
                               {7, 8142}}) {
    for (bool by_row : {false, true}) {
      for (bool with_scale : {false, true}) {
        scaled<Storage>(rows, columns, by_row, with_scale, 0, 0);
        scaled<Storage>(rows, columns, by_row, with_scale, 1, 1);
        scaled<Storage>(rows, columns, by_row, with_scale, 0, 3);
      }
    }
  }
}

// Every 16-bit number comes back as itself, and the middle between two neighbours goes to the even.
template <class Storage>
void round_trips(int exponent_bits) {
  const int fraction_bits = 15 - exponent_bits;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const Storage x{static_cast<uint16_t>(bits)};
    const bool special =
        (bits >> fraction_bits & ((1u << exponent_bits) - 1)) == (1u << exponent_bits) - 1;
    const bool nan = special && (bits & ((1u << fraction_bits) - 1));
    const float wide = widen(x);
    if (nan) {
      check::that(std::isnan(wide) && std::isnan(widen(narrow<Storage>(wide))), "a NaN");
      continue;
    }
    check::that(narrow<Storage>(wide).bits == bits, "a round trip");
    if (special) {
      check::that(std::isinf(wide), "an infinity");
      continue;
    }
    const int exponent = static_cast<int>(bits >> fraction_bits & ((1u << exponent_bits) - 1));
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const double fraction = double(bits & ((1u << fraction_bits) - 1)) / (1 << fraction_bits);
    const double magnitude =
        exponent ? std::ldexp(1 + fraction, exponent - bias) : std::ldexp(fraction, 1 - bias);
    check::close(wide, bits & 0x8000u ? -magnitude : magnitude, 0, "the value");
    // Towards the next number: below the middle, the middle, above the middle.
    const double unit = std::ldexp(1., (exponent ? exponent : 1) - bias - fraction_bits);
    const double sign = bits & 0x8000u ? -1 : 1;
    const uint32_t even = bits % 2 ? bits + 1 : bits;
    const auto rounded = [&](double part) {
      return uint32_t{narrow<Storage>(static_cast<float>(sign * (magnitude + part * unit))).bits};
    };
    check::that(rounded(0.5) == even, "a middle");
    check::that(rounded(0.49) == bits, "below a middle");
    check::that(rounded(0.51) == bits + 1, "above a middle");
  }
}

}  // namespace

int main() {
  check::test("float32: every layout", every_layout<float>);
  check::test("float16: every layout", every_layout<Half>);
  check::test("bfloat16: every layout", every_layout<BFloat16>);
  check::test("float64: every layout", every_layout<double>);
  check::test("every float16", [] { round_trips<Half>(5); });
  check::test("every bfloat16", [] { round_trips<BFloat16>(8); });
  check::test("half_scale is a power of two that fits", [] {
    for (float bound = 1e-37f; bound < 1e37f; bound *= 1.7f) {
      const float scale = half_scale(bound);
      int exponent;
      check::that(std::frexp(scale, &exponent) == 0.5f, "a power of two");
      check::that(bound / scale <= 32768 && (bound < 1e-25f || bound / scale >= 16384),
                  "the range of " + check::number(bound));
    }
    for (float odd : {0.f, kNaN<float>, kInfinity<float>}) {
      check::close(half_scale(odd), 1, 0, "the scale of what has none");
    }
  });
  return check::finish();
}
