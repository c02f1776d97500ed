// The instruction sets the CPU kernels are compiled for, and the choice among them at load.
#pragma once

#include <cstdint>

namespace ltk {

// Namespaces of the compiled copies, from the narrowest to the widest.
#if defined(__x86_64__)
#define LTK_FOR_EACH_ISA(F) F(baseline) F(avx2) F(avx512)
enum class Isa : int { baseline, avx2, avx512 };
#else
#define LTK_FOR_EACH_ISA(F) F(baseline)
enum class Isa : int { baseline };
#endif

// The widest one this processor runs, or the narrower one that LTKERNELS_CPU_ISA names. Chosen
// once.
Isa selected_isa();
const char* isa_name(Isa isa);
// Space-separated names of all that were compiled.
const char* compiled_isas();

}  // namespace ltk
