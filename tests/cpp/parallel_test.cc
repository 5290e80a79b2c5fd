// Threads: the same bits for any number of them, no deadlock, nothing touched too late.
#include "custom_ops/core/parallel.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "tests/cpp/cases.h"

namespace keras_norms {
namespace {

// Threads that take what is scheduled in turn. With no threads it runs when told to.
class Workers {
 public:
  explicit Workers(int threads) {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this] {
        while (RunNext(true)) {
        }
      });
    }
  }
  ~Workers() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  void Schedule(std::function<void()> fn) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.push_back(std::move(fn));
    }
    wake_.notify_one();
  }
  // Runs the first that waits; false if there is none, or none will come.
  bool RunNext(bool wait) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (wait) wake_.wait(lock, [this] { return closing_ || !queue_.empty(); });
    if (queue_.empty()) return false;
    const std::function<void()> fn = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    fn();
    return true;
  }
  // A pool that says it has so many threads.
  Pool AsPool(int threads) {
    return {threads, [this](std::function<void()> fn) { Schedule(std::move(fn)); }};
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool closing_ = false;
  std::vector<std::thread> threads_;
};

template <class T>
void RunSameBits(const std::vector<Geometry>& geometries, int64_t least,
                 Activation activation = Activation::kNone) {
  Workers workers(6);
  for (const Geometry& k : geometries) {
    if (k.size() < least) continue;
    const Inputs<T> in(k, 10);
    Options o;
    o.in_place = k.d % 2;
    o.activation = activation;
    check::Context() = std::string(Format<T>::kName) + " " + Name(k) + " " + Schedule(k);
    const Outputs<T> want(Pool(), in, o);
    for (int threads : {1, 2, 4, 7}) {
      const Outputs<T> got(workers.AsPool(threads), in, o);
      check::Expect(got.SameBits(want), "the same bits of " + std::to_string(threads) + " threads");
    }
  }
}

TEST(SameBitsFloat32) { RunSameBits<float>(SmallGeometries(), 3000); }
TEST(SameBitsFloat32Cut) { RunSameBits<float>(CutGeometries(), 0); }
TEST(SameBitsFloat64) { RunSameBits<double>(SmallGeometries(), 20000); }
TEST(SameBitsBfloat16) { RunSameBits<bfloat16>(SmallGeometries(), 20000); }
TEST(SameBitsFloat16) { RunSameBits<float16>(SmallGeometries(), 20000); }

TEST(SameBitsActivation) {
  RunSameBits<float>(SmallGeometries(), 20000, Activation::kGelu);
  RunSameBits<float>(CutGeometries(), 0, Activation::kRelu);
  RunSameBits<bfloat16>(SmallGeometries(), 20000, Activation::kSilu);
}

TEST(EachBlockOnce) {
  Workers workers(3);
  for (int threads : {0, 1, 2, 4, 100}) {
    for (int64_t blocks : {0, 1, 2, 3, 1000}) {
      std::vector<std::atomic<int>> times(blocks);
      ParallelFor(workers.AsPool(threads), blocks, [&](int64_t block) { ++times[block]; });
      for (const auto& count : times) check::Expect(count == 1, "each block once");
    }
  }
  ParallelFor(Pool{8, nullptr}, 5, [](int64_t) {});  // threads but no way to reach them
}

// All threads of the pool are inside ParallelFor, on the same pool, more callers than threads.
TEST(NoDeadlockOnABusyPool) {
  const Geometry k = {2, 129, 521, 2, 1};
  const Inputs<float> in(k, 1);
  const Outputs<float> want(Pool(), in, Options());
  for (int threads : {1, 2, 3}) {
    Workers workers(threads);
    const Pool pool = workers.AsPool(threads + 1);
    std::mutex mutex;
    std::condition_variable done;
    int started = 0, equal = 0, finished = 0;
    const int callers = 3 * threads;
    for (int i = 0; i < callers; ++i) {
      workers.Schedule([&] {
        {
          // The first ones wait for each other, so that every thread is surely busy.
          std::unique_lock<std::mutex> lock(mutex);
          ++started;
          done.notify_all();
          done.wait(lock, [&] { return started >= threads; });
        }
        const Outputs<float> got(pool, in, Options());
        const bool same = got.SameBits(want);
        std::lock_guard<std::mutex> lock(mutex);
        equal += same;
        ++finished;
        done.notify_all();
      });
    }
    std::unique_lock<std::mutex> lock(mutex);
    if (!done.wait_for(lock, std::chrono::seconds(100), [&] { return finished == callers; })) {
      std::printf("FAILED %s: DEADLOCK, %d of %d callers finished\n", check::Context().c_str(),
                  finished, callers);
      std::fflush(stdout);
      std::_Exit(1);
    }
    check::Expect(equal == callers, "the same bits in every caller");
  }
}

// ParallelFor inside of ParallelFor's blocks.
TEST(Nested) {
  Workers workers(2);
  const Pool pool = workers.AsPool(3);
  std::atomic<int64_t> sum{0};
  ParallelFor(pool, 20,
              [&](int64_t i) { ParallelFor(pool, 30, [&](int64_t j) { sum += i * 30 + j; }); });
  check::Expect(sum == 600 * 599 / 2, "each inner block once");
}

// Helpers that start only after ParallelFor has returned find nothing to do.
TEST(HelpersThatComeTooLate) {
  Workers none(0);
  const Geometry k = {1, 1031, 64, 1, 1};
  {
    const Inputs<float> in(k, 1);
    const Outputs<float> want(Pool(), in, Options());
    const Outputs<float> got(none.AsPool(7), in, Options());
    check::Expect(got.SameBits(want), "the caller does all the work");
  }
  int late = 0;
  while (none.RunNext(false)) ++late;
  check::Expect(late > 0, "helpers were scheduled");
}

// A pool may run what is scheduled at once, on the calling thread.
TEST(HelpersThatRunAtOnce) {
  const Geometry k = {2, 1, 2, 3, 22003};
  const Inputs<float> in(k, 1);
  const Outputs<float> want(Pool(), in, Options());
  const Pool at_once = {4, [](std::function<void()> fn) { fn(); }};
  const Outputs<float> got(at_once, in, Options());
  check::Expect(got.SameBits(want), "the same bits");
}

}  // namespace
}  // namespace keras_norms

int main(int argc, char** argv) { return check::Main(argc, argv); }
