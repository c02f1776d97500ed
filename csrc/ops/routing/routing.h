// What RIDE's routers are trained with: their loss and their labels.
//
// routing_loss, with g = gate[i], y = needs_help[i]:
//   l[i] = w y softplus(-g) + (1 - y) softplus(g);  a factor of 0 drops an infinite softplus
//   d g[i] = f ( w y (sigmoid(g) - 1) + (1 - y) sigmoid(g) ),  f = 1/M for the mean, else 1
//
// routing_target, with s_k[n] = logits_1[n] + .. + logits_k[n], added in this order:
//   right_k[n] = argmax(s_k[n]) = target[n]     of equal ones the lowest class, NaN the largest
//   needs_help[k, n] = not right_k[n] and right_j[n] for a j > k
// No argmax is taken: whether another class beats the target's is a comparison a class.
//
// Bytes that must move: gates and labels once, the loss's gradient once; K N C logits once.
#pragma once

#include "common/dtype.h"

namespace ltk {

template <class Acc>
struct RoutingLossParams {
  int64_t count;  // M

  const void* gate;       // [M]
  const bool* help_flag;  // [M], or null:
  const Acc* help_share;  // [M]
  Acc pos_weight;
  Reduction reduction;

  Acc* each;  // [M]: l
  Acc* loss;  // [1] or null for reduction "none"
  Acc* grad;  // [M] or null
};

constexpr int kMostRoutedExperts = 16;

struct RoutingTargetParams {
  int64_t rows;     // N
  int64_t columns;  // C
  int experts;      // K >= 2

  const void* logits[kMostRoutedExperts];  // K of [N, C]
  int64_t logits_stride[kMostRoutedExperts];
  const int64_t* target;  // [N]

  bool* needs_help;  // [K - 1, N]
};

}  // namespace ltk
