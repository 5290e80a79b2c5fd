#include "tests/cuda/shim.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef KERAS_NORMS_MUTATE
#define KERAS_NORMS_MUTATE -1
#endif

namespace shim {

uint3 thread_index, block_index, block_size;

namespace {

constexpr size_t kStack = 256 << 10;
constexpr int kWarp = 32;

enum class State { kReady, kAtBarrier, kAtClusterBarrier, kAtShuffle, kAwaiting, kEnded };

using Stores = std::vector<std::pair<float*, float>>;

struct Fiber {
  ucontext_t context;
#if !defined(__SANITIZE_ADDRESS__)
  jmp_buf at;
  bool begun = false;
#endif
  void* stack = nullptr;
  void* fake_stack = nullptr;  // of AddressSanitizer
  State state = State::kEnded;
  int site = 0;      // of the barrier, or the mask of the shuffle
  int shuffles = 0;  // so far: a lane is at most one ahead of the others of its warp
  float offered[2];  // to this and the next shuffle
  const unsigned* arrived = nullptr;
  unsigned awaited = 0;
  std::vector<std::pair<const void*, void*>> copies;  // that are not awaited yet
  Stores told;                                        // since the last barrier
};

struct Scheduler {
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept from block to block
  Fiber home;
  int current = 0;
  const std::function<void()>* kernel = nullptr;
  int threads = 0;  // of a block
  unsigned shared_bytes = 0;
  bool cooperative = false;
  std::vector<std::unique_ptr<unsigned char[]>> shared;  // of each block that runs
  std::vector<Stores> told;                              // by each, before a barrier
};
Scheduler scheduler;

#if defined(__SANITIZE_ADDRESS__)
// The sanitizer is told that the stack changes.
void Switch(Fiber* from, Fiber* to, const void* stack, size_t size) {
  __sanitizer_start_switch_fiber(&from->fake_stack, stack, size);
  swapcontext(&from->context, &to->context);
  __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
}
#else
// A context is only begun: to go back and forth with swapcontext is a system call each time.
void Switch(Fiber* from, Fiber* to, const void*, size_t) {
  from->begun = true;
  if (_setjmp(from->at) != 0) return;
  if (to->begun) _longjmp(to->at, 1);
  setcontext(&to->context);
}
#endif

const void* home_stack = nullptr;
size_t home_size = 0;

Fiber& Current() { return *scheduler.fibers[scheduler.current]; }
void ToScheduler() { Switch(&Current(), &scheduler.home, home_stack, home_size); }

// A fiber runs one thread after another and never returns.
void Main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &home_stack, &home_size);
#endif
  for (;;) {
    (*scheduler.kernel)();
    Current().state = State::kEnded;
    ToScheduler();
  }
}

void Wait(State state, int site) {
  Current().state = state;
  Current().site = site;
  ToScheduler();
}

// Lets all fibers of [begin, end) go on if all wait for the same.
bool Release(int begin, int end, State state) {
  const Fiber& first = *scheduler.fibers[begin];
  for (int i = begin; i < end; ++i) {
    const Fiber& fiber = *scheduler.fibers[i];
    if (fiber.state != state || fiber.site != first.site) return false;
  }
  for (int i = begin; i < end; ++i) {
    Fiber& fiber = *scheduler.fibers[i];
    fiber.state = State::kReady;
    if (state != State::kAtBarrier) continue;
    Stores* const to = &scheduler.told[i / scheduler.threads];
    to->insert(to->end(), fiber.told.begin(), fiber.told.end());
    fiber.told.clear();
  }
  return true;
}

void AddFiber() {
  auto fiber = std::make_unique<Fiber>();
  fiber->stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (fiber->stack == MAP_FAILED || getcontext(&fiber->context) != 0) Abort("no fiber");
  fiber->context.uc_stack.ss_sp = fiber->stack;
  fiber->context.uc_stack.ss_size = kStack;
  makecontext(&fiber->context, Main, 0);
  scheduler.fibers.push_back(std::move(fiber));
}

uint64_t Next(uint64_t* state) {  // splitmix64
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void Shuffle(std::vector<int>* order, uint64_t* seed) {
  for (size_t i = order->size(); i > 1; --i) std::swap((*order)[i - 1], (*order)[Next(seed) % i]);
}

// Lets the warps of a block run one after the other, each as far as it comes. Whether one of them
// did anything.
bool RunWarps(int block, const std::vector<int>& warps, const std::vector<int>& lanes) {
  const int threads = scheduler.threads;
  bool ran = false;
  for (int warp : warps) {
    const int begin = warp * kWarp, end = std::min(begin + kWarp, threads);
    do {
      for (int lane : lanes) {
        const int i = begin + lane;
        if (i >= end) continue;
        Fiber& fiber = *scheduler.fibers[block * threads + i];
        if (fiber.state != State::kReady) continue;
        ran = true;
        scheduler.current = block * threads + i;
        thread_index = {static_cast<unsigned>(i), 0, 0};
        Switch(&scheduler.home, &fiber, fiber.stack, kStack);
      }
    } while (end - begin == kWarp &&
             Release(block * threads + begin, block * threads + end, State::kAtShuffle));
  }
  return ran;
}

// Lets those go on that await no more arrivals. Whether there are any.
bool ReleaseAwaiting() {
  bool any = false;
  for (const auto& fiber : scheduler.fibers) {
    if (fiber->state != State::kAwaiting || *fiber->arrived < fiber->awaited) continue;
    fiber->state = State::kReady;
    any = true;
  }
  return any;
}

bool HasEnded(int begin, int end) {
  return std::all_of(scheduler.fibers.begin() + begin, scheduler.fibers.begin() + end,
                     [](const auto& fiber) { return fiber->state == State::kEnded; });
}

// From barrier to barrier one block after the other.
void RunTogether(uint3 first, int blocks, uint64_t* seed) {
  const int threads = scheduler.threads, all = blocks * threads;
  std::vector<int> order(blocks), warps((threads + kWarp - 1) / kWarp), lanes(kWarp);
  for (std::vector<int>* each : {&order, &warps, &lanes}) {
    std::iota(each->begin(), each->end(), 0);
    Shuffle(each, seed);
  }
  for (int i = 0; i < all; ++i) scheduler.fibers[i]->state = State::kReady;
  while (!HasEnded(0, all)) {
    bool goes_on = false;
    for (int block : order) {
      const int begin = block * threads, end = begin + threads;
      if (HasEnded(begin, end)) continue;
      block_index = {first.x + block, first.y, 0};
      do {
        goes_on |= RunWarps(block, warps, lanes);
      } while (Release(begin, end, State::kAtBarrier));
      if (HasEnded(begin, end)) {
        std::memset(scheduler.shared[block].get(), 0xff, scheduler.shared_bytes);
      }
    }
    if (!Release(0, all, State::kAtClusterBarrier) && !goes_on && !ReleaseAwaiting()) {
      Abort("threads wait at different places");
    }
  }
}

}  // namespace

void Abort(const char* why) {
  std::printf("FAILED: %s\n", why);
  std::fflush(stdout);
  std::abort();
}

void* SharedMemory() { return scheduler.shared[scheduler.current / scheduler.threads].get(); }

const void* SharedMemoryOf(int rank, const void* p) {
  const auto offset =
      static_cast<const unsigned char*>(p) - static_cast<const unsigned char*>(SharedMemory());
  if (scheduler.cooperative || rank < 0 || rank >= static_cast<int>(scheduler.shared.size()) ||
      offset < 0 || offset >= scheduler.shared_bytes) {
    Abort("not in the shared memory of the cluster");
  }
  return scheduler.shared[rank].get() + offset;
}

void CopyAsync(const void* from, void* to) { Current().copies.emplace_back(from, to); }

void AwaitCopies() {
  for (const auto& [from, to] : Current().copies) std::memcpy(to, from, 16);
  Current().copies.clear();
}

void Synchronize(int site) {
  if (site != KERAS_NORMS_MUTATE) Wait(State::kAtBarrier, site);
}

void SynchronizeCluster(int site) {
  if (scheduler.cooperative) Abort("a barrier of a cluster in a launch without");
  if (site != KERAS_NORMS_MUTATE) Wait(State::kAtClusterBarrier, site);
}

void Tell(float* p, float value) { Current().told.emplace_back(p, value); }

void Arrive(unsigned* arrived) {
  if (!scheduler.cooperative) Abort("blocks that need not run at the same time");
  for (Stores* told : {&scheduler.told[scheduler.current / scheduler.threads], &Current().told}) {
    for (const auto& [p, value] : *told) *p = value;
    told->clear();
  }
  ++*arrived;
}

void Await(int site, const unsigned* arrived, unsigned all) {
  if (site == KERAS_NORMS_MUTATE) return;
  Current().arrived = arrived;
  Current().awaited = all;
  Wait(State::kAwaiting, site);
}

float ShuffleXor(float value, int mask) {
  const int me = scheduler.current, turn = Current().shuffles++ % 2;
  Current().offered[turn] = value;
  Wait(State::kAtShuffle, mask);
  return scheduler.fibers[me ^ mask]->offered[turn];
}

void Run(const std::function<void()>& kernel, uint3 grid, uint3 block, unsigned shared_bytes,
         unsigned cluster, bool cooperative, uint64_t seed) {
  const int threads = static_cast<int>(block.x * block.y * block.z);
  if (threads != static_cast<int>(block.x)) Abort("a block of more than one dimension");
  if (grid.x % cluster != 0) Abort("a grid that is not of whole clusters");
  if (cooperative && (cluster > 1 || grid.y > 1)) Abort("a cooperative launch of clusters");
  const unsigned together = cooperative ? grid.x : cluster;
  while (scheduler.fibers.size() < static_cast<size_t>(threads) * together) AddFiber();
  for (auto& fiber : scheduler.fibers) {
    fiber->shuffles = 0;
    fiber->copies.clear();
    fiber->told.clear();
  }
  scheduler.kernel = &kernel;
  scheduler.threads = threads;
  scheduler.shared_bytes = shared_bytes;
  scheduler.cooperative = cooperative;
  scheduler.shared.resize(together);
  scheduler.told.assign(together, {});
  block_size = block;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; x += together) {
      for (auto& shared : scheduler.shared) {
        shared.reset(new unsigned char[shared_bytes]);
        std::memset(shared.get(), 0xff, shared_bytes);
      }
      RunTogether({x, y, 0}, static_cast<int>(together), &seed);
    }
  }
}

}  // namespace shim
