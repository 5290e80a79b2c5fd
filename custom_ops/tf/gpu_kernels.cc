// The ops on CUDA devices. There is no kernel for float64.
//
// With KERAS_NORMS_CUDA_ON_CPU, as tests/cuda compiles it, the same is registered for the CPU,
// where a driver of the tests runs the kernels: all but the device is then as on a GPU.
#include <cstdint>

#include "custom_ops/cuda/driver.h"
#include "custom_ops/cuda/plan.h"
#include "custom_ops/tf/op_kernels.h"
#include "xla/stream_executor/stream.h"

namespace keras_norms {
namespace {

#if defined(KERAS_NORMS_CUDA_ON_CPU)
const char* const kDevice = tensorflow::DEVICE_CPU;
void* StreamOf(OpKernelContext*) { return nullptr; }
#else
const char* const kDevice = tensorflow::DEVICE_GPU;
void* StreamOf(OpKernelContext* c) {
  return c->op_device_context()->stream()->platform_specific_handle().stream;
}
#endif

// Scratch goes back to TensorFlow's allocator while kernels still use it: what is given it next
// comes after them on the same stream.
class Gpu {
 public:
  explicit Gpu(OpKernelContext* c) : launcher_(StreamOf(c)) {}

  template <class F>
  absl::Status Run(const F& f) {
    gpu::Launcher* const launcher = &launcher_;
    return f(launcher) ? absl::OkStatus() : absl::InternalError(launcher_.error());
  }
  template <class T>
  static int64_t ScratchBytes(const Geometry& k) {
    return gpu::WorkspaceBytes<T>(k);
  }
  static void Allocated(Tensor*) {}

 private:
  gpu::DriverLauncher launcher_;
};

KERAS_NORMS_REGISTER(Gpu, kDevice, float);
KERAS_NORMS_REGISTER(Gpu, kDevice, Eigen::half);
KERAS_NORMS_REGISTER(Gpu, kDevice, Eigen::bfloat16);

}  // namespace
}  // namespace keras_norms
