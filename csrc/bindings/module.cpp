// The Python module ltkernels._C: what was built. Importing it registers the ops.
#include <pybind11/pybind11.h>

#include "common/cpu/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts of the native code; importing this module registers the ops.";
  m.attr("version") = LTK_VERSION;
  m.attr("compiler") = LTK_COMPILER;
  m.attr("built_for_torch") = LTK_TORCH_VERSION;
  m.attr("cuda_architectures") = LTK_CUDA_ARCHITECTURES;
  m.attr("cuda_compiler") = LTK_CUDA_COMPILER;
  m.attr("cpu_instruction_sets") = ltk::compiled_isas();
  m.attr("cpu_instruction_set") = ltk::isa_name(ltk::selected_isa());
}
