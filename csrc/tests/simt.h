// Runs CUDA kernels on the CPU, so that they can be tested without a GPU.
//
// Every CUDA thread of a block is a fiber with its own stack; a fiber runs until it reaches a
// barrier or a warp collective, then another one runs. The order in which fibers run is a setting
// (forward, reverse, random): a kernel that lacks a barrier gives a wrong or changing result in one
// of them. What is found on the way is thrown as `simt::Error` with the block, the thread and the
// source line:
//   - deadlock: some threads wait at a barrier that others never reach, or wait at different ones;
//   - lanes of a warp that disagree on the collective or its mask, or read a lane that is not
//   there;
//   - a 16-byte access that is not aligned to 16 bytes;
//   - a device assertion, a launch that no device accepts;
//   - a write past the end of shared memory (under AddressSanitizer: any access, with its line).
// Shared memory starts as NaN. Blocks run one after the other, in the same order as the fibers.
// Built with -fsanitize=thread, every two accesses of different threads without a barrier between
// them are reported, whatever the order.
//
// Shared memory is dynamic only: `simt::dynamic_shared()`. A kernel that says `__shared__` does not
// compile here.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

#define __global__
#define __device__
#define __host__
#ifdef __SANITIZE_ADDRESS__
#define __forceinline__ inline  // inlined, the instrumented kernels take minutes to compile
#else
#define __forceinline__ inline __attribute__((always_inline))
#endif
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace simt {

// ---- Settings -----------------------------------------------------------------------------------

enum class Order { Forward, Reverse, Random };

struct Settings {
  Order order = Order::Forward;
  unsigned seed = 1;
  int multiprocessors = 4;
  int shared_memory = 227 * 1024;  // the most a block may ask for
};
inline Settings settings;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The source line of a barrier or collective: named in errors, compared between threads.
struct Site {
  const char* what;
  const char* file;
  int line;
  bool operator==(const Site& other) const { return line == other.line && file == other.file; }
  std::string text() const {
    const char* base = std::strrchr(file, '/');
    return std::string(what) + " (" + (base ? base + 1 : file) + ":" + std::to_string(line) + ")";
  }
};

// ---- What the sanitizers are told ---------------------------------------------------------------

inline void happens_before([[maybe_unused]] void* mark) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(mark);
#endif
}
inline void happens_after([[maybe_unused]] void* mark) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(mark);
#endif
}

// While it lives, ThreadSanitizer looks away: this header's own bookkeeping is no part of the
// kernel.
struct Bookkeeping {
#if defined(__SANITIZE_THREAD__)
  Bookkeeping() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Bookkeeping() {
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  }
#else
  Bookkeeping() {}
#endif
  Bookkeeping(const Bookkeeping&) = delete;
  Bookkeeping& operator=(const Bookkeeping&) = delete;
};

// ---- Fibers -------------------------------------------------------------------------------------

#if defined(__x86_64__)
// Saves the callee-saved registers on this stack, its address in *from, and goes on at `to`.
[[gnu::naked, gnu::noinline, gnu::no_sanitize_address, gnu::no_sanitize_thread,
  gnu::no_sanitize_undefined]] inline void
switch_stack(void** /*from*/, void* /*to*/) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
      "movq %rsp, (%rdi); movq %rsi, %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
#endif

class Stack {
 public:
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  static constexpr size_t kBytes = 256 * 1024;
#else
  static constexpr size_t kBytes = 64 * 1024;
#endif
  Stack() {
    const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    memory_ = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory_, guard, PROT_NONE);  // an overflow faults
  }
  ~Stack() { munmap(memory_, kBytes); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  char* bottom() const { return static_cast<char*>(memory_); }
  char* top() const { return bottom() + kBytes; }

 private:
  void* memory_;
};

// Where a context continues: a fiber, or the scheduler.
struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
#if defined(__SANITIZE_THREAD__)
  void* tsan_fiber = nullptr;
#endif
  const void* bottom = nullptr;
  size_t size = 0;
};

inline void switch_context(Context& from, Context& to, [[maybe_unused]] bool for_good = false) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.tsan_fiber, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
  switch_stack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

inline void prepare(Context& context, const Stack& stack, void (*entry)()) {
  context.bottom = stack.bottom();
  context.size = Stack::kBytes;
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(stack.top());
  *--top = nullptr;  // where `entry` would return to: never
  *--top = reinterpret_cast<void*>(entry);
  for (int saved_register = 0; saved_register < 6; ++saved_register) *--top = nullptr;
  context.stack_pointer = top;
#else
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack.bottom();
  context.context.uc_stack.ss_size = Stack::kBytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
#endif
}

// ---- Threads, warps, blocks ---------------------------------------------------------------------

constexpr int kWarp = 32;

enum class State { Ready, Waiting, Done };

struct Thread {
  Context context;
  std::unique_ptr<Stack> stack;
  dim3 index;
  unsigned linear = 0;
  State state = State::Ready;
  const void* waits_for = nullptr;
  Site site{};
};

// Threads named by `mask` meet here; each leaves eight bytes that the others may read.
struct Meeting {
  unsigned mask = 0, arrived = 0;
  unsigned generation = 0;  // two generations overlap: early leavers may be
  std::array<std::array<uint64_t, kWarp>, 2> slot{};  // back before late ones have read
  std::array<unsigned, 2> present{};
  Site site{};
};

struct Warp {
  unsigned exited = 0;
  int ready = 0;                                   // threads that can run
  std::vector<std::unique_ptr<Meeting>> meetings;  // one for each mask in use
};

struct Block {
  dim3 grid, size, index;
  std::vector<Thread>* threads = nullptr;
  std::vector<Warp> warps;
  unsigned count = 0, live = 0, arrived = 0, generation = 0;
  Site barrier{};
  std::array<char, 2> barrier_mark{};
  char* shared = nullptr;
  const std::function<void()>* body = nullptr;
  std::string error;
};

inline Block* block = nullptr;
inline Thread* current = nullptr;
inline Context scheduler;

[[noreturn]] inline void fail(const std::string& message) { throw Error(message); }

inline std::string name(const Thread& thread) {
  return "block " + std::to_string(block->index.x) + " thread " + std::to_string(thread.linear);
}

inline void wait(const void* event) {
  current->state = State::Waiting;
  current->waits_for = event;
  --block->warps[current->linear / kWarp].ready;
  switch_context(current->context, scheduler);
}

inline void wake(const void* event) {
  for (unsigned i = 0; i < block->count; ++i) {
    Thread& thread = (*block->threads)[i];
    if (thread.state != State::Waiting || thread.waits_for != event) continue;
    thread.state = State::Ready;
    ++block->warps[i / kWarp].ready;
  }
}

inline void open_barrier() {
  block->arrived = 0;
  ++block->generation;
  wake(block);
}

inline void sync_block(Site site) {
  const Bookkeeping quiet;
  current->site = site;
  if (block->arrived > 0 && !(block->barrier == site)) {
    fail(name(*current) + " is at " + site.text() + " while others wait at " +
         block->barrier.text());
  }
  block->barrier = site;
  char* mark = &block->barrier_mark[block->generation % 2];
  happens_before(mark);
  if (++block->arrived == block->live) {
    open_barrier();
  } else {
    wait(block);
  }
  happens_after(mark);
}

inline bool complete(const Warp& warp, const Meeting& meeting) {
  return ((meeting.arrived | warp.exited) & meeting.mask) == meeting.mask;
}

inline void open_meeting(Meeting& meeting) {
  meeting.present[meeting.generation % 2] = meeting.arrived;
  meeting.arrived = 0;
  ++meeting.generation;
  wake(&meeting);
}

struct Exchanged {
  const std::array<uint64_t, kWarp>* slot;
  unsigned present;
};

inline Exchanged exchange(unsigned mask, uint64_t value, Site site, bool orders_memory = false) {
  const Bookkeeping quiet;
  const unsigned lane = current->linear % kWarp;
  Warp& warp = block->warps[current->linear / kWarp];
  current->site = site;
  if (!(mask >> lane & 1)) fail(name(*current) + " is not in the mask of its " + site.text());
  Meeting* meeting = nullptr;
  for (auto& candidate : warp.meetings) {
    if (candidate->mask == mask) meeting = candidate.get();
  }
  if (!meeting) {
    warp.meetings.push_back(std::make_unique<Meeting>());
    meeting = warp.meetings.back().get();
    meeting->mask = mask;
  }
  if (meeting->arrived && !(meeting->site == site)) {
    fail(name(*current) + " is at " + site.text() + " while others of its warp wait at " +
         meeting->site.text());
  }
  meeting->site = site;
  const unsigned parity = meeting->generation % 2;
  meeting->slot[parity][lane] = value;
  meeting->arrived |= 1u << lane;
  if (orders_memory) happens_before(&meeting->present[parity]);
  if (complete(warp, *meeting)) {
    open_meeting(*meeting);
  } else {
    wait(meeting);
  }
  if (orders_memory) happens_after(&meeting->present[parity]);
  return {&meeting->slot[parity], meeting->present[parity]};
}

inline void leave_block() {
  const Bookkeeping quiet;
  const unsigned lane = current->linear % kWarp;
  Warp& warp = block->warps[current->linear / kWarp];
  current->state = State::Done;
  --warp.ready;
  --block->live;
  warp.exited |= 1u << lane;
  for (auto& meeting : warp.meetings) {
    if (meeting->arrived && complete(warp, *meeting)) open_meeting(*meeting);
  }
  if (block->arrived > 0 && block->arrived == block->live) open_barrier();
}

[[gnu::no_sanitize_address]] inline void run_thread() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.size);
#endif
  happens_after(&scheduler);
  try {
    (*block->body)();
  } catch (const std::exception& error) {
    block->error = error.what();
  }
  happens_before(block);
  leave_block();
  switch_context(current->context, scheduler, true);
}

inline std::string deadlock() {
  std::string text = "deadlock:";
  int named = 0;
  for (unsigned i = 0; i < block->count; ++i) {
    const Thread& thread = (*block->threads)[i];
    if (thread.state != State::Waiting || named++ == 8) continue;
    if (named > 8) break;
    text += (named > 1 ? ", " : " ") + name(thread) + " at " + thread.site.text();
  }
  return text;
}

// Stacks and fibers outlive a launch: making them costs more than running most kernels.
inline std::vector<Thread>& thread_pool() {
  static std::vector<Thread> pool(1024);
  return pool;
}

inline void run_block(Block& state, std::mt19937& random) {
  const Bookkeeping quiet;
  std::vector<Thread>& threads = thread_pool();
  block = &state;
  state.threads = &threads;
  state.live = state.count = state.size.x * state.size.y * state.size.z;
  state.warps.clear();
  state.warps.resize((state.count + kWarp - 1) / kWarp);
  if (state.count % kWarp) state.warps.back().exited = ~0u << state.count % kWarp;
  state.arrived = 0;
  for (unsigned i = 0; i < state.count; ++i) {
    Thread& thread = threads[i];
    if (!thread.stack) {
      thread.stack = std::make_unique<Stack>();
#if defined(__SANITIZE_THREAD__)
      thread.context.tsan_fiber = __tsan_create_fiber(0);
#endif
    }
    prepare(thread.context, *thread.stack, run_thread);
    thread.linear = i;
    thread.index = {i % state.size.x, i / state.size.x % state.size.y,
                    i / (state.size.x * state.size.y)};
    thread.state = State::Ready;
    ++state.warps[i / kWarp].ready;
  }
#if defined(__SANITIZE_THREAD__)
  scheduler.tsan_fiber = __tsan_get_current_fiber();
#endif
  happens_before(&scheduler);
  // A warp runs as far as it gets before another one does: the widest gap between fast and slow.
  std::vector<unsigned> warps(state.warps.size()), lanes(kWarp);
  for (unsigned i = 0; i < warps.size(); ++i) warps[i] = i;
  for (unsigned i = 0; i < lanes.size(); ++i) lanes[i] = i;
  if (settings.order == Order::Reverse) {
    std::reverse(warps.begin(), warps.end());
    std::reverse(lanes.begin(), lanes.end());
  }
  while (state.live > 0) {
    if (settings.order == Order::Random) {
      std::shuffle(warps.begin(), warps.end(), random);
      std::shuffle(lanes.begin(), lanes.end(), random);
    }
    const auto next = std::find_if(warps.begin(), warps.end(),
                                   [&](unsigned warp) { return state.warps[warp].ready > 0; });
    if (next == warps.end()) fail(deadlock());
    for (unsigned lane : lanes) {
      const unsigned i = *next * kWarp + lane;
      if (i >= state.count || threads[i].state != State::Ready) continue;
      current = &threads[i];
      switch_context(scheduler, current->context);
      if (state.error.empty()) continue;
      happens_after(block);
#if defined(__SANITIZE_ADDRESS__)  // the fibers left behind end here: forget their frames
      for (unsigned j = 0; j < state.count; ++j) {
        __asan_unpoison_memory_region(threads[j].stack->bottom(), Stack::kBytes);
      }
#endif
      fail(state.error);
    }
  }
  happens_after(block);
}

// ---- Launch -------------------------------------------------------------------------------------

inline std::map<const void*, int> shared_limit;  // what cudaFuncSetAttribute was told
inline const char* last_error = nullptr;
inline std::set<const void*> launched;  // kernels so far

constexpr int kSharedByDefault = 48 * 1024;

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 size, size_t shared,
            Arguments... arguments) {
  const auto allowed = shared_limit.find(reinterpret_cast<const void*>(kernel));
  const int limit = allowed == shared_limit.end() ? kSharedByDefault : allowed->second;
  const uint64_t threads = uint64_t{size.x} * size.y * size.z;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 ||
      grid.y > 65535 || grid.z == 0 || grid.z > 65535 || shared > static_cast<size_t>(limit)) {
    last_error = "invalid configuration argument";
    return;
  }
  launched.insert(reinterpret_cast<const void*>(kernel));
  const std::function<void()> body = [&] { kernel(arguments...); };
  Block state;
  state.grid = grid;
  state.size = size;
  state.body = &body;
  std::mt19937 random(settings.seed);
  std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
  for (uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  if (settings.order == Order::Reverse) std::reverse(blocks.begin(), blocks.end());
  if (settings.order == Order::Random) std::shuffle(blocks.begin(), blocks.end(), random);
  constexpr unsigned char kPoison = 0xff, kCanary = 0xa5;
#if defined(__SANITIZE_ADDRESS__)
  const size_t canary = 0;  // the sanitizer knows the bounds
#else
  const size_t canary = 64;
#endif
  for (uint64_t i : blocks) {
    state.index = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                   static_cast<unsigned>(i / grid.x / grid.y)};
    const std::unique_ptr<void, void (*)(void*)> memory(std::malloc(shared + canary), std::free);
    state.shared = static_cast<char*>(memory.get());
    std::memset(state.shared, kPoison, shared);
    std::memset(state.shared + shared, kCanary, canary);
    run_block(state, random);
    for (size_t byte = shared; byte < shared + canary; ++byte) {
      if (static_cast<unsigned char>(state.shared[byte]) != kCanary) {
        fail("block " + std::to_string(state.index.x) + " wrote past its " +
             std::to_string(shared) + " bytes of shared memory");
      }
    }
  }
}

inline unsigned char* dynamic_shared() { return reinterpret_cast<unsigned char*>(block->shared); }

inline void check_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes) {
    fail(name(*current) + ": misaligned access of " + std::to_string(bytes) + " bytes");
  }
}

// A vector access: one instruction on the GPU, which faults unless it is aligned to its size.
template <class T>
T load(const void* address) {
  check_aligned(address, sizeof(T));
  T value;
  std::memcpy(&value, address, sizeof(T));
  return value;
}
template <class T>
void store(void* address, T value) {
  check_aligned(address, sizeof(T));
  std::memcpy(address, &value, sizeof(T));
}

template <class T>
uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most eight bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, Site site) {
  const Exchanged all = exchange(mask, pack(value), site);
  const Bookkeeping quiet;
  if (!(all.present >> source & 1)) {
    fail(name(*current) + " reads lane " + std::to_string(source) + ", which is not at " +
         site.text());
  }
  T result;
  std::memcpy(&result, &(*all.slot)[source], sizeof(T));
  return result;
}

inline unsigned lane() { return current->linear % kWarp; }

}  // namespace simt

// ---- The names CUDA code uses -------------------------------------------------------------------

#define threadIdx (simt::current->index)
#define blockIdx (simt::block->index)
#define blockDim (simt::block->size)
#define gridDim (simt::block->grid)

#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SIMT_SITE) { simt::sync_block({"__syncthreads", file, line}); }

inline void __syncwarp(unsigned mask = ~0u, SIMT_SITE) {
  simt::exchange(mask, 0, {"__syncwarp", file, line}, true);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = simt::kWarp, SIMT_SITE) {
  const unsigned first = simt::lane() & ~unsigned(width - 1);
  return simt::shuffle(mask, value, first | (unsigned(source) & unsigned(width - 1)),
                       {"__shfl_sync", file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = simt::kWarp, SIMT_SITE) {
  const unsigned source = simt::lane() ^ unsigned(lanes);
  const bool inside = source / unsigned(width) == simt::lane() / unsigned(width);
  return simt::shuffle(mask, value, inside ? source : simt::lane(),
                       {"__shfl_xor_sync", file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = simt::kWarp, SIMT_SITE) {
  const unsigned place = simt::lane() & unsigned(width - 1);
  const bool inside = place + lanes < unsigned(width);
  return simt::shuffle(mask, value, inside ? simt::lane() + lanes : simt::lane(),
                       {"__shfl_down_sync", file, line});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_SITE) {
  const simt::Exchanged all = simt::exchange(mask, predicate != 0, {"__ballot_sync", file, line});
  const simt::Bookkeeping quiet;
  unsigned votes = 0;
  for (int lane = 0; lane < simt::kWarp; ++lane) {
    if (all.present >> lane & 1) votes |= unsigned((*all.slot)[lane]) << lane;
  }
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, SIMT_SITE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_SITE) {
  return __ballot_sync(mask, predicate == 0, file, line) == 0;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T atomicAdd(T* address, T value) {
  return __atomic_fetch_add(address, value, __ATOMIC_ACQ_REL);
}
inline void __threadfence() {
#if !defined(__SANITIZE_THREAD__)  // which knows no fences, but takes atomicAdd for one
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

// ---- The runtime calls that host entries make ---------------------------------------------------

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? simt::settings.multiprocessors
                                                       : simt::settings.shared_memory;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes > simt::settings.shared_memory) return cudaErrorInvalidValue;
  simt::shared_limit[reinterpret_cast<const void*>(kernel)] = bytes;
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
