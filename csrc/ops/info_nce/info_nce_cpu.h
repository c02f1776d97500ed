// The CPU kernel of info_nce.h, once per instruction set.
#pragma once

#include "common/cpu/isa.h"
#include "ops/info_nce/info_nce.h"

namespace ltk {

// A tile is as many rows as two vectors have lanes. A call is, in this order:
//   info_nce_pack    for all tiles,
//   info_nce_tasks   for all tasks: task t is tile t % tiles against part t / tiles of the queue,
//   info_nce_finish  for all tiles: writes row_loss, grad and grad_scale. `loss` is the caller's.
// `workspace` of the params holds info_nce_workspace(p) values, shared by all ranges; `scratch`
// info_nce_scratch(p) values, aligned to 64 bytes, a range's own.
#define LTK_DECLARE(isa)                                                                       \
  namespace isa {                                                                              \
  template <class Acc>                                                                         \
  int64_t info_nce_tile();                                                                     \
  template <class Acc>                                                                         \
  int64_t info_nce_workspace(const InfoNceParams<Acc>& p);                                     \
  template <class Acc>                                                                         \
  int64_t info_nce_scratch(const InfoNceParams<Acc>& p);                                       \
  template <class Acc>                                                                         \
  void info_nce_pack(const InfoNceParams<Acc>& p, int64_t begin, int64_t end);                 \
  template <class Acc>                                                                         \
  void info_nce_tasks(const InfoNceParams<Acc>& p, int64_t begin, int64_t end, Acc* scratch);  \
  template <class Acc>                                                                         \
  void info_nce_finish(const InfoNceParams<Acc>& p, int64_t begin, int64_t end, Acc* scratch); \
  }
LTK_FOR_EACH_ISA(LTK_DECLARE)
#undef LTK_DECLARE

}  // namespace ltk
