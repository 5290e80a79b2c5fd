// A parallel loop over blocks on a thread pool that the caller hands in.
#ifndef KERAS_NORMS_CORE_PARALLEL_H_
#define KERAS_NORMS_CORE_PARALLEL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

namespace keras_norms {

struct Pool {
  int threads = 1;
  // Runs a function at some later time on another thread. Unused when threads is 1.
  std::function<void(std::function<void()>)> schedule;
};

// Puts stores past the caches in order with what follows.
inline void StoreFence() {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

// Calls fn(block) once for each block in [0, blocks), on the calling thread and up to
// pool.threads - 1 others. Which thread takes which block varies; results must not depend on it.
// The caller works too and waits only for blocks that another thread is already running, so a pool
// whose threads are all inside ParallelFor cannot deadlock.
template <class Fn>
void ParallelFor(const Pool& pool, int64_t blocks, const Fn& fn) {
  const int64_t helpers = (pool.threads < blocks ? pool.threads : blocks) - 1;
  if (helpers <= 0 || !pool.schedule) {
    for (int64_t block = 0; block < blocks; ++block) fn(block);
    StoreFence();
    return;
  }
  // Outlives this call: a helper that starts late finds no block left and touches nothing else.
  struct State {
    std::atomic<int64_t> next{0};
    int64_t blocks;
    const Fn* fn;
    std::mutex mutex;
    std::condition_variable all_done;
    int64_t done = 0;
  };
  auto state = std::make_shared<State>();
  state->blocks = blocks;
  state->fn = &fn;
  const auto work = [](State& shared) {
    int64_t finished = 0;
    for (;;) {
      const int64_t block = shared.next.fetch_add(1, std::memory_order_relaxed);
      if (block >= shared.blocks) break;
      (*shared.fn)(block);
      ++finished;
    }
    if (finished == 0) return;
    StoreFence();
    std::lock_guard<std::mutex> lock(shared.mutex);
    shared.done += finished;
    if (shared.done == shared.blocks) shared.all_done.notify_all();
  };
  for (int64_t i = 0; i < helpers; ++i) {
    pool.schedule([state, work] { work(*state); });
  }
  work(*state);
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done == state->blocks; });
}

}  // namespace keras_norms

#endif  // KERAS_NORMS_CORE_PARALLEL_H_
