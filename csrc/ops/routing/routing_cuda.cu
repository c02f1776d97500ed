// Chooses the kernel of routing_cuda.cuh that serves a call, and queues it.
#include "ops/routing/routing_cuda.cuh"
#include "ops/routing/routing_cuda.h"

namespace ltk {
namespace {

using namespace cuda;

template <class Storage>
const char* loss(const RoutingLossParams<Accumulate<Storage>>& p, const CudaLaunch& where) {
  Device device;
  if (const char* error = device_properties(where.device, device)) return error;
  const int64_t work = (p.count + kRoutingThreads - 1) / kRoutingThreads;
  return launch(
      where, routing_loss<Storage>,
      {grid_blocks(work, device, kRoutingThreads), kRoutingThreads, scratch_bytes(kRoutingThreads)},
      p, where.counter);
}

template <class Storage, int kRowThreads, int kExperts>
const char* target(const RoutingTargetParams& p, const CudaLaunch& where, const Device& device) {
  constexpr int64_t kRows = kRoutingThreads / kRowThreads;
  const int64_t work = (p.rows + kRows - 1) / kRows;
  return launch(
      where, routing_target<Storage, kRowThreads, kExperts>,
      {grid_blocks(work, device, kRoutingThreads), kRoutingThreads, scratch_bytes(kRoutingThreads)},
      p);
}

template <class Storage, int kExperts>
const char* target(const RoutingTargetParams& p, const CudaLaunch& where, const Device& device) {
  constexpr int64_t kWarpColumns = 1024;
  return p.columns <= kWarpColumns ? target<Storage, kWarp, kExperts>(p, where, device)
                                   : target<Storage, kRoutingThreads, kExperts>(p, where, device);
}

template <class Storage>
const char* target(const RoutingTargetParams& p, const CudaLaunch& where) {
  if (p.columns > int64_t{1} << 30) return "more than 2^30 columns";
  if (p.rows == 0 || p.experts < 2) return nullptr;
  Device device;
  if (const char* error = device_properties(where.device, device)) return error;
  switch (p.experts) {
    case 2: return target<Storage, 2>(p, where, device);
    case 3: return target<Storage, 3>(p, where, device);
    case 4: return target<Storage, 4>(p, where, device);
    default: return target<Storage, 0>(p, where, device);
  }
}

}  // namespace

template <>
const char* routing_loss_cuda(const RoutingLossParams<float>& params, DType dtype,
                              const CudaLaunch& where) {
  switch (dtype) {
    case DType::Float32: return loss<float>(params, where);
    case DType::Float16: return loss<Half>(params, where);
    case DType::BFloat16: return loss<BFloat16>(params, where);
    case DType::Float64: break;
  }
  return "float64 gates need float64 parameters";
}
template <>
const char* routing_loss_cuda(const RoutingLossParams<double>& params, DType dtype,
                              const CudaLaunch& where) {
  if (dtype != DType::Float64) return "float64 parameters need float64 gates";
  return loss<double>(params, where);
}

const char* routing_target_cuda(const RoutingTargetParams& params, DType dtype,
                                const CudaLaunch& where) {
  switch (dtype) {
    case DType::Float32: return target<float>(params, where);
    case DType::Float64: return target<double>(params, where);
    case DType::Float16: return target<Half>(params, where);
    case DType::BFloat16: return target<BFloat16>(params, where);
  }
  return "logits of no known type";
}

}  // namespace ltk
