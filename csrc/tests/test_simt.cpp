// The tests' own test: simt.h must run correct kernels right, and must find planted bugs.
#include <sys/wait.h>

#include "common/cuda/reduce.cuh"
#include "tests/check.h"

namespace {

using namespace ltk::cuda;

template <class Body>
void in_every_order(Body body) {
  for (simt::Order order : check::kOrders) {
    simt::settings.order = order;
    body(order);
  }
  simt::settings.order = simt::Order::Forward;
}

__global__ void block_reduction(const float* in, float* out) {
  BlockGroup group(dynamic_shared());
  for (int repeat = 0; repeat < 5; ++repeat) {
    const float sum = group.all_reduce(in[threadIdx.x] + repeat, Sum());
    out[repeat * blockDim.x + threadIdx.x] = sum;
  }
}

template <int kLanes>
__global__ void lane_reduction(const float* in, float* out) {
  LaneGroup<kLanes> group(nullptr);
  out[threadIdx.x] = group.all_reduce(in[threadIdx.x], Max());
}

template <int kLanes>
void check_lanes(const std::vector<float>& in) {
  std::vector<float> out(in.size());
  simt::launch(lane_reduction<kLanes>, 1, dim3(in.size()), 0, in.data(), out.data());
  for (size_t i = 0; i < in.size(); ++i) {
    float want = -kInfinity<float>;
    for (size_t j = i / kLanes * kLanes; j < (i / kLanes + 1) * kLanes; ++j) {
      want = std::max(want, in[j]);
    }
    check::close(out[i], want, 0, "the maximum of " + std::to_string(kLanes) + " lanes");
  }
}

// Two blocks of work meet in the last block.
__global__ void last_block(float* partial, unsigned* counter, float* out) {
  unsigned char* const scratch = dynamic_shared();
  if (threadIdx.x == 0) partial[blockIdx.x] = static_cast<float>(blockIdx.x + 1);
  if (!is_last_block(counter, scratch)) return;
  const double sum = block_sum(gridDim.x, scratch, [&](int64_t n) { return double(partial[n]); });
  if (threadIdx.x == 0) *out = static_cast<float>(sum);
}

// Reads what a neighbour writes; right only with the barrier.
template <bool kBarrier>
__global__ void neighbour(float* out) {
  float* const shared = reinterpret_cast<float*>(dynamic_shared());
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (kBarrier) __syncthreads();
  out[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x];
}

__global__ void divergent_barrier() {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

// Every thread of warp 0 waits for a shuffle in which lane 31 takes no part.
__global__ void missing_lane(int* out) {
  if (threadIdx.x == 31) {
    __syncthreads();
  } else {
    out[threadIdx.x] = __shfl_xor_sync(kAllLanes, static_cast<int>(threadIdx.x), 1);
    __syncthreads();
  }
}

__global__ void exited_lane(int* out) {
  if (threadIdx.x >= 16) return;
  out[threadIdx.x] = __shfl_xor_sync(kAllLanes, static_cast<int>(threadIdx.x), 16);
}

__global__ void wrong_mask(int* out) {
  out[threadIdx.x] = __shfl_xor_sync(0xffffu, static_cast<int>(threadIdx.x), 1);
}

// Threads that leave early do not hold up a barrier.
__global__ void early_exit(int* out) {
  if (threadIdx.x % 2) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void writes(float* shared_or_null, int index) {
  float* const to = shared_or_null ? shared_or_null : reinterpret_cast<float*>(dynamic_shared());
  to[index] = 1;
}

__global__ void misaligned(const float* in, float* out) {
  const uint4 four = load16_constant(in + threadIdx.x);
  memcpy(out, &four, 16);
}

__global__ void reads_poison(float* out) { *out = *reinterpret_cast<float*>(dynamic_shared()); }

__global__ void asserts(int limit) { device_assert(int(threadIdx.x) < limit, "too many threads"); }

__global__ void nothing() {}

bool run_race() {
  std::vector<float> out(64);
  simt::launch(neighbour<false>, 1, 64, 64 * sizeof(float), out.data());
  bool wrong = false;
  for (int i = 0; i < 64; ++i) wrong = wrong || !(out[i] == (i + 1) % 64);
  return wrong;
}

// What a sanitizer finds ends the program: let a child find it.
[[maybe_unused]] void child_fails(const std::function<void()>& body) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    if (!std::freopen("/dev/null", "w", stderr)) std::exit(0);
    body();
    std::exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  check::that(!WIFEXITED(status) || WEXITSTATUS(status) != 0, "the bug went unnoticed");
}

}  // namespace

int main() {
  check::test("reductions of lanes and blocks", [] {
    std::vector<float> in(512);
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i * 37 % 101);
    in_every_order([&](simt::Order) {
      check_lanes<1>(in);
      check_lanes<8>(in);
      check_lanes<32>(in);
      for (unsigned threads : {32u, 64u, 256u, 512u}) {
        std::vector<float> out(5 * threads);
        simt::launch(block_reduction, 1, threads, scratch_bytes(int(threads)), in.data(),
                     out.data());
        float want = 0;
        for (unsigned i = 0; i < threads; ++i) want += in[i];
        for (size_t i = 0; i < out.size(); ++i) {
          check::close(out[i], want + float(i / threads * threads), 0, "the sum of a block");
        }
      }
    });
  });
  check::test("the last block sees what all blocks wrote", [] {
    in_every_order([&](simt::Order) {
      std::vector<float> partial(7);
      unsigned counter = 0;
      float out = 0;
      simt::launch(last_block, 7, 64, scratch_bytes(64), partial.data(), &counter, &out);
      check::close(out, 28, 0, "the sum over blocks");
      check::close(counter, 0, 0, "the counter afterwards");
    });
  });
  check::test("barriers order memory, and threads may leave early", [] {
    in_every_order([&](simt::Order) {
      std::vector<float> out(64);
      simt::launch(neighbour<true>, 1, 64, 64 * sizeof(float), out.data());
      for (int i = 0; i < 64; ++i) check::close(out[i], (i + 1) % 64, 0, "the neighbour");
      std::vector<int> left(64);
      simt::launch(early_exit, 1, 64, 0, left.data());
      for (int i = 0; i < 64; ++i) check::close(left[i], 1 - i % 2, 0, "a thread that stayed");
    });
  });
#if defined(__SANITIZE_THREAD__)
  check::test("ThreadSanitizer finds a race", [] { child_fails([] { run_race(); }); });
#else
  check::test("finds a race: a missing barrier gives wrong results", [] {
    bool wrong = false;
    in_every_order([&](simt::Order) { wrong = run_race() || wrong; });
    check::that(wrong, "no order showed the race");
  });
#endif
  check::test("finds a barrier in divergent code", [] {
    in_every_order([&](simt::Order) {
      check::fails_with("while others wait at __syncthreads (test_simt.cpp:",
                        [] { simt::launch(divergent_barrier, 1, 32, 0); });
    });
  });
  check::test("finds a deadlock and names its place", [] {
    std::vector<int> out(32);
    in_every_order([&](simt::Order) {
      check::fails_with("deadlock: block 0 thread 0 at __shfl_xor_sync (test_simt.cpp:",
                        [&] { simt::launch(missing_lane, 1, 32, 0, out.data()); });
    });
  });
  check::test("finds shuffles with lanes that are not there", [] {
    std::vector<int> out(32);
    in_every_order([&](simt::Order) {
      check::fails_with("which is not at __shfl_xor_sync",
                        [&] { simt::launch(exited_lane, 1, 32, 0, out.data()); });
      check::fails_with("is not in the mask",
                        [&] { simt::launch(wrong_mask, 1, 32, 0, out.data()); });
    });
  });
  check::test("finds misaligned 16-byte accesses", [] {
    alignas(16) float in[8] = {};
    float out[4];
    simt::launch(misaligned, 1, 1, 0, in, out);
    check::fails_with("misaligned access of 16 bytes",
                      [&] { simt::launch(misaligned, 1, 2, 0, in, out); });
  });
  check::test("device assertions stop the kernel", [] {
    simt::launch(asserts, 1, 32, 0, 32);
    check::fails_with("block 0 thread 31: device assertion: too many threads",
                      [] { simt::launch(asserts, 1, 32, 0, 31); });
  });
  check::test("shared memory starts as NaN and ends where the launch says", [] {
    float out = 0;
    simt::launch(reads_poison, 1, 1, 16, &out);
    check::that(std::isnan(out), "shared memory is not poisoned");
    simt::launch(writes, 1, 1, 16, static_cast<float*>(nullptr), 3);
#if !defined(__SANITIZE_ADDRESS__)  // which ends the program at the write, see `overrun`
    check::fails_with("wrote past its 16 bytes of shared memory",
                      [] { simt::launch(writes, 1, 1, 16, static_cast<float*>(nullptr), 4); });
#endif
  });
  check::test("refuses launches that no device accepts", [] {
    const auto refused = [](unsigned blocks, unsigned threads, size_t shared) {
      simt::last_error = nullptr;
      simt::launch(nothing, blocks, threads, shared);
      return simt::last_error != nullptr;
    };
    check::that(!refused(1, 1024, 48 * 1024), "a launch at the limits");
    check::that(refused(0, 32, 0), "no blocks");
    check::that(refused(1, 1025, 0), "1025 threads");
    check::that(refused(1, 32, 48 * 1024 + 1), "more shared memory than was asked for");
  });
#if defined(__SANITIZE_ADDRESS__)
  check::test("AddressSanitizer finds overruns of shared and global memory", [] {
    std::vector<float> global(4);
    child_fails([&] { simt::launch(writes, 1, 1, 16, global.data(), 4); });
    child_fails([] { simt::launch(writes, 1, 1, 16, static_cast<float*>(nullptr), 4); });
  });
#endif
  return check::finish();
}
