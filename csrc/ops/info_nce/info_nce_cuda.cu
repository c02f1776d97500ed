// Plans a call of the kernels of info_nce_cuda.cuh, and queues them.
#include "ops/info_nce/info_nce_cuda.cuh"
#include "ops/info_nce/info_nce_cuda.h"

namespace ltk {
namespace {

using namespace cuda;

struct Tiling {
  int rows;     // of the query a thread
  int columns;  // of the accumulator a block
};

template <class Acc>
Tiling tiling(const InfoNceParams<Acc>& p) {
  if (std::is_same_v<Acc, double>) return {2, 128};
  if (!p.grad || p.columns <= 64) return {4, 64};
  return p.columns <= 128 ? Tiling{4, 128} : p.columns <= 256 ? Tiling{4, 256} : Tiling{2, 512};
}

template <class Acc>
int64_t blocks_a_part(const InfoNceParams<Acc>& p) {
  const Tiling t = tiling(p);
  const int64_t tile = kSide * t.rows;
  const int64_t slices = p.grad ? (p.columns + t.columns - 1) / t.columns : 1;
  return (p.rows + tile - 1) / tile * slices;
}

// Enough parts to fill the device twice, but none shorter than two blocks, and no more accumulators
// than take half the memory of the queue.
template <class Acc>
const char* plan(InfoNceParams<Acc>& p, int ordinal) {
  Device device;
  if (const char* error = device_properties(ordinal, device)) return error;
  const auto size = [](DType dtype) {
    return dtype == DType::Float64 ? 8 : dtype == DType::Float32 ? 4 : 2;
  };
  const int64_t blocks = std::max<int64_t>(1, blocks_a_part(p));
  const int64_t filled = (2 * device.multiprocessors + blocks - 1) / blocks;
  const int64_t long_enough = p.queue_rows / (2 * kQueueBlock);
  const int64_t a_part = p.rows * (p.columns + 2) * static_cast<int64_t>(sizeof(Acc));
  const int64_t small = p.queue_rows * p.columns * size(p.queue.dtype) / 2;
  const int64_t fitting = small / std::max<int64_t>(1, a_part);
  cut_queue(p, std::max<int64_t>(1, std::min({filled, long_enough, fitting, kMostParts})));
  return nullptr;
}

template <int kRows, int kWide, class Acc>
const char* partial(const InfoNceParams<Acc>& p, const CudaLaunch& where) {
  return launch({where.stream, where.device, nullptr}, info_nce_partial<Acc, kRows, kWide>,
                {blocks_a_part(p) * p.parts, kPartialThreads, info_nce_shared<Acc>(kRows)}, p);
}

const char* partial(const InfoNceParams<float>& p, const CudaLaunch& where) {
  switch (tiling(p).columns) {
    case 64: return partial<4, 64>(p, where);
    case 128: return partial<4, 128>(p, where);
    case 256: return partial<4, 256>(p, where);
    default: return partial<2, 512>(p, where);
  }
}
const char* partial(const InfoNceParams<double>& p, const CudaLaunch& where) {
  return partial<2, 128>(p, where);
}

template <class Acc>
const char* run(const InfoNceParams<Acc>& p, const CudaLaunch& where) {
  Device device;
  if (const char* error = device_properties(where.device, device)) return error;
  if (p.rows > 0) {
    if (blocks_a_part(p) * p.parts > 0x7fffffff) return "more rows than a launch has blocks for";
    if (const char* error = partial(p, where)) return error;
  }
  return launch(
      where, info_nce_finish<Acc>,
      {grid_blocks(p.rows, device, kFinishThreads), kFinishThreads, finish_shared<Acc>(p.parts)}, p,
      where.counter);
}

}  // namespace

#define LTK_DEFINE(Acc)                                                                  \
  template <>                                                                            \
  const char* info_nce_cuda_plan(InfoNceParams<Acc>& params, int device) {               \
    return plan(params, device);                                                         \
  }                                                                                      \
  template <>                                                                            \
  int64_t info_nce_cuda_workspace(const InfoNceParams<Acc>& params) {                    \
    return InfoNceWorkspace<Acc>{params}.size();                                         \
  }                                                                                      \
  template <>                                                                            \
  const char* info_nce_cuda(const InfoNceParams<Acc>& params, const CudaLaunch& where) { \
    return run(params, where);                                                           \
  }
LTK_DEFINE(float)
LTK_DEFINE(double)
#undef LTK_DEFINE

}  // namespace ltk
