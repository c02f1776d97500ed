// Chooses the kernel of distillation_cuda.cuh that serves a call, and queues it.
#include "ops/distillation/distillation_cuda.cuh"
#include "ops/distillation/distillation_cuda.h"

namespace ltk {
namespace {

using namespace cuda;

template <class Storage, int kRowThreads, int kHeld>
const char* resident(const DistillationParams<float>& p, const CudaLaunch& where,
                     const Device& device) {
  constexpr int kThreads = resident_block(kRowThreads);
  constexpr int kRows = kThreads / kRowThreads;
  const int64_t work = (p.rows + kRows - 1) / kRows;
  return launch(where, distillation_resident<Storage, kRowThreads, kHeld>,
                {grid_blocks(work, device, kThreads), kThreads, scratch_bytes(kThreads)}, p,
                where.counter);
}

// The chunks a thread holds are what its registers allow: 32 values of each side, 24 in the largest
// blocks.
template <class Storage>
const char* fast(const DistillationParams<float>& p, const CudaLaunch& where,
                 const Device& device) {
  constexpr int kHeld = 32 / kChunk<Storage>, kHeldByMany = 24 / kChunk<Storage>;
  const int64_t chunks = p.student_grad
                             ? most_chunks<Storage>(p.student_grad, p.columns, p.columns)
                             : most_chunks<Storage>(p.student, p.student_stride, p.columns);

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
  if (chunks <= 256 * kHeldByMany) return resident<Storage, 256, kHeldByMany>(p, where, device);

  const int64_t bytes = scratch_bytes(kSharedThreads) + 2 * shared_row_bytes<Storage>(p.columns);
  if (bytes <= device.shared_memory) {
    return launch(
        where, distillation_shared<Storage>,
        {grid_blocks(p.rows, device, kSharedThreads), kSharedThreads, static_cast<int>(bytes)}, p,
        where.counter);
  }
  return launch(
      where, distillation_stream<Storage>,
      {grid_blocks(p.rows, device, kStreamThreads), kStreamThreads, scratch_bytes(kStreamThreads)},
      p, where.counter);
}

template <class Storage, class Acc>
const char* general(const DistillationParams<Acc>& p, const CudaLaunch& where,
                    const Device& device) {
  int threads = 32;
  while (threads < 512 && threads * 8 < p.columns) threads *= 2;
  return launch(where, distillation_general<Storage>,
                {grid_blocks(p.rows, device, threads), threads, scratch_bytes(threads)}, p,
                where.counter);
}

template <class Storage>
const char* run(const DistillationParams<float>& p, const CudaLaunch& where, const Device& device) {
  const bool rare = p.column_temperature || p.soft_target || p.teacher_grad;
  return rare ? general<Storage>(p, where, device) : fast<Storage>(p, where, device);
}

template <class Acc>
const char* prepare(const DistillationParams<Acc>& p, const CudaLaunch& where, Device& device) {
  constexpr int64_t kMostColumns = int64_t{1} << 30;  // a column is a 32-bit number
  if (p.columns > kMostColumns) return "more than 2^30 columns";
  return device_properties(where.device, device);
}

}  // namespace

template <>
const char* distillation_cuda(const DistillationParams<float>& params, DType dtype,
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
const char* distillation_cuda(const DistillationParams<double>& params, DType dtype,
                              const CudaLaunch& where) {
  if (dtype != DType::Float64) return "float64 parameters need float64 logits";
  Device device;
  if (const char* error = prepare(params, where, device)) return error;
  return general<double>(params, where, device);
}

}  // namespace ltk
