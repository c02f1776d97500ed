// Chooses the kernel of experts_cuda.cuh that serves a call, and queues it.
#include "ops/experts/experts_cuda.cuh"
#include "ops/experts/experts_cuda.h"

namespace ltk {
namespace {

using namespace cuda;

template <class Storage, int kExperts, Form kForm, int kRowThreads, int kHeld>
const char* resident(const ExpertsParams<float>& p, const CudaLaunch& where, const Device& device) {
  constexpr int kThreads = resident_block(kRowThreads);
  constexpr int kRows = kThreads / kRowThreads;
  const int64_t work = (p.rows + kRows - 1) / kRows;
  return launch(where, experts_resident<Storage, kExperts, kForm, kRowThreads, kHeld>,
                {grid_blocks(work, device, kThreads), kThreads, scratch_bytes(kThreads)}, p,
                where.counter);
}

template <class Storage, int kExperts>
const char* stream(const ExpertsParams<Accumulate<Storage>>& p, const CudaLaunch& where,
                   const Device& device) {
  return launch(
      where, experts_stream<Storage, kExperts>,
      {grid_blocks(p.rows, device, kStreamThreads), kStreamThreads, scratch_bytes(kStreamThreads)},
      p, where.counter);
}

// A thread holds up to 16 values of each expert, 8 where there are four.
template <class Storage, int kExperts, Form kForm>
const char* on_chip(const ExpertsParams<float>& p, const CudaLaunch& where, const Device& device) {
  constexpr int kHeld = (kExperts == 4 ? 8 : 16) / kChunk<Storage>;
  const int64_t chunks = p.grad ? most_chunks<Storage>(p.grad, p.columns, p.columns)
                                : most_chunks<Storage>(p.logits[0], p.logits_stride[0], p.columns);

  if (chunks <= 8 * kHeld) return resident<Storage, kExperts, kForm, 8, kHeld>(p, where, device);
  if (chunks <= 32 * kHeld) return resident<Storage, kExperts, kForm, 32, kHeld>(p, where, device);

  int threads = 64;
  while (threads * 2 <= kSharedThreads<kExperts, kForm> && threads * 8 < chunks) threads *= 2;
  const int64_t bytes = scratch_bytes(threads) + kExperts * chunks * 16;
  if (bytes <= device.shared_memory) {
    return launch(where, experts_shared<Storage, kExperts, kForm>,
                  {grid_blocks(p.rows, device, threads), threads, static_cast<int>(bytes)}, p,
                  where.counter, static_cast<int>(chunks));
  }
  return stream<Storage, kExperts>(p, where, device);
}

template <class Storage, int kExperts>
const char* fast(const ExpertsParams<float>& p, const CudaLaunch& where, const Device& device) {
  if (p.column_temperature) return stream<Storage, kExperts>(p, where, device);
  return p.divergence == ExpertDivergence::Pairwise
             ? on_chip<Storage, kExperts, Form::Pairs>(p, where, device)
             : on_chip<Storage, kExperts, Form::ToMean>(p, where, device);
}

template <class Storage>
const char* run(const ExpertsParams<float>& p, const CudaLaunch& where, const Device& device) {
  switch (p.experts) {
    case 2: return fast<Storage, 2>(p, where, device);
    case 3: return fast<Storage, 3>(p, where, device);
    case 4: return fast<Storage, 4>(p, where, device);
  }
  return stream<Storage, 0>(p, where, device);
}

template <class Acc>
const char* prepare(const ExpertsParams<Acc>& p, const CudaLaunch& where, Device& device) {
  constexpr int64_t kMostColumns = int64_t{1} << 30;  // a column is a 32-bit number
  if (p.columns > kMostColumns) return "more than 2^30 columns";
  if (p.experts < 1 || p.experts > kMostExperts) return "experts: 1 to 16 of them";
  return device_properties(where.device, device);
}

}  // namespace

template <>
const char* experts_cuda(const ExpertsParams<float>& params, DType dtype, const CudaLaunch& where) {
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
const char* experts_cuda(const ExpertsParams<double>& params, DType dtype,
                         const CudaLaunch& where) {
  if (dtype != DType::Float64) return "float64 parameters need float64 logits";
  Device device;
  if (const char* error = prepare(params, where, device)) return error;
  return stream<double, 0>(params, where, device);
}

}  // namespace ltk
