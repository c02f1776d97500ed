// Element types of logits, and the type the arithmetic is done in.
#pragma once

#include <cstdint>

namespace ltk {

enum class DType : int { Float32, Float64, Float16, BFloat16 };

// Storage only: kernels load these, compute in float, and store the rounded result.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Arithmetic is float for every storage type but double.
template <class Storage>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class Storage>
using Accumulate = typename AccumulateOf<Storage>::type;

// float16 gradients would underflow: they are stored with a power-of-two scale a row.
template <class Storage>
constexpr bool kNarrowRange = false;
template <>
inline constexpr bool kNarrowRange<Half> = true;

enum class Reduction : int { None = 0, Mean = 1, Sum = 2 };

}  // namespace ltk
