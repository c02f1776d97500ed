// The few places where CUDA and the CPU stand-in of the tests (tests/simt.h) differ: everything
// else of a kernel file is the same source for nvcc and g++.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/cuda/launch.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <cassert>
#else
#include "tests/simt.h"
#endif

// In front of a loop: unroll it, so that its arrays can be registers; or only so many times.
#if defined(__CUDACC__)
#define LTK_PRAGMA(text) _Pragma(#text)
#define LTK_UNROLL LTK_PRAGMA(unroll)
#define LTK_UNROLL_BY(...) LTK_PRAGMA(unroll(__VA_ARGS__))
#else
#define LTK_UNROLL
#define LTK_UNROLL_BY(...)
#endif

namespace ltk::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// ---- Device side --------------------------------------------------------------------------------

// All shared memory of a block: kernels lay it out themselves, the launch says how much there is.
__device__ __forceinline__ unsigned char* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char ltk_dynamic_shared[];
  return ltk_dynamic_shared;
#else
  return simt::dynamic_shared();
#endif
}

// Stops the kernel: the next CUDA call fails with "device-side assert triggered".
__device__ __forceinline__ void device_assert(bool holds, const char* text) {
#if defined(__CUDACC__)
#if defined(__CUDA_ARCH__)
  if (!holds) {
    __assert_fail(text, "ltkernels", 0, "kernel");
    __builtin_unreachable();  // nothing needs to survive the call
  }
#endif
#else
  if (!holds) simt::fail(simt::name(*simt::current) + ": device assertion: " + text);
#endif
}

// One 16-byte instruction each; the address must be aligned to 16 bytes.
__device__ __forceinline__ uint4 load16(const void* address) {
#if defined(__CUDACC__)
  return *static_cast<const uint4*>(address);
#else
  return simt::load<uint4>(address);
#endif
}
// As load16, for global memory that no thread of this launch writes.
__device__ __forceinline__ uint4 load16_constant(const void* address) {
#if defined(__CUDACC__)
  return __ldg(static_cast<const uint4*>(address));
#else
  return simt::load<uint4>(address);
#endif
}
__device__ __forceinline__ void store16(void* address, uint4 value) {
#if defined(__CUDACC__)
  *static_cast<uint4*>(address) = value;
#else
  simt::store(address, value);
#endif
}

// ---- Host side ----------------------------------------------------------------------------------

struct Device {
  int multiprocessors;
  int shared_memory;  // bytes a block may ask for
};

inline const char* error_text(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Asked of the driver once per device.
inline const char* device_properties(int ordinal, Device& device) {
#if defined(__CUDACC__)
  static std::array<std::atomic<uint64_t>, 64> known{};  // both numbers in one word, 0: not yet
  const bool cached = ordinal >= 0 && ordinal < static_cast<int>(known.size());
  if (cached) {
    if (const uint64_t both = known[ordinal].load(std::memory_order_relaxed)) {
      device = {static_cast<int>(both >> 32), static_cast<int>(both & 0xffffffffu)};
      return nullptr;
    }
  }
#endif
  if (const char* error = error_text(cudaDeviceGetAttribute(
          &device.multiprocessors, cudaDevAttrMultiProcessorCount, ordinal))) {
    return error;
  }
  if (const char* error = error_text(cudaDeviceGetAttribute(
          &device.shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal))) {
    return error;
  }
#if defined(__CUDACC__)
  if (cached) {
    known[ordinal].store(static_cast<uint64_t>(device.multiprocessors) << 32 |
                             static_cast<uint32_t>(device.shared_memory),
                         std::memory_order_relaxed);
  }
#endif
  return nullptr;
}

// Makes `ordinal` the current device for as long as the guard lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int ordinal) {
    error_ = error_text(cudaGetDevice(&before_));
    if (!error_ && before_ != ordinal) {
      error_ = error_text(cudaSetDevice(ordinal));
      changed_ = !error_;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  const char* error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  const char* error_ = nullptr;
};

// Blocks for `work` units: one each, or enough to fill the device, which then loop.
inline int64_t grid_blocks(int64_t work, const Device& device, int threads) {
  constexpr int kThreadsInFlight = 2048;
  const int64_t most = int64_t{device.multiprocessors} * (kThreadsInFlight / threads);
  return std::max<int64_t>(1, std::min(work, most));
}

struct Grid {
  int64_t blocks;
  int threads;
  int shared = 0;  // bytes
};

// Queues one kernel. Returns null, or the reason why it was not queued.
template <class... Parameters>
const char* launch(const CudaLaunch& where, void (*kernel)(Parameters...), Grid grid,
                   std::common_type_t<Parameters>... arguments) {
  constexpr int kSharedByDefault = 48 * 1024;
  const DeviceGuard guard(where.device);
  if (guard.error()) return guard.error();
  if (grid.shared > kSharedByDefault) {
    // The device's most, not what this launch takes: another thread may launch the same kernel with
    // more in between.
    Device device;
    if (const char* error = device_properties(where.device, device)) return error;
    if (const char* error = error_text(cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_memory))) {
      return error;
    }
  }
  if (where.counter) {
#if defined(__CUDACC__)
    if (const char* error = error_text(cudaMemsetAsync(where.counter, 0, sizeof(unsigned),
                                                       static_cast<cudaStream_t>(where.stream)))) {
      return error;
    }
#else
    *where.counter = 0;
#endif
  }
  const dim3 blocks(static_cast<unsigned>(grid.blocks));
  const dim3 threads(static_cast<unsigned>(grid.threads));
#if defined(__CUDACC__)
  void* pointers[] = {&arguments...};
  return error_text(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), blocks, threads,
                                     pointers, static_cast<size_t>(grid.shared),
                                     static_cast<cudaStream_t>(where.stream)));
#else
  simt::last_error = nullptr;
  simt::launch(kernel, blocks, threads, static_cast<size_t>(grid.shared), arguments...);
  return simt::last_error;
#endif
}

}  // namespace ltk::cuda
