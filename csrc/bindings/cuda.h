// One CUDA call of an op: its device, stream and counter, without linking against CUDA's torch.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "bindings/tensor.h"
#include "common/cuda/launch.h"

namespace ltk {

// The current stream of torch on `device`. libtorch_cuda is looked up once among the libraries
// already loaded, so that this binary also loads beside a torch without CUDA.
void* current_cuda_stream(int device);

class CudaCall {
 public:
  explicit CudaCall(const Tensor& on) : device_(on.get_device_index()), guard_(device_) {}

  CudaLaunch launch() const { return {current_cuda_stream(device_), device_, nullptr}; }
  // With a counter, for kernels whose last block finishes the reduction. Its memory may go back to
  // the allocator while the kernel is queued: the allocator reuses it on the same stream only.
  CudaLaunch launch_counting(const Tensor& counter) const {
    return {current_cuda_stream(device_), device_,
            static_cast<unsigned*>(counter.mutable_data_ptr())};
  }

  void check(const char* op, const char* error) const {
    STD_TORCH_CHECK(error == nullptr, "`", op, "` could not be launched: ", error);
  }

 private:
  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace ltk
