// Chooses the kernel of adjusted_cross_entropy_cuda.cuh that serves a call, and queues it.
#include "ops/adjusted_cross_entropy/adjusted_cross_entropy_cuda.cuh"
#include "ops/adjusted_cross_entropy/adjusted_cross_entropy_cuda.h"

namespace ltk {
namespace {

using namespace cuda;

template <class Storage, int kRowThreads, int kHeld>
const char* resident(const AdjustedCrossEntropyParams<float>& p, const CudaLaunch& where,
                     const Device& device) {
  constexpr int kThreads = resident_block(kRowThreads);
  constexpr int kRows = kThreads / kRowThreads;
  const int64_t work = (p.rows + kRows - 1) / kRows;
  return launch(where, adjusted_cross_entropy_resident<Storage, kRowThreads, kHeld>,
                {grid_blocks(work, device, kThreads), kThreads, scratch_bytes(kThreads)}, p,
                where.counter);
}

template <class Storage>
const char* stream(const AdjustedCrossEntropyParams<Accumulate<Storage>>& p,
                   const CudaLaunch& where, const Device& device) {
  return launch(
      where, adjusted_cross_entropy_stream<Storage>,
      {grid_blocks(p.rows, device, kStreamThreads), kStreamThreads, scratch_bytes(kStreamThreads)},
      p, where.counter);
}

// A thread holds up to 32 values.
template <class Storage>
const char* run(const AdjustedCrossEntropyParams<float>& p, const CudaLaunch& where,
                const Device& device) {
  constexpr int kHeld = 32 / kChunk<Storage>;
  const int64_t chunks = p.grad ? most_chunks<Storage>(p.grad, p.columns, p.columns)
                                : most_chunks<Storage>(p.logits, p.logits_stride, p.columns);

  if (chunks <= 8) return resident<Storage, 8, 1>(p, where, device);
  if constexpr (kHeld >= 8) {
    if (chunks <= 16) return resident<Storage, 8, 2>(p, where, device);
  }
  if (chunks <= 32) return resident<Storage, 32, 1>(p, where, device);
  if (chunks <= 64) return resident<Storage, 32, 2>(p, where, device);
  if (chunks <= 128) return resident<Storage, 32, 4>(p, where, device);
  if constexpr (kHeld >= 8) {
    if (chunks <= 256) return resident<Storage, 32, kHeld>(p, where, device);
  }
  if (chunks <= 64 * kHeld) return resident<Storage, 64, kHeld>(p, where, device);
  if (chunks <= 128 * kHeld) return resident<Storage, 128, kHeld>(p, where, device);
  if (chunks <= 256 * kHeld) return resident<Storage, 256, kHeld>(p, where, device);

  const int64_t bytes = scratch_bytes(kSharedThreads) +
                        chunks * kChunk<Storage> * static_cast<int64_t>(sizeof(float));
  if (bytes <= device.shared_memory) {
    return launch(
        where, adjusted_cross_entropy_shared<Storage>,
        {grid_blocks(p.rows, device, kSharedThreads), kSharedThreads, static_cast<int>(bytes)}, p,
        where.counter);
  }
  return stream<Storage>(p, where, device);
}

template <class Acc>
const char* prepare(const AdjustedCrossEntropyParams<Acc>& p, const CudaLaunch& where,
                    Device& device) {
  constexpr int64_t kMostColumns = int64_t{1} << 30;  // a column is a 32-bit number
  if (p.columns > kMostColumns) return "more than 2^30 columns";
  if (p.reduction == Reduction::Mean && p.grad && !p.grad_scale) {
    return "the gradient of the mean needs grad_scale";
  }
  return device_properties(where.device, device);
}

}  // namespace

template <>
const char* adjusted_cross_entropy_cuda(const AdjustedCrossEntropyParams<float>& params,
                                        DType dtype, const CudaLaunch& where) {
  Device device;
  if (const char* error = prepare(params, where, device)) return error;
  switch (dtype) {
    case DType::Float32: return run<float>(params, where, device);
    case DType::Float16: return run<Half>(params, where, device);
    case DType::BFloat16: return run<BFloat16>(params, where, device);
    case DType::Float64: break;
  }
  return "float64 logits need float64 parameters";
}

template <>
const char* adjusted_cross_entropy_cuda(const AdjustedCrossEntropyParams<double>& params,
                                        DType dtype, const CudaLaunch& where) {
  if (dtype != DType::Float64) return "float64 parameters need float64 logits";
  Device device;
  if (const char* error = prepare(params, where, device)) return error;
  return stream<double>(params, where, device);
}

}  // namespace ltk
