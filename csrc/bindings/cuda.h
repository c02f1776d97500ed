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
  explicit CudaCall(const Tensor& on) : device_(on.get_device_index()), guard_(device_), on_(on) {}

  // With a zeroed counter for kernels whose last block finishes the reduction.
  CudaLaunch launch() const {
    counter_ = torch::stable::new_zeros(on_, {1}, ScalarType::Int);
    return {current_cuda_stream(device_), device_,
            static_cast<unsigned*>(counter_->mutable_data_ptr())};
  }
  CudaLaunch launch_without_counter() const {
    return {current_cuda_stream(device_), device_, nullptr};
  }

  void check(const char* op, const char* error) const {
    STD_TORCH_CHECK(error == nullptr, "`", op, "` could not be launched: ", error);
  }

 private:
  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  const Tensor& on_;
  mutable std::optional<Tensor> counter_;
};

}  // namespace ltk
