// What the op bindings share: dtype dispatch, pointers out of torch's stable tensors, row loops.
//
// Bindings are the only files that see torch, and only through its stable ABI, so that one binary
// serves torch 2.10 and newer. What a user can get wrong is checked in Python with an error that
// names the argument; the checks here protect memory should an op be called directly.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <optional>
#include <type_traits>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "common/dtype.h"

namespace ltk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::Float32;
    case ScalarType::Double: return DType::Float64;
    case ScalarType::Half: return DType::Float16;
    case ScalarType::BFloat16: return DType::BFloat16;
    default: STD_TORCH_CHECK(false, "expected logits of a floating dtype");
  }
}

// f(Acc{}) with the arithmetic type of the logits: double for float64, else float.
template <class F>
auto dispatch_accumulate(DType dtype, F&& f) {
  return dtype == DType::Float64 ? f(double{}) : f(float{});
}

// [N, C] logits with unit column stride: themselves, or a contiguous copy.
inline Tensor rows_of(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.dim() == 2, "expected `", name, "` to be 2-D, got ", t.dim(), "-D");
  return t.size(1) <= 1 || t.stride(1) == 1 ? t : torch::stable::contiguous(t);
}

template <class T>
constexpr ScalarType scalar_type_of() {
  if constexpr (std::is_same_v<T, int64_t>)
    return ScalarType::Long;
  else if constexpr (std::is_same_v<T, double>)
    return ScalarType::Double;
  else
    return ScalarType::Float;
}

// The data of an optional contiguous tensor of `size` elements on the device of `like`, or null.
template <class T>
const T* data_or_null(const std::optional<Tensor>& t, int64_t size, const char* name,
                      const Tensor& like) {
  if (!t.has_value()) return nullptr;
  STD_TORCH_CHECK(t->get_device() == like.get_device(), "expected `", name,
                  "` to be on the device of the logits");
  STD_TORCH_CHECK(
      t->scalar_type() == scalar_type_of<T>() && t->numel() == size && t->is_contiguous(),
      "expected `", name, "` to be contiguous with ", size, " elements of the loss's dtype");
  return static_cast<const T*>(t->const_data_ptr());
}

// On the CPU an index out of range must not become a write to somebody else's memory. (Kernels on
// CUDA trap.)
inline void check_indices(const int64_t* index, int64_t count, int64_t size, const char* name,
                          std::optional<int64_t> ignored = std::nullopt) {
  if (index == nullptr) return;
  bool inside = true;
  for (int64_t i = 0; i < count; i++)
    inside &= static_cast<uint64_t>(index[i]) < static_cast<uint64_t>(size) || index[i] == ignored;
  STD_TORCH_CHECK(inside, "expected `", name, "` in 0..", size - 1);
}

// The logarithm of a negative weight would be a NaN that nothing names.
template <class T>
void check_non_negative(const T* x, int64_t count, const char* name) {
  bool valid = true;
  for (int64_t i = 0; x != nullptr && i < count; i++) valid &= x[i] >= 0;
  STD_TORCH_CHECK(valid, "expected `", name, "` >= 0");
}

// Memory fresh from the system comes in pages of 4 KiB, whose faults take several times as long as
// the arithmetic on them (50 MB of gradients: 15 ms, of which 13 are saved here). So large outputs
// ask for pages of 2 MiB: a hint, and only for those that lie inside the tensor as a whole.
inline void ask_for_huge_pages([[maybe_unused]] const Tensor& t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = 2 << 20;
  const size_t bytes = static_cast<size_t>(t.numel()) * t.element_size();
  if (!t.is_cpu() || bytes < 2 * kHugePage) return;
  const auto begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  const uintptr_t from = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t to = (begin + bytes) / kHugePage * kHugePage;
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#endif
}

inline Tensor empty(const int64_t* sizes, const int64_t* strides, int64_t dim, ScalarType dtype,
                    const Tensor& like) {
  const auto device = like.device();
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dim, sizes, strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(device.type())),
      device.index(), &handle));
  Tensor t(handle);
  ask_for_huge_pages(t);
  return t;
}
template <size_t D>
Tensor empty(const int64_t (&sizes)[D], ScalarType dtype, const Tensor& like) {
  int64_t strides[D];
  for (size_t d = D, step = 1; d-- > 0; step *= std::max<int64_t>(sizes[d], 1)) strides[d] = step;
  return empty(sizes, strides, D, dtype, like);
}
inline Tensor empty_scalar(ScalarType dtype, const Tensor& like) {
  return empty(nullptr, nullptr, 0, dtype, like);
}
// What an op returns for an output that was not asked for.
inline Tensor no_tensor(const Tensor& like) { return empty({0}, ScalarType::Float, like); }

// Where the losses of N rows go: into `loss` itself, which is [N], or into memory of the call.
template <class Acc>
class RowLoss {
 public:
  RowLoss(bool is_loss, const Tensor& loss, int64_t n) : rows_(loss) {
    if (!is_loss && loss.is_cuda())
      rows_ = empty({n}, scalar_type_of<Acc>(), loss);
    else if (!is_loss)
      memory_.reset(new Acc[static_cast<size_t>(n)]);  // an allocation by torch costs more
  }
  Acc* data() const {
    return memory_ ? memory_.get() : static_cast<Acc*>(rows_.mutable_data_ptr());
  }

 private:
  Tensor rows_;
  std::unique_ptr<Acc[]> memory_;
};

// body(begin, end) over ranges of rows, in parallel where there is enough work.
template <class F>
void for_rows(int64_t rows, int64_t columns, const F& body) {
  constexpr int64_t kElementsATask = 16384;
  torch::stable::parallel_for(
      0, rows, std::max<int64_t>(1, kElementsATask / std::max<int64_t>(columns, 1)), body);
}

// A thread's buffer, aligned to 64 bytes and kept for the next call.
template <class T>
T* thread_scratch(int64_t count) {
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  static thread_local std::unique_ptr<T, Free> buffer;
  static thread_local int64_t capacity = 0;
  if (count > capacity) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    buffer.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    capacity = buffer ? count : 0;
    STD_TORCH_CHECK(buffer != nullptr, "out of memory");
  }
  return buffer.get();
}

// Halves are added up each for itself: the rounding errors grow with log n instead of n.
template <class Acc>
double pairwise_sum(const Acc* x, int64_t n) {
  if (n > 128) {
    const int64_t half = n / 2;
    return pairwise_sum(x, half) + pairwise_sum(x + half, n - half);
  }
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += static_cast<double>(x[i]);
  return sum;
}

// Row losses are added in the same order, whatever thread computed them.
template <class Acc>
Acc ordered_sum(const Acc* x, int64_t n) {
  return static_cast<Acc>(pairwise_sum(x, n));
}

}  // namespace ltk
