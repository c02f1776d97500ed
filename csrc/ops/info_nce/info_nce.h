// Contrast of each query with its own key and a queue of other samples' keys.
//
//   s[n, 0] = query[n] . key[n] / T[n],   s[n, j] = query[n] . queue[j] / T[n],  j = 1..Q
//   loss[n] = lse(s[n]) - s[n, 0]
//   d query[n] = f / T[n] * ( sum_j p_j queue[j] - (1 - p_0) key[n] ),   p = softmax(s[n])
//   f = 1/N for the mean, else 1. Key and queue are constants.
//
// The similarities [N, Q] are never in memory. The queue is read in blocks under a running maximum
// m of the similarities; sum and accumulator of what was read before are rescaled where m grows:
//
//   e_j = exp(s_j - m),   sum = sum * c + sum_j e_j,   acc = acc * c + sum_j e_j queue[j]
//
// The queue may be cut into parts, each with a running maximum of its own, which are merged in
// their order. 1 - p_0 is the others' sum over the whole, so that it keeps its digits where the
// loss is small.
//
// 4 N Q D operations, with the gradient; the queue is read once for as many rows as share a block.
#pragma once

#include "common/dtype.h"

namespace ltk {

// A matrix as it is: the kernels convert and gather what they read of it.
struct StridedMatrix {
  const void* data;
  DType dtype;
  int64_t row_stride;  // in elements
  int64_t column_stride;
};

template <class Acc>
struct InfoNceParams {
  int64_t rows;        // N
  int64_t columns;     // D
  int64_t queue_rows;  // Q

  StridedMatrix query;         // [N, D]
  StridedMatrix key;           // [N, D]
  StridedMatrix queue;         // [Q, D]
  Acc temperature;             // where row_temperature is null
  const Acc* row_temperature;  // [N] or null
  Acc factor;                  // of the gradients: 1/N for the mean, else 1
  Reduction reduction;

  int64_t parts;      // of the queue, see cut_queue
  int64_t part_rows;  // rows in each of them but the last
  Acc* workspace;     // as much as the kernels ask for

  Acc* row_loss;    // [N]
  Acc* loss;        // [1] or null for reduction "none"
  void* grad;       // [N, D] contiguous, of the query's type, or null
  Acc* grad_scale;  // [N] or null: the stored gradient of row n times it is the gradient (float16)
};

constexpr int kQueueBlock = 64;  // rows of the queue that are worked on at a time

// Cuts the queue into at most `parts` of whole blocks.
template <class Acc>
void cut_queue(InfoNceParams<Acc>& p, int64_t parts) {
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t blocks = up(up(p.queue_rows, kQueueBlock), parts);
  p.part_rows = (blocks > 0 ? blocks : 1) * kQueueBlock;
  p.parts = p.queue_rows > 0 ? up(p.queue_rows, p.part_rows) : 1;
}

}  // namespace ltk
