// Chooses the kernel of subset_distillation_cuda.cuh that serves a call, and queues it.
#include "ops/subset_distillation/subset_distillation_cuda.cuh"
#include "ops/subset_distillation/subset_distillation_cuda.h"

namespace ltk {
namespace {

using namespace cuda;

template <class Acc>
int64_t largest_subset(const SubsetDistillationParams<Acc>& p) {
  int64_t largest = 0;
  for (int l = 0; l < p.subsets; ++l) largest = std::max(largest, p.offset[l + 1] - p.offset[l]);
  return largest;
}

template <class Storage, class Acc>
const char* general(const SubsetDistillationParams<Acc>& p, const CudaLaunch& where,
                    const Device& device) {
  int threads = 32;
  while (threads < 512 && threads * 8 < std::max(p.columns, largest_subset(p))) threads *= 2;
  const int64_t fixed = scratch_bytes(threads) + slope_bytes<Acc>();
  int64_t tile = 1;
  if (p.student_grad) {
    const int64_t room = (device.shared_memory - fixed) / static_cast<int64_t>(sizeof(Acc));
    tile = std::min<int64_t>(p.columns, room - 2 * (kChunk<Storage> - 1));
  } else {
    tile = p.columns;
  }
  const int64_t values = p.student_grad ? gradient_values<Storage>(tile) : 0;
  const int64_t bytes = fixed + values * static_cast<int64_t>(sizeof(Acc));
  return launch(where, subset_distillation_general<Storage>,
                {grid_blocks(p.rows, device, threads), threads, static_cast<int>(bytes)}, p,
                static_cast<int>(tile), where.counter);
}

// Null, with `served`, or an error; not served where the row's gradient needs too much memory.
template <class Storage, int kRowThreads, int kHeld>
const char* resident(const SubsetDistillationParams<float>& p, const CudaLaunch& where,
                     const Device& device) {
  constexpr int kThreads = resident_block(kRowThreads);
  constexpr int kRows = kThreads / kRowThreads;
  const int64_t values = p.student_grad ? kRows * gradient_values<Storage>(p.columns) : 0;
  const int64_t bytes = scratch_bytes(kThreads) + values * static_cast<int64_t>(sizeof(float));
  if (bytes > device.shared_memory) return general<Storage>(p, where, device);
  const int64_t work = (p.rows + kRows - 1) / kRows;
  return launch(where, subset_distillation_resident<Storage, kRowThreads, kHeld>,
                {grid_blocks(work, device, kThreads), kThreads, static_cast<int>(bytes)}, p,
                where.counter);
}

template <class Storage>
const char* run(const SubsetDistillationParams<float>& p, const CudaLaunch& where,
                const Device& device) {
  constexpr int64_t kWarpColumns = 2048;  // four rows of sums in shared memory
  const int64_t size = largest_subset(p);
  if (p.column_temperature || p.teacher_grad) return general<Storage>(p, where, device);
  if (p.columns <= kWarpColumns) {
    if (size <= 32 * 2) return resident<Storage, 32, 2>(p, where, device);
    if (size <= 32 * 8) return resident<Storage, 32, 8>(p, where, device);
    if (size <= 32 * 16) return resident<Storage, 32, 16>(p, where, device);
  }
  if (size <= 128 * 8) return resident<Storage, 128, 8>(p, where, device);
  if (size <= 512 * 8) return resident<Storage, 512, 8>(p, where, device);
  if (size <= 512 * 16) return resident<Storage, 512, 16>(p, where, device);
  return general<Storage>(p, where, device);
}

template <class Acc>
const char* prepare(const SubsetDistillationParams<Acc>& p, const CudaLaunch& where,
                    Device& device) {
  constexpr int64_t kMostColumns = int64_t{1} << 30;  // a column is a 32-bit number
  if (p.columns > kMostColumns) return "more than 2^30 columns";
  if (p.subsets < 1 || p.subsets > kMostSubsets) return "expected 1..16 subsets";
  return device_properties(where.device, device);
}

}  // namespace

template <>
const char* subset_distillation_cuda(const SubsetDistillationParams<float>& params, DType dtype,
                                     const CudaLaunch& where) {
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
const char* subset_distillation_cuda(const SubsetDistillationParams<double>& params, DType dtype,
                                     const CudaLaunch& where) {
  if (dtype != DType::Float64) return "float64 parameters need float64 logits";
  Device device;
  if (const char* error = prepare(params, where, device)) return error;
  return general<double>(params, where, device);
}

}  // namespace ltk
