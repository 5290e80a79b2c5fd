// Normalization over a Geometry on a CUDA device: the functions of custom_ops/core/normalize.h,
// with the same mathematics. This is the host's part, which chooses kernels and hands them to a
// Launcher; it knows no CUDA header.
//
// Pointers are to device memory. T is float, bfloat16 or float16; for double there is no kernel, as
// the portable path serves it. The cut of the work depends on the geometry, on T, on whether
// pointers are aligned to 16 bytes and on Capability, and no number is added atomically: results
// are the same bits each time and on all devices of one Capability. How large a device is, is only
// asked where blocks must run at the same time. `workspace` (aligned to 16) has WorkspaceBytes,
// which is enough for every Capability.
//
// y may be x, and dx may be dy; of MomentsGrad, x. Each function returns whether all launches
// succeeded.
#ifndef KERAS_NORMS_CUDA_PLAN_H_
#define KERAS_NORMS_CUDA_PLAN_H_

#include <cstdint>

#include "custom_ops/core/activation.h"
#include "custom_ops/core/geometry.h"

namespace keras_norms {
namespace gpu {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct Shape {
  Dim3 grid, block;
  unsigned shared_bytes = 0;
  unsigned cluster = 1;      // blocks that share their memory, neighbours along x
  bool cooperative = false;  // all blocks run at the same time, or the launch fails
};

// What a device offers beyond what all have.
struct Capability {
  unsigned cluster = 0;       // most blocks of a cluster; 0: it cannot run the kernels of slices.h
  unsigned shared_bytes = 0;  // of each block of such a cluster, at most
  // Blocks of these kernels that can run at the same time if none has more than half of that, less
  // kReservedBytes; one that has more counts twice. 0: no cooperative launches.
  unsigned together = 0;
};

// Puts a kernel of kernels.cu, by its name, into the order of a stream. `arguments` are as those of
// cuLaunchKernel: here a pointer to the one struct that each kernel takes.
class Launcher {
 public:
  virtual ~Launcher() = default;
  virtual Capability capability() = 0;
  virtual bool Launch(const char* kernel, const Shape& shape, void** arguments) = 0;
};

// Enough for any of the functions below and data of this geometry.
template <class T>
int64_t WorkspaceBytes(const Geometry& k);

template <class T>
bool Normalize(Launcher* launcher, const Geometry& k, const T* x, const float* gamma,
               const float* beta, double epsilon, bool subtract_mean, Activation activation, T* y,
               float* mean, float* variance, void* workspace);

// dz is found twice rather than kept, so it is not rounded to T.
template <class T>
bool NormalizeGrad(Launcher* launcher, const Geometry& k, const T* dy, const T* x,
                   const float* gamma, const float* beta, const float* mean, const float* variance,
                   double epsilon, bool subtract_mean, Activation activation, T* dx, float* dgamma,
                   float* dbeta, void* workspace);

template <class T>
bool Moments(Launcher* launcher, const Geometry& k, const T* x, bool subtract_mean, float* mean,
             float* residual, float* variance, void* workspace);

template <class T>
bool MomentsGrad(Launcher* launcher, const Geometry& k, const T* x, const float* mean,
                 const float* residual, const float* dmean, const float* dvariance, T* dx,
                 void* workspace);

template <class T>
bool ScaleShift(Launcher* launcher, const Geometry& k, const T* x, const float* center,
                const float* scale, const float* shift, Activation activation, T* y);

template <class T>
bool ScaleShiftGrad(Launcher* launcher, const Geometry& k, const T* dy, const T* x,
                    const float* center, const float* scale, const float* shift,
                    Activation activation, T* dx, float* dscale, float* dshift, void* workspace);

}  // namespace gpu
}  // namespace keras_norms

#endif  // KERAS_NORMS_CUDA_PLAN_H_
