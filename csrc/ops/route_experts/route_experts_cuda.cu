// Chooses the kernel of route_experts_cuda.cuh that serves a call, and queues it.
#include "ops/route_experts/route_experts_cuda.cuh"
#include "ops/route_experts/route_experts_cuda.h"

namespace ltk {
namespace {

using namespace cuda;

template <class Storage>
const char* route(const RouteExpertsParams<Accumulate<Storage>>& p, void* workspace,
                  const CudaLaunch& where) {
  using Acc = Accumulate<Storage>;
  if (p.columns > int64_t{1} << 30 || p.width > int64_t{1} << 30) return "more than 2^30 columns";
  if (p.rows == 0) return nullptr;
  Device device;
  if (const char* error = device_properties(where.device, device)) return error;
  const int64_t bytes = GateShared<Acc>::bytes(1, p.hidden);
  if (bytes > device.shared_memory) return "too many hidden units for shared memory";
  const bool wide = p.z > kListed;
  const int64_t blocks =
      wide ? wide_blocks<Acc>(p.rows, p.columns) : grid_blocks(p.rows, device, kTopThreads);
  return launch(where, wide ? route_experts<Storage, true> : route_experts<Storage, false>,
                {blocks, kTopThreads, static_cast<int>(bytes)}, p,
                static_cast<Item<Acc>*>(workspace));
}

}  // namespace

template <class Acc>
int64_t route_experts_workspace(const RouteExpertsParams<Acc>& p) {
  if (p.z <= kListed) return 0;
  return wide_blocks<Acc>(p.rows, p.columns) * (wide_items(p.columns) + p.z) *
         static_cast<int64_t>(sizeof(Item<Acc>));
}
template int64_t route_experts_workspace(const RouteExpertsParams<float>&);
template int64_t route_experts_workspace(const RouteExpertsParams<double>&);

template <>
const char* route_experts_cuda(const RouteExpertsParams<float>& params, DType dtype,
                               void* workspace, const CudaLaunch& where) {
  switch (dtype) {
    case DType::Float32: return route<float>(params, workspace, where);
    case DType::Float16: return route<Half>(params, workspace, where);
    case DType::BFloat16: return route<BFloat16>(params, workspace, where);
    case DType::Float64: break;
  }
  return "float64 logits need float64 parameters";
}
template <>
const char* route_experts_cuda(const RouteExpertsParams<double>& params, DType dtype,
                               void* workspace, const CudaLaunch& where) {
  if (dtype != DType::Float64) return "float64 parameters need float64 logits";
  return route<double>(params, workspace, where);
}

}  // namespace ltk
