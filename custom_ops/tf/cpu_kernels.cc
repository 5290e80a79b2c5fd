// The ops on the CPU.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <functional>
#include <utility>

#include "custom_ops/tf/op_kernels.h"

namespace keras_norms {
namespace {

// A large output of malloc is fresh memory, mapped page by page as it is first written: ask for
// huge pages, so that this happens 512 times less often.
void AdviseHugePages(Tensor* tensor) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor->data());
  const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const uintptr_t last = (begin + tensor->TotalBytes()) / kPage * kPage;
  if (last > first + 3 * kPage)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

Pool PoolOf(OpKernelContext* c) {
  const auto* workers = c->device()->tensorflow_cpu_worker_threads();
  tensorflow::thread::ThreadPool* threads = workers->workers;
  return {workers->num_threads,
          [threads](std::function<void()> task) { threads->Schedule(std::move(task)); }};
}

class Cpu {
 public:
  explicit Cpu(OpKernelContext* c) : pool_(PoolOf(c)) {}

  template <class F>
  absl::Status Run(const F& f) const {
    f(pool_);
    return absl::OkStatus();
  }
  template <class T>
  static int64_t ScratchBytes(const Geometry& k) {
    return keras_norms::ScratchBytes(k);
  }
  static void Allocated(Tensor* tensor) { AdviseHugePages(tensor); }

 private:
  const Pool pool_;
};

KERAS_NORMS_REGISTER(Cpu, tensorflow::DEVICE_CPU, float);
KERAS_NORMS_REGISTER(Cpu, tensorflow::DEVICE_CPU, double);
KERAS_NORMS_REGISTER(Cpu, tensorflow::DEVICE_CPU, Eigen::half);
KERAS_NORMS_REGISTER(Cpu, tensorflow::DEVICE_CPU, Eigen::bfloat16);

}  // namespace
}  // namespace keras_norms
