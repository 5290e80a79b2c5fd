// What x is scaled and shifted with, for V neighbouring elements.
#ifndef KERAS_NORMS_CUDA_COEFFICIENTS_H_
#define KERAS_NORMS_CUDA_COEFFICIENTS_H_

#include "custom_ops/cuda/device.h"

namespace keras_norms {
namespace gpu {

// Vectors of x and of dy that a thread loads before it works on the first: to hide the way to
// memory.
constexpr int kSumsBatch = 2;

// z = (x - center) * weight + shift
template <int V>
struct Coefficients {
  float center[V], scale[V], gamma[V], weight[V], shift[V];

  __device__ void Load(const Affine& a, int j, Index unit, Index channel) {
    center[j] = At(a.center, unit, 0);
    scale[j] = At(a.scale, unit, 1);
    gamma[j] = At(a.gamma, channel, 1);
    weight[j] = scale[j] * gamma[j];
    shift[j] = At(a.beta, channel, 0) + At(a.shift, unit, 0) - At(a.residual, unit, 0) * weight[j];
  }
  template <class VectorOfT>
  __device__ void Transform(const VectorOfT& x, float (&z)[V]) const {
    ForEach<V>([&](int j) { z[j] = (x[j] - center[j]) * weight[j] + shift[j]; });
  }
  // xc = x - center and dz = dy * activation'(z)
  template <class VectorOfT>
  __device__ void Differentiate(int activation, const VectorOfT& x, const VectorOfT& dy,
                                float (&xc)[V], float (&dz)[V]) const {
    ForEach<V>([&](int j) {
      xc[j] = x[j] - center[j];
      dz[j] = dy[j];
    });
    if (activation == kNone) return;
    float z[V];  // with the product, lest the weights stay in registers beside scale and gamma
    ForEach<V>([&](int j) { z[j] = xc[j] * (scale[j] * gamma[j]) + shift[j]; });
    TimesDerivative(activation, z, dz);
  }
};

}  // namespace gpu
}  // namespace keras_norms

#endif  // KERAS_NORMS_CUDA_COEFFICIENTS_H_
