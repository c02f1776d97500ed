// Chooses the kernel of topz_gate_cuda.cuh that serves a call, and queues it.
#include "ops/topz_gate/topz_gate_cuda.cuh"
#include "ops/topz_gate/topz_gate_cuda.h"

namespace ltk {
namespace {

using namespace cuda;

constexpr int64_t kWarpColumns = 1024;  // a warp a row up to here

template <class Storage>
const char* forward(const TopzGateParams<Accumulate<Storage>>& p, void* workspace,
                    const CudaLaunch& where) {
  using Acc = Accumulate<Storage>;
  if (p.columns > int64_t{1} << 30 || p.width > int64_t{1} << 30) return "more than 2^30 columns";
  if (p.rows == 0) return nullptr;
  Device device;
  if (const char* error = device_properties(where.device, device)) return error;
  const int64_t for_one = GateShared<Acc>::bytes(1, p.hidden);
  const int64_t for_warps = GateShared<Acc>::bytes(kTopWarps, p.hidden);
  if (for_one > device.shared_memory) return "too many hidden units for shared memory";
  const Grid one_a_block{grid_blocks(p.rows, device, kTopThreads), kTopThreads,
                         static_cast<int>(for_one)};
  Item<Acc>* const items = static_cast<Item<Acc>*>(workspace);
  if (p.z > kListed) {
    const int64_t blocks = wide_blocks<Acc>(p.rows, p.columns);
    return launch(where, topz_gate_block<Storage, true>,
                  {blocks, kTopThreads, static_cast<int>(for_one)}, p, items);
  }
  if (p.columns > kWarpColumns || for_warps > device.shared_memory) {
    return launch(where, topz_gate_block<Storage, false>, one_a_block, p, items);
  }
  const int64_t blocks = grid_blocks((p.rows + kTopWarps - 1) / kTopWarps, device, kTopThreads);
  return launch(where, topz_gate_warp<Storage>, {blocks, kTopThreads, static_cast<int>(for_warps)},
                p);
}

template <class Storage>
const char* backward(const TopzGateGradientParams<Accumulate<Storage>>& p,
                     const CudaLaunch& where) {
  using Acc = Accumulate<Storage>;
  Device device;
  if (const char* error = device_properties(where.device, device)) return error;
  int64_t w1_tiles = 0, vector_tiles = 0, rows = 0;
  if (p.d_w1) {
    w1_tiles = (p.width + kWarp - 1) / kWarp * ((p.hidden + kUnitsATile - 1) / kUnitsATile);
    vector_tiles = (p.z + 2 * p.hidden + 1 + kWarp - 1) / kWarp;
  }
  if ((p.d_logits || p.d_feature) && p.rows > 0) rows = grid_blocks(p.rows, device, kTopThreads);
  if (w1_tiles + vector_tiles + rows == 0) return nullptr;
  const int64_t bytes =
      std::max<int64_t>(sum_bytes(sizeof(Acc)),
                        scratch_bytes(kTopThreads) + p.hidden * static_cast<int64_t>(sizeof(Acc)));
  if (bytes > device.shared_memory) return "too many hidden units for shared memory";
  return launch(where, topz_gate_gradient<Storage>,
                {w1_tiles + vector_tiles + rows, kTopThreads, static_cast<int>(bytes)}, p, w1_tiles,
                vector_tiles);
}

}  // namespace

template <class Acc>
int64_t topz_gate_workspace(const TopzGateParams<Acc>& p) {
  if (p.z <= kListed) return 0;
  return wide_blocks<Acc>(p.rows, p.columns) * (wide_items(p.columns) + p.z) *
         static_cast<int64_t>(sizeof(Item<Acc>));
}
template int64_t topz_gate_workspace(const TopzGateParams<float>&);
template int64_t topz_gate_workspace(const TopzGateParams<double>&);

template <>
const char* topz_gate_cuda(const TopzGateParams<float>& params, DType dtype, void* workspace,
                           const CudaLaunch& where) {
  switch (dtype) {
    case DType::Float32: return forward<float>(params, workspace, where);
    case DType::Float16: return forward<Half>(params, workspace, where);
    case DType::BFloat16: return forward<BFloat16>(params, workspace, where);
    case DType::Float64: break;
  }
  return "float64 logits need float64 parameters";
}
template <>
const char* topz_gate_cuda(const TopzGateParams<double>& params, DType dtype, void* workspace,
                           const CudaLaunch& where) {
  if (dtype != DType::Float64) return "float64 parameters need float64 logits";
  return forward<double>(params, workspace, where);
}

template <>
const char* topz_gate_gradient_cuda(const TopzGateGradientParams<float>& params, DType dtype,
                                    const CudaLaunch& where) {
  switch (dtype) {
    case DType::Float32: return backward<float>(params, where);
    case DType::Float16: return backward<Half>(params, where);
    case DType::BFloat16: return backward<BFloat16>(params, where);
    case DType::Float64: break;
  }
  return "float64 logits need float64 parameters";
}
template <>
const char* topz_gate_gradient_cuda(const TopzGateGradientParams<double>& params, DType dtype,
                                    const CudaLaunch& where) {
  if (dtype != DType::Float64) return "float64 parameters need float64 logits";
  return backward<double>(params, where);
}

}  // namespace ltk
