// The op ltkernels::info_nce with the gradient of its query.
#include "bindings/tensor.h"
#include "ops/info_nce/info_nce_cpu.h"
#ifdef LTK_WITH_CUDA
#include "bindings/cuda.h"
#include "ops/info_nce/info_nce_cuda.h"
#endif

#include <tuple>

namespace ltk {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor>;  // loss, gradient, its scale

StridedMatrix matrix(const Tensor& t) {
  return {t.const_data_ptr(), dtype_of(t), t.stride(0), t.stride(1)};
}

void check_matrix(const Tensor& t, const char* name, const Tensor& query) {
  STD_TORCH_CHECK(t.dim() == 2 && t.size(1) == query.size(1), "expected `", name,
                  "` to be 2-D with D = ", query.size(1), " columns");
  STD_TORCH_CHECK(t.get_device() == query.get_device(), "expected `", name,
                  "` to be on the device of the query");
}

template <class Acc>
int64_t tile_of_isa() {
  switch (selected_isa()) {
#define LTK_CASE(isa) \
  case Isa::isa: return isa::info_nce_tile<Acc>();
    LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
  }
  return 1;
}

// Enough tasks for 16 threads where the queue is long. Of the shape alone: the number of threads
// does not change the result.
int64_t parts_of_queue(int64_t tiles, int64_t queue_rows) {
  constexpr int64_t kTasks = 16, kRowsAPart = 4096;
  return std::max<int64_t>(1,
                           std::min(kTasks / std::max<int64_t>(tiles, 1), queue_rows / kRowsAPart));
}

template <class Acc>
void info_nce_cpu(InfoNceParams<Acc>& p) {
  const int64_t tile = tile_of_isa<Acc>(), tiles = (p.rows + tile - 1) / tile;
  const int64_t work = tile * p.columns * (p.queue_rows / p.parts + 1) / 8;
  switch (selected_isa()) {
#define LTK_CASE(isa)                                                                 \
  case Isa::isa: {                                                                    \
    const int64_t scratch = isa::info_nce_scratch(p);                                 \
    for_rows(tiles, tile * p.columns,                                                 \
             [&](int64_t begin, int64_t end) { isa::info_nce_pack(p, begin, end); }); \
    for_rows(tiles * p.parts, work, [&](int64_t begin, int64_t end) {                 \
      isa::info_nce_tasks(p, begin, end, thread_scratch<Acc>(scratch));               \
    });                                                                               \
    for_rows(tiles, tile * p.columns * p.parts, [&](int64_t begin, int64_t end) {     \
      isa::info_nce_finish(p, begin, end, thread_scratch<Acc>(scratch));              \
    });                                                                               \
    break;                                                                            \
  }
    LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
  }
  const Acc divisor = p.reduction == Reduction::Mean ? static_cast<Acc>(p.rows) : Acc(1);
  if (p.loss != nullptr) *p.loss = ordered_sum(p.row_loss, p.rows) / divisor;
}

template <class Acc>
int64_t workspace_of_isa(const InfoNceParams<Acc>& p) {
  switch (selected_isa()) {
#define LTK_CASE(isa) \
  case Isa::isa: return isa::info_nce_workspace(p);
    LTK_FOR_EACH_ISA(LTK_CASE)
#undef LTK_CASE
  }
  return 0;
}

Outputs info_nce(const Tensor& query, const Tensor& key, const Tensor& queue, double temperature,
                 const std::optional<Tensor>& row_temperature, int64_t reduction, bool gradient) {
  STD_TORCH_CHECK(query.dim() == 2, "expected `query` to be 2-D, got ", query.dim(), "-D");
  check_matrix(key, "key", query);
  check_matrix(queue, "queue", query);
  const int64_t n = query.size(0), d = query.size(1);
  STD_TORCH_CHECK(key.size(0) == n, "expected `key` to have N = ", n, " rows");
  const DType dtype = dtype_of(query);
  for (const Tensor& t : {key, queue})
    STD_TORCH_CHECK(dtype == DType::Float64 || dtype_of(t) != DType::Float64,
                    "expected a float64 `query` with a float64 `key` or `queue`");
  return dispatch_accumulate(dtype, [&](auto zero) -> Outputs {
    using Acc = decltype(zero);
    constexpr ScalarType acc = scalar_type_of<Acc>();
    const Tensor row_loss = empty({n}, acc, query);
    const Tensor loss = reduction == 0 ? row_loss : empty_scalar(acc, query);
    const Tensor grad = gradient ? empty({n, d}, query.scalar_type(), query) : no_tensor(query);
    const bool scaled = gradient && dtype == DType::Float16;
    const Tensor grad_scale = scaled ? empty({n}, acc, query) : no_tensor(query);

    InfoNceParams<Acc> p{};
    p.rows = n;
    p.columns = d;
    p.queue_rows = queue.size(0);
    p.query = matrix(query);
    p.key = matrix(key);
    p.queue = matrix(queue);
    p.temperature = static_cast<Acc>(temperature);
    p.row_temperature = data_or_null<Acc>(row_temperature, n, "row_temperature", query);
    p.reduction = static_cast<Reduction>(reduction);
    p.factor = p.reduction == Reduction::Mean ? 1 / static_cast<Acc>(n) : Acc(1);
    p.row_loss = static_cast<Acc*>(row_loss.mutable_data_ptr());
    p.loss = reduction == 0 ? nullptr : static_cast<Acc*>(loss.mutable_data_ptr());
    p.grad = gradient ? grad.mutable_data_ptr() : nullptr;
    p.grad_scale = scaled ? static_cast<Acc*>(grad_scale.mutable_data_ptr()) : nullptr;
#ifdef LTK_WITH_CUDA
    if (query.is_cuda()) {
      const CudaCall call(query);
      call.check("info_nce", info_nce_cuda_plan<Acc>(p, query.get_device_index()));
      const Tensor workspace = empty({info_nce_cuda_workspace(p)}, acc, query);
      p.workspace = static_cast<Acc*>(workspace.mutable_data_ptr());
      const Tensor counter = empty({1}, ScalarType::Int, query);
      call.check("info_nce", info_nce_cuda<Acc>(p, call.launch_counting(counter)));
      return {loss, grad, grad_scale};
    }
#endif
    const int64_t tile = tile_of_isa<Acc>();
    cut_queue(p, parts_of_queue((n + tile - 1) / tile, p.queue_rows));
    const Tensor workspace = empty({workspace_of_isa(p)}, acc, query);
    p.workspace = static_cast<Acc*>(workspace.mutable_data_ptr());
    info_nce_cpu(p);
    return {loss, grad, grad_scale};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ltkernels, m) {
  m.def(
      "info_nce(Tensor query, Tensor key, Tensor queue, float temperature, "
      "Tensor? row_temperature, int reduction, bool gradient) "
      "-> (Tensor loss, Tensor grad, Tensor grad_scale)");
}
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CPU, m) { m.impl("info_nce", TORCH_BOX(&info_nce)); }
#ifdef LTK_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(ltkernels, CUDA, m) { m.impl("info_nce", TORCH_BOX(&info_nce)); }
#endif

}  // namespace ltk
