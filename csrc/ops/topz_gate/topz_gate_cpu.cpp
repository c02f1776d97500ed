// RIDE's router and its gradients on the CPU (topz_gate.h has the formulas).
//
// Forward, a row at a time, a few for the hidden layer, so that each load of w1 serves several. The
// gradient of w1 is cut into blocks of columns, each summed over the rows in their order: the same
// for any number of threads.
#include "ops/topz_gate/topz_gate_cpu.h"

#include "common/cpu/topz.h"
#include "ops/topz_gate/topz_gate_row_cpu.h"

namespace ltk::LTK_ISA {
namespace {

template <class Storage>
void rows(const TopzGateParams<Accumulate<Storage>>& p, const Accumulate<Storage>* w1_transposed,
          int64_t begin, int64_t end, Accumulate<Storage>* scratch) {
  using Acc = Accumulate<Storage>;
  const int64_t padded = padded_units(p.hidden);
  Acc* const units = scratch;                      // [kGateRows, padded]
  Acc* const buffer = units + kGateRows * padded;  // [kGateRows, D]
  Acc* const own_top = buffer + kGateRows * p.width;
  int32_t* const own_index = reinterpret_cast<int32_t*>(own_top + p.z);
  Acc* const selection = scratch + (kGateRows * (padded + p.width) + 2 * p.z + 15) / 16 * 16;
  TopZ<Acc> largest(p.columns, p.z, selection);

  for (int64_t first = begin; first < end; first += kGateRows) {
    const Acc* v[kGateRows];
    Acc inverse_norm[kGateRows];
    for (int r = 0; r < kGateRows; r++) {
      // Rows that are missing at the end repeat the last one.
      const int64_t n = first + r < end ? first + r : end - 1;
      v[r] = feature_row(p.feature, p.feature_stride, p.feature_dtype, n, p.width,
                         buffer + r * p.width);
      inverse_norm[r] = inverse_norm_of(v[r], p.width);
    }
    hidden_units(v, p.width, w1_transposed, p.hidden, p.b1, inverse_norm, units);
    for (int64_t n = first; n < end && n < first + kGateRows; n++) {
      Acc* const top = p.top ? p.top + n * p.z : own_top;
      int32_t* const index = p.index ? p.index + n * p.z : own_index;
      largest.select(static_cast<const Storage*>(p.logits) + n * p.logits_stride, top, index);
      without_infinities(top, index, p.z);
      const Acc* const u = units + (n - first) * padded;
      p.gate[n] = (dot(top, p.w2, p.z) + dot(u, p.w2 + p.z, p.hidden)) + p.b2[0];
      if (p.units) std::memcpy(p.units + n * p.hidden, u, sizeof(Acc) * p.hidden);
      if (p.inverse_norm) p.inverse_norm[n] = inverse_norm[n - first];
    }
  }
}

// g w2[z + j] where the unit is on.
template <class Acc>
Acc unit_slope(const TopzGateGradientParams<Acc>& p, int64_t n, int64_t j) {
  return p.units[n * p.hidden + j] <= 0 ? Acc(0) : p.upstream[n] * p.w2[p.z + j];
}

template <class Storage>
void d_logits_row(const TopzGateGradientParams<Accumulate<Storage>>& p, int64_t n) {
  Storage* const out = static_cast<Storage*>(p.d_logits) + n * p.columns;
  std::memset(static_cast<void*>(out), 0, sizeof(Storage) * p.columns);
  for (int64_t k = 0; k < p.z; k++) {
    const int32_t c = p.index[n * p.z + k];
    if (c >= 0) from_float(p.upstream[n] * p.w2[k], out + c);
  }
}

template <class Storage>
void d_feature_row(const TopzGateGradientParams<Accumulate<Storage>>& p, int64_t n,
                   const Storage* v, Accumulate<Storage>* sum, const Accumulate<Storage>* slope) {
  using Acc = Accumulate<Storage>;
  constexpr int L = kLanes<Acc>;
  const int64_t width = p.width, whole = width - width % L;
  for (int64_t d = 0; d < width; d++) sum[d] = 0;
  for (int64_t j = 0; j < p.hidden; j++) {
    const Acc s = slope[j];
    if (s == 0) continue;
    const Acc* w = p.w1 + j * width;
    for (int64_t d = 0; d < whole; d += L) store(sum + d, load(sum + d) + load(w + d) * s);
    for (int64_t d = whole; d < width; d++) sum[d] += w[d] * s;
  }
  const bool least = p.inverse_norm[n] < 0;
  const Acc r = std::abs(p.inverse_norm[n]);
  Acc along = 0;
  for (int64_t d = 0; d < width && !least; d++) along += to_float(v[d]) * r * sum[d];
  Storage* const out = static_cast<Storage*>(p.d_feature) + n * width;
  for (int64_t d = 0; d < width; d++) {
    const Acc x = to_float(v[d]) * r;
    from_float(r * (least ? sum[d] : sum[d] - x * along), out + d);
  }
}

// acc[j, i] += slope[n, j] v[n, d + i] over a tile of rows, blocks of 4 units by 2 vectors.
template <class Storage>
void columns(const TopzGateGradientParams<Accumulate<Storage>>& p, const Accumulate<Storage>* slope,
             int64_t begin, int64_t end) {
  using Acc = Accumulate<Storage>;
  using V = Vec<Acc>;
  constexpr int L = kLanes<Acc>, kUnits = 4, kVectors = 2;
  constexpr int64_t kTile = 16;
  const Storage* const feature = static_cast<const Storage*>(p.feature);
  const int64_t h = p.hidden, width = p.width;
  for (int64_t j = 0; j < h; j++)
    for (int64_t d = begin; d < end; d++) p.d_w1[j * width + d] = 0;
  for (int64_t first = 0; first < p.rows; first += kTile) {
    const int64_t last = first + kTile < p.rows ? first + kTile : p.rows;
    for (int64_t j = 0; j < h; j += kUnits) {
      const int units = h - j < kUnits ? static_cast<int>(h - j) : kUnits;
      int64_t d = begin;
      for (; units == kUnits && d + kVectors * L <= end; d += kVectors * L) {
        V sum[kUnits][kVectors];
        Acc* const out = p.d_w1 + j * width + d;
        for (int u = 0; u < kUnits; u++)
          for (int i = 0; i < kVectors; i++) sum[u][i] = load(out + u * width + i * L);
        for (int64_t n = first; n < last; n++) {
          const Storage* const v = feature + n * p.feature_stride + d;
          V x[kVectors];
          for (int i = 0; i < kVectors; i++) x[i] = load(v + i * L);
          for (int u = 0; u < kUnits; u++)
            for (int i = 0; i < kVectors; i++) sum[u][i] += x[i] * slope[n * h + j + u];
        }
        for (int u = 0; u < kUnits; u++)
          for (int i = 0; i < kVectors; i++) store(out + u * width + i * L, sum[u][i]);
      }
      for (int u = 0; u < units; u++)
        for (int64_t n = first; n < last; n++) {
          const Storage* const v = feature + n * p.feature_stride;
          const Acc s = slope[n * h + j + u];
          for (int64_t c = d; c < end; c++) p.d_w1[(j + u) * width + c] += to_float(v[c]) * s;
        }
    }
  }
}

}  // namespace

template <class Acc>
int64_t topz_gate_scratch(const TopzGateParams<Acc>& p) {
  return (kGateRows * (padded_units(p.hidden) + p.width) + 2 * p.z + 15) / 16 * 16 +
         TopZ<Acc>::scratch(p.columns);
}

template <>
void topz_gate_rows<float>(const TopzGateParams<float>& p, const float* w1_transposed, DType dtype,
                           int64_t begin, int64_t end, float* scratch) {
  if (dtype == DType::Float32) rows<float>(p, w1_transposed, begin, end, scratch);
  if (dtype == DType::Float16) rows<Half>(p, w1_transposed, begin, end, scratch);
  if (dtype == DType::BFloat16) rows<BFloat16>(p, w1_transposed, begin, end, scratch);
}
template <>
void topz_gate_rows<double>(const TopzGateParams<double>& p, const double* w1_transposed, DType,
                            int64_t begin, int64_t end, double* scratch) {
  rows<double>(p, w1_transposed, begin, end, scratch);
}

template <class T>
struct Type {
  using Storage = T;
};

// f(Type<what `dtype` is stored as>).
template <class Acc, class F>
static void with_storage(DType dtype, const F& f) {
  if constexpr (sizeof(Acc) == sizeof(double)) {
    f(Type<double>());
  } else {
    if (dtype == DType::Float32) f(Type<float>());
    if (dtype == DType::Float16) f(Type<Half>());
    if (dtype == DType::BFloat16) f(Type<BFloat16>());
  }
}

template <class Acc>
void topz_gate_gradient_rows(const TopzGateGradientParams<Acc>& p, DType dtype, int64_t begin,
                             int64_t end, Acc* scratch) {
  if (p.d_logits)
    with_storage<Acc>(dtype, [&](auto type) {
      using Storage = typename decltype(type)::Storage;
      for (int64_t n = begin; n < end; n++) d_logits_row<Storage>(p, n);
    });
  if (p.d_feature)
    with_storage<Acc>(p.feature_dtype, [&](auto type) {
      using Storage = typename decltype(type)::Storage;
      Acc* const slope = scratch + p.width;
      for (int64_t n = begin; n < end; n++) {
        for (int64_t j = 0; j < p.hidden; j++) slope[j] = unit_slope(p, n, j);
        const Storage* v = static_cast<const Storage*>(p.feature) + n * p.feature_stride;
        d_feature_row<Storage>(p, n, v, scratch, slope);
      }
    });
}

template <class Acc>
void topz_gate_gradient_sums(const TopzGateGradientParams<Acc>& p, Acc* slope) {
  for (int64_t k = 0; k < p.z + p.hidden; k++) p.d_w2[k] = 0;
  for (int64_t j = 0; j < p.hidden; j++) p.d_b1[j] = 0;
  Acc sum = 0;
  for (int64_t n = 0; n < p.rows; n++) {
    const Acc g = p.upstream[n], r = std::abs(p.inverse_norm[n]);
    sum += g;
    const Acc* const top = p.top + n * p.z;
    for (int64_t k = 0; k < p.z; k++) p.d_w2[k] += g * top[k];
    for (int64_t j = 0; j < p.hidden; j++) {
      const Acc s = unit_slope(p, n, j);
      p.d_w2[p.z + j] += g * p.units[n * p.hidden + j];
      p.d_b1[j] += s;
      slope[n * p.hidden + j] = s * r;
    }
  }
  *p.d_b2 = sum;
}

template <class Acc>
void topz_gate_gradient_columns(const TopzGateGradientParams<Acc>& p, const Acc* slope,
                                int64_t begin, int64_t end) {
  with_storage<Acc>(p.feature_dtype, [&](auto type) {
    using Storage = typename decltype(type)::Storage;
    columns<Storage>(p, slope, begin, end);
  });
}

#define LTK_INSTANTIATE(Acc)                                                                     \
  template int64_t topz_gate_scratch<Acc>(const TopzGateParams<Acc>&);                           \
  template void topz_gate_gradient_rows<Acc>(const TopzGateGradientParams<Acc>&, DType, int64_t, \
                                             int64_t, Acc*);                                     \
  template void topz_gate_gradient_sums<Acc>(const TopzGateGradientParams<Acc>&, Acc*);          \
  template void topz_gate_gradient_columns<Acc>(const TopzGateGradientParams<Acc>&, const Acc*,  \
                                                int64_t, int64_t);
LTK_INSTANTIATE(float)
LTK_INSTANTIATE(double)
#undef LTK_INSTANTIATE

}  // namespace ltk::LTK_ISA
