// Chooses the kernel of knowledge_balance_weight_cuda.cuh that serves a call, and queues it.
#include "ops/knowledge_balance_weight/knowledge_balance_weight_cuda.cuh"
#include "ops/knowledge_balance_weight/knowledge_balance_weight_cuda.h"

namespace ltk {
namespace {

using namespace cuda;

template <class Storage, int kRowThreads, int kHeld>
const char* resident(const KnowledgeBalanceWeightParams<float>& p, const CudaLaunch& where,
                     const Device& device) {
  constexpr int kThreads = resident_block(kRowThreads), kRows = kThreads / kRowThreads;
  return launch({where.stream, where.device, nullptr},
                knowledge_balance_weight_resident<Storage, kRowThreads, kHeld>,
                {grid_blocks((p.rows + kRows - 1) / kRows, device, kThreads), kThreads,
                 scratch_bytes(kThreads)},
                p);
}

template <class Storage>
const char* stream(const KnowledgeBalanceWeightParams<Accumulate<Storage>>& p,
                   const CudaLaunch& where, const Device& device) {
  return launch(
      {where.stream, where.device, nullptr}, knowledge_balance_weight_stream<Storage>,
      {grid_blocks(p.rows, device, kStreamThreads), kStreamThreads, scratch_bytes(kStreamThreads)},
      p);
}

// A thread holds up to 32 values of each head.
template <class Storage>
const char* run(const KnowledgeBalanceWeightParams<float>& p, const CudaLaunch& where,
                const Device& device) {
  constexpr int kHeld = 32 / kChunk<Storage>;
  const int64_t chunks = std::max(most_chunks<Storage>(p.ref_logits, p.ref_stride, p.columns),
                                  most_chunks<Storage>(p.cls_logits, p.cls_stride, p.columns));
  if (chunks <= 8) return resident<Storage, 8, 1>(p, where, device);
  if (chunks <= 32) return resident<Storage, 32, 1>(p, where, device);
  if (chunks <= 32 * kHeld) return resident<Storage, 32, kHeld>(p, where, device);
  if (chunks <= 256 * kHeld) return resident<Storage, 256, kHeld>(p, where, device);
  return stream<Storage>(p, where, device);
}

template <class Acc>
const char* prepare(const KnowledgeBalanceWeightParams<Acc>& p, const CudaLaunch& where,
                    Device& device) {
  constexpr int64_t kMostColumns = int64_t{1} << 30;  // a column is a 32-bit number
  if (p.columns > kMostColumns) return "more than 2^30 columns";
  return device_properties(where.device, device);
}

}  // namespace

template <>
const char* knowledge_balance_weight_cuda(const KnowledgeBalanceWeightParams<float>& params,
                                          DType dtype, const CudaLaunch& where) {
  Device device;
  if (const char* error = prepare(params, where, device)) return error;
  if (params.rows == 0) return nullptr;
  switch (dtype) {
    case DType::Float32: return run<float>(params, where, device);
    case DType::Float16: return run<Half>(params, where, device);
    case DType::BFloat16: return run<BFloat16>(params, where, device);
    case DType::Float64: break;
  }
  return "float64 logits need float64 parameters";
}

template <>
const char* knowledge_balance_weight_cuda(const KnowledgeBalanceWeightParams<double>& params,
                                          DType dtype, const CudaLaunch& where) {
  if (dtype != DType::Float64) return "float64 parameters need float64 logits";
  Device device;
  if (const char* error = prepare(params, where, device)) return error;
  if (params.rows == 0) return nullptr;
  return stream<double>(params, where, device);
}

}  // namespace ltk
