// The functions of custom_ops/cuda/plan.h with their kernels embedded, for callers that know only C
// (`make gpu-harness`). Pointers are to device memory, stream is a CUstream or cudaStream_t.
//
// dtype: 0 float32, 1 bfloat16, 2 float16. activation: as in custom_ops/core/activation.h. Each
// function returns 0, or kArgument or kLaunch; then kn_gpu_error() tells why.
#include <cstdint>
#include <string>

#include "custom_ops/cuda/driver.h"
#include "custom_ops/cuda/plan.h"

#ifndef KERAS_NORMS_COMMIT
#define KERAS_NORMS_COMMIT ""
#endif
#define KN_GPU_API extern "C" __attribute__((visibility("default")))
#define KN_GPU_GEOMETRY int64_t n, int64_t s, int64_t g, int64_t d, int64_t t

namespace keras_norms {
namespace gpu {
namespace {

enum Code { kSuccess = 0, kArgument = 1, kLaunch = 2 };

thread_local std::string last_error, last_kernels;

Code Fail(Code code, const std::string& why) {
  last_error = why;
  return code;
}

bool read_once = true;

// Keeps the names of what is launched.
class Recorder : public Launcher {
 public:
  explicit Recorder(void* stream) : launcher_(stream) {}
  Capability capability() override { return read_once ? launcher_.capability() : Capability(); }
  bool Launch(const char* kernel, const Shape& shape, void** arguments) override {
    last_kernels += (last_kernels.empty() ? "" : " ") + std::string(kernel);
    return launcher_.Launch(kernel, shape, arguments);
  }
  std::string error() const { return launcher_.error(); }

 private:
  DriverLauncher launcher_;
};

// Calls f(T{}) with the type that `dtype` stands for.
template <class F>
Code ForType(int dtype, const Geometry& k, int activation, const F& f) {
  last_error.clear();
  last_kernels.clear();
  for (int64_t size : {k.n, k.s, k.g, k.d, k.t}) {
    if (size < 0) {
      return Fail(kArgument, "Sizes must not be negative. Received: " + std::to_string(size));
    }
  }
  if (activation < 0 || activation > static_cast<int>(Activation::kGelu)) {
    return Fail(kArgument, "activation must be 0 to 3. Received: " + std::to_string(activation));
  }
  switch (dtype) {
    case 0:
      return f(float{});
    case 1:
      return f(bfloat16{});
    case 2:
      return f(float16{});
    default:
      return Fail(kArgument, "dtype must be 0, 1 or 2. Received: " + std::to_string(dtype));
  }
}

// Calls f(launcher, T{}), which returns whether all launches succeeded.
template <class F>
int Run(int dtype, const Geometry& k, int activation, void* stream, const F& f) {
  return ForType(dtype, k, activation, [&](auto type) {
    Recorder recorder(stream);
    return f(&recorder, type) ? kSuccess : Fail(kLaunch, recorder.error());
  });
}

}  // namespace

// Of this thread's last call: why it failed; the names of the kernels that it launched.
KN_GPU_API const char* kn_gpu_error() { return last_error.c_str(); }
KN_GPU_API const char* kn_gpu_kernels() { return last_kernels.c_str(); }

// Whether what a cluster of blocks, or all that run at the same time, can hold is read once (1, as
// it begins) or as on devices without clusters (0).
KN_GPU_API void kn_gpu_read_once(int yes) { read_once = yes != 0; }

// What this was built from.
KN_GPU_API const char* kn_gpu_commit() { return KERAS_NORMS_COMMIT; }

// Bytes that any of the functions below needs, or -1.
KN_GPU_API int64_t kn_gpu_workspace_bytes(int dtype, KN_GPU_GEOMETRY) {
  const Geometry k = {n, s, g, d, t};
  int64_t bytes = -1;
  ForType(dtype, k, 0, [&](auto type) {
    bytes = WorkspaceBytes<decltype(type)>(k);
    return kSuccess;
  });
  return bytes;
}

KN_GPU_API int kn_gpu_normalize(int dtype, KN_GPU_GEOMETRY, const void* x, const float* gamma,
                                const float* beta, double epsilon, int subtract_mean,
                                int activation, void* y, float* mean, float* variance,
                                void* workspace, void* stream) {
  const Geometry k = {n, s, g, d, t};
  return Run(dtype, k, activation, stream, [&](Launcher* launcher, auto type) {
    using T = decltype(type);
    return Normalize<T>(launcher, k, static_cast<const T*>(x), gamma, beta, epsilon,
                        subtract_mean != 0, static_cast<Activation>(activation), static_cast<T*>(y),
                        mean, variance, workspace);
  });
}

KN_GPU_API int kn_gpu_normalize_grad(int dtype, KN_GPU_GEOMETRY, const void* dy, const void* x,
                                     const float* gamma, const float* beta, const float* mean,
                                     const float* variance, double epsilon, int subtract_mean,
                                     int activation, void* dx, float* dgamma, float* dbeta,
                                     void* workspace, void* stream) {
  const Geometry k = {n, s, g, d, t};
  return Run(dtype, k, activation, stream, [&](Launcher* launcher, auto type) {
    using T = decltype(type);
    return NormalizeGrad<T>(launcher, k, static_cast<const T*>(dy), static_cast<const T*>(x), gamma,
                            beta, mean, variance, epsilon, subtract_mean != 0,
                            static_cast<Activation>(activation), static_cast<T*>(dx), dgamma, dbeta,
                            workspace);
  });
}

KN_GPU_API int kn_gpu_moments(int dtype, KN_GPU_GEOMETRY, const void* x, int subtract_mean,
                              float* mean, float* residual, float* variance, void* workspace,
                              void* stream) {
  const Geometry k = {n, s, g, d, t};
  return Run(dtype, k, 0, stream, [&](Launcher* launcher, auto type) {
    using T = decltype(type);
    return Moments<T>(launcher, k, static_cast<const T*>(x), subtract_mean != 0, mean, residual,
                      variance, workspace);
  });
}

KN_GPU_API int kn_gpu_moments_grad(int dtype, KN_GPU_GEOMETRY, const void* x, const float* mean,
                                   const float* residual, const float* dmean,
                                   const float* dvariance, void* dx, void* workspace,
                                   void* stream) {
  const Geometry k = {n, s, g, d, t};
  return Run(dtype, k, 0, stream, [&](Launcher* launcher, auto type) {
    using T = decltype(type);
    return MomentsGrad<T>(launcher, k, static_cast<const T*>(x), mean, residual, dmean, dvariance,
                          static_cast<T*>(dx), workspace);
  });
}

KN_GPU_API int kn_gpu_scale_shift(int dtype, KN_GPU_GEOMETRY, const void* x, const float* center,
                                  const float* scale, const float* shift, int activation, void* y,
                                  void* stream) {
  const Geometry k = {n, s, g, d, t};
  return Run(dtype, k, activation, stream, [&](Launcher* launcher, auto type) {
    using T = decltype(type);
    return ScaleShift<T>(launcher, k, static_cast<const T*>(x), center, scale, shift,
                         static_cast<Activation>(activation), static_cast<T*>(y));
  });
}

KN_GPU_API int kn_gpu_scale_shift_grad(int dtype, KN_GPU_GEOMETRY, const void* dy, const void* x,
                                       const float* center, const float* scale, const float* shift,
                                       int activation, void* dx, float* dscale, float* dshift,
                                       void* workspace, void* stream) {
  const Geometry k = {n, s, g, d, t};
  return Run(dtype, k, activation, stream, [&](Launcher* launcher, auto type) {
    using T = decltype(type);
    return ScaleShiftGrad<T>(launcher, k, static_cast<const T*>(dy), static_cast<const T*>(x),
                             center, scale, shift, static_cast<Activation>(activation),
                             static_cast<T*>(dx), dscale, dshift, workspace);
  });
}

}  // namespace gpu
}  // namespace keras_norms
