#include "common/cpu/isa.h"

#include <cstdlib>
#include <cstring>

namespace ltk {

const char* isa_name(Isa isa) {
  static const char* const names[] = {
#define LTK_NAME(isa) #isa,
      LTK_FOR_EACH_ISA(LTK_NAME)
#undef LTK_NAME
  };
  return names[static_cast<int>(isa)];
}

const char* compiled_isas() {
#define LTK_NAME(isa) " " #isa
  return LTK_FOR_EACH_ISA(LTK_NAME) + 1;
#undef LTK_NAME
}

static Isa widest_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa selected_isa() {
  static const Isa isa = [] {
    const Isa widest = widest_isa();
    const char* wanted = std::getenv("LTKERNELS_CPU_ISA");
    if (wanted != nullptr)
      for (int i = 0; i <= static_cast<int>(widest); i++)
        if (std::strcmp(wanted, isa_name(static_cast<Isa>(i))) == 0) return static_cast<Isa>(i);
    return widest;
  }();
  return isa;
}

}  // namespace ltk
