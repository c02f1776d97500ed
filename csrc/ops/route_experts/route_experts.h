// RIDE at test time: a sample asks one expert after the other until its router lets it go.
//
//   m_i[n]   = (logits_1[n] + .. + logits_i[n]) / i
//   goes on to expert i + 1:  it has come to expert i, and  gate_i(m_i[n], feature_i[n]) >
//   threshold experts[n] = how many it has asked,  logits[n] = m_experts[n]
//
// gate_i is topz_gate's. Gates and logits of experts that a sample does not come to are never read.
//
// Bytes that must move: the logits and features of the experts that are asked, read once; N C
// results written once.
#pragma once

#include "common/dtype.h"

namespace ltk {

constexpr int kMostStages = 16;

template <class Acc>
struct RouteExpertsParams {
  int64_t rows;     // N
  int64_t columns;  // C
  int64_t width;    // D
  int64_t hidden;   // h
  int64_t z;        // 1..C
  int experts;      // K

  const void* logits[kMostStages];  // K of [N, C]
  int64_t logits_stride[kMostStages];
  const void* feature[kMostStages];  // K - 1 of [N, D]
  int64_t feature_stride[kMostStages];
  DType feature_dtype;
  const Acc* w1;  // [K - 1, h, D]
  const Acc* b1;  // [K - 1, h]
  const Acc* w2;  // [K - 1, z + h], or [z + h] with stride 0
  int64_t w2_stride;
  const Acc* b2;  // [K - 1], or [1] with stride 0
  int64_t b2_stride;
  Acc threshold;

  Acc* mean;      // [N, C]: sums while samples are on their way
  int64_t* used;  // [N]
};

}  // namespace ltk
