// Normalization over a Geometry: forward, gradient, moments, and scale and shift. Numbers only:
// no TensorFlow, no allocation, no exceptions. T is float, bfloat16, float16 or double; parameters,
// statistics and arithmetic are Parameter<T>. gamma, beta, center and shift may be null: gamma then
// counts as 1, the others as 0. Results do not depend on the number of threads.
#ifndef KERAS_NORMS_CORE_NORMALIZE_H_
#define KERAS_NORMS_CORE_NORMALIZE_H_

#include <cstdint>

#include "custom_ops/core/activation.h"
#include "custom_ops/core/geometry.h"
#include "custom_ops/core/parallel.h"

namespace keras_norms {

// Bytes of scratch (aligned to 64) that any of the functions below needs for data of this geometry.
int64_t ScratchBytes(const Geometry& k);

// "avx512", "avx2" or "baseline": the instructions chosen for this processor. The variable
// KERAS_NORMS_SIMD names a lower one.
const char* SimdTarget();

//   y = activation(z)   z = (x - mean) / sqrt(variance + epsilon) * gamma + beta
// mean[n, g] rounded to Parameter<T>, variance[n, g] biased. Without subtract_mean the mean is
// taken as 0 and variance is the mean square. A unit of no elements has mean 0 and variance 0.
template <class T>
void Normalize(const Pool& pool, const Geometry& k, const T* x, const Parameter<T>* gamma,
               const Parameter<T>* beta, double epsilon, bool subtract_mean, Activation activation,
               T* y, Parameter<T>* mean, Parameter<T>* variance, void* scratch);

// With x^ = (x - mean) * rstd, dz = dy * activation'(z), g = dz * gamma and means over (s, d, t):
//   dx = rstd * (g - mean(g) - x^ * mean(g * x^))   dgamma = sum dz * x^   dbeta = sum dz
// mean and variance are Normalize's. The rounding of mean is made good: its distance from the exact
// mean is found in the same pass over x. dx may be dy. dgamma and dbeta may be null.
//
// z is found again from x: that needs beta, which is not read without an activation, and for a mean
// that is far from 0 a pass over x, for what rounding lost of it. dz is kept in dx until dx takes
// its place, so of a 16-bit T it is rounded to T, as the gradient of an activation by itself is.
template <class T>
void NormalizeGrad(const Pool& pool, const Geometry& k, const T* dy, const T* x,
                   const Parameter<T>* gamma, const Parameter<T>* beta, const Parameter<T>* mean,
                   const Parameter<T>* variance, double epsilon, bool subtract_mean,
                   Activation activation, T* dx, Parameter<T>* dgamma, Parameter<T>* dbeta,
                   void* scratch);

// The exact mean is mean + residual, where residual is what rounding mean to Parameter<T> lost.
template <class T>
void Moments(const Pool& pool, const Geometry& k, const T* x, bool subtract_mean,
             Parameter<T>* mean, Parameter<T>* residual, Parameter<T>* variance, void* scratch);

//   dx = dmean / count + dvariance * 2 * (x - mean - residual) / count
template <class T>
void MomentsGrad(const Pool& pool, const Geometry& k, const T* x, const Parameter<T>* mean,
                 const Parameter<T>* residual, const Parameter<T>* dmean,
                 const Parameter<T>* dvariance, T* dx, void* scratch);

//   y = activation(z)   z = (x - center) * scale + shift, all three per (n, g, d)
template <class T>
void ScaleShift(const Pool& pool, const Geometry& k, const T* x, const Parameter<T>* center,
                const Parameter<T>* scale, const Parameter<T>* shift, Activation activation, T* y);

// With dz = dy * activation'(z), kept in dx as above; shift is read for that only:
//   dx = dz * scale   dscale[n, g, d] = sum dz * (x - center)   dshift[n, g, d] = sum dz
template <class T>
void ScaleShiftGrad(const Pool& pool, const Geometry& k, const T* dy, const T* x,
                    const Parameter<T>* center, const Parameter<T>* scale,
                    const Parameter<T>* shift, Activation activation, T* dx, Parameter<T>* dscale,
                    Parameter<T>* dshift, void* scratch);

}  // namespace keras_norms

#endif  // KERAS_NORMS_CORE_NORMALIZE_H_
