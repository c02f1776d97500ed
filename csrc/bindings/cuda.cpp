#include "bindings/cuda.h"

#include <dlfcn.h>

namespace ltk {

void* current_cuda_stream(int device) {
  using CurrentStream = AOTITorchError (*)(int32_t, void**);
  static const auto current_stream = reinterpret_cast<CurrentStream>([] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
  }());
  STD_TORCH_CHECK(current_stream != nullptr, "this torch was built without CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(current_stream(device, &stream));
  return stream;
}

}  // namespace ltk
