// What a host entry needs to know about where it launches. No CUDA header, so bindings can include
// it.
#pragma once

namespace ltk {

struct CudaLaunch {
  void* stream;       // a cudaStream_t of `device`
  int device;         // CUDA ordinal; the calling thread's current device is left as it was
  unsigned* counter;  // [1] on the device, set to zero before the kernel; null: it counts nothing
};

}  // namespace ltk
