// The walk of s = t = 1: a mean per contiguous row of d elements, gamma and beta per element. The
// row is read once and stays in registers.
#ifndef KERAS_NORMS_CUDA_ROWS_H_
#define KERAS_NORMS_CUDA_ROWS_H_

#include "custom_ops/cuda/device.h"

namespace keras_norms {
namespace gpu {

template <class T, int V>
__device__ void NormalizeRows(const RowsForward& a) {
  constexpr int kVectors = kRowVectors<V>;
  float* const shared = Shared<float>();
  const int lane = static_cast<int>(threadIdx.x) % a.threads;
  const Index row = static_cast<Index>(blockIdx.x) * (blockDim.x / a.threads) +
                    static_cast<int>(threadIdx.x) / a.threads;
  const bool inside = row < a.rows;
  const int vectors = inside ? a.d / V : 0;
  const T* const x = static_cast<const T*>(a.x) + (inside ? row * a.d : 0);
  const float count = static_cast<float>(a.d);

  Vector<T, V> v[kVectors];
  KERAS_NORMS_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    const int i = lane + k * a.threads;
    if (i < vectors) v[k].Load(x + i * V);
  }
  // The mean is found twice: of the distances from the first element, and then of those from the
  // mean that this gives, where nothing far away is left to cost digits.
  float center = 0;
  if (a.subtract_mean) {
    Vector<T, 1> first;
    first.Load(x);
    float sum[1] = {0};
    KERAS_NORMS_UNROLL
    for (int k = 0; k < kVectors; ++k) {
      if (lane + k * a.threads >= vectors) continue;
      ForEach<V>([&](int j) { sum[0] += v[k][j] - first[0]; });
    }
    GroupSum(a.threads, shared, sum);
    center = first[0] + sum[0] / count;
  }
  float sums[2] = {0, 0};
  KERAS_NORMS_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    if (lane + k * a.threads >= vectors) continue;
    ForEach<V>([&](int j) {
      const float c = v[k][j] - center;
      sums[0] += c;
      sums[1] += c * c;
    });
  }
  GroupSum(a.threads, shared, sums);
  const float residual = a.subtract_mean ? sums[0] / count : 0;
  const float m2 = a.subtract_mean ? sums[1] - sums[0] * residual : sums[1];
  const float variance = m2 < 0 ? 0 : m2 / count;
  if (inside && lane == 0) {
    float mean, rest;
    TwoSum(center, residual, &mean, &rest);
    if (a.mean != nullptr) a.mean[row] = mean;
    if (a.residual != nullptr) a.residual[row] = rest;
    if (a.variance != nullptr) a.variance[row] = variance;
  }
  if (a.y == nullptr) return;

  T* const y = static_cast<T*>(a.y) + (inside ? row * a.d : 0);
  const float rstd = 1 / sqrtf(variance + a.epsilon);
  const Index parameters = inside && a.groups > 1 ? row % a.groups * a.d : 0;
  KERAS_NORMS_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    const int i = lane + k * a.threads;
    if (i >= vectors) continue;
    float gamma[V], z[V];
    LoadParameters(a.gamma, parameters + i * V, 1, gamma);
    LoadParameters(a.beta, parameters + i * V, 0, z);
    ForEach<V>([&](int j) { z[j] += ((v[k][j] - center) - residual) * (rstd * gamma[j]); });
    Activate(a.activation, z);
    v[k].Set(z);
    v[k].Store(y + i * V);
  }
}

// Each group of threads adds up dgamma and dbeta in shared memory of its own; element j of vector
// lane + k * threads lies where neighbouring threads meet no bank twice.
template <class T, int V>
__device__ void NormalizeRowsGrad(const RowsBackward& a) {
  constexpr int kVectors = kRowGradientVectors<V>;
  float* const shared = Shared<float>();
  const int threads = a.threads, at_once = static_cast<int>(blockDim.x) / threads;
  const int lane = static_cast<int>(threadIdx.x) % threads;
  const int own = static_cast<int>(threadIdx.x) / threads;
  const int vectors = a.d / V, slots = (vectors + threads - 1) / threads * threads * V;
  float* const dgamma = shared + kReduceWords + own * 2 * slots;
  float* const dbeta = dgamma + slots;
  const bool parameters = a.dgamma_parts != nullptr;
  const Index group = blockIdx.x % a.groups, part = blockIdx.x / a.groups;
  const Range samples = Part(a.samples, a.parts, part);
  const float count = static_cast<float>(a.d);

  if (parameters) {
    for (int i = lane; i < 2 * slots; i += threads) dgamma[i] = 0;  // each its own
  }
  for (Index first = samples.begin; first < samples.end; first += at_once) {
    const bool inside = first + own < samples.end;
    const Index row = (inside ? first + own : first) * a.groups + group;
    const T* const x = static_cast<const T*>(a.x) + row * a.d;
    const T* const dy = static_cast<const T*>(a.dy) + row * a.d;
    const float mean = a.mean[row], rstd = 1 / sqrtf(a.variance[row] + a.epsilon);
    Vector<T, V> x_v[kVectors], dy_v[kVectors];
    KERAS_NORMS_UNROLL
    for (int k = 0; k < kVectors; ++k) {
      const int i = lane + k * threads;
      if (!inside || i >= vectors) continue;
      x_v[k].Load(x + i * V);
      dy_v[k].Load(dy + i * V);
    }
    float lost = 0;  // of the mean, where z is found again
    if (a.activation != kNone && a.subtract_mean) {
      float sum[1] = {0};
      KERAS_NORMS_UNROLL
      for (int k = 0; k < kVectors; ++k) {
        if (!inside || lane + k * threads >= vectors) continue;
        ForEach<V>([&](int j) { sum[0] += x_v[k][j] - mean; });
      }
      GroupSum(threads, shared, sum);
      lost = sum[0] / count;
    }
    // dz of vector k, and the gamma that it is multiplied with.
    const auto load = [&](int k, float (&dz)[V], float (&gamma)[V]) {
      const Index c = group * a.d + (lane + k * threads) * V;
      LoadParameters(a.gamma, c, 1, gamma);
      ForEach<V>([&](int j) { dz[j] = dy_v[k][j]; });
      if (a.activation == kNone) return;
      float z[V];
      LoadParameters(a.beta, c, 0, z);
      ForEach<V>([&](int j) { z[j] += ((x_v[k][j] - mean) - lost) * (rstd * gamma[j]); });
      TimesDerivative(a.activation, z, dz);
    };
    float sums[3] = {0, 0, 0};
    KERAS_NORMS_UNROLL
    for (int k = 0; k < kVectors; ++k) {
      if (!inside || lane + k * threads >= vectors) continue;
      float dz[V], gamma[V];
      load(k, dz, gamma);
      ForEach<V>([&](int j) {
        const float xc = x_v[k][j] - mean, g = Product(dz[j], gamma[j]);
        sums[0] += g;
        sums[1] += g * xc;
        sums[2] += xc;
      });
    }
    GroupSum(threads, shared, sums);
    const float residual = a.subtract_mean ? sums[2] / count : 0;
    const float mean_g = a.subtract_mean ? sums[0] / count : 0;
    const float slope = rstd * rstd * (sums[1] - residual * sums[0]) / count;
    T* const dx = static_cast<T*>(a.dx) + row * a.d;
    KERAS_NORMS_UNROLL
    for (int k = 0; k < kVectors; ++k) {
      const int i = lane + k * threads;
      if (!inside || i >= vectors) continue;
      float dz[V], gamma[V], out[V];
      load(k, dz, gamma);
      ForEach<V>([&](int j) {
        const float xc = (x_v[k][j] - mean) - residual;
        out[j] = rstd * (Product(dz[j], gamma[j]) - mean_g - xc * slope);
        if (parameters) {
          const int slot = (k * V + j) * threads + lane;
          dgamma[slot] += dz[j] * (xc * rstd);
          dbeta[slot] += dz[j];
        }
      });
      x_v[k].Set(out);
      x_v[k].Store(dx + i * V);
    }
  }
  if (!parameters) return;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < a.d; i += static_cast<int>(blockDim.x)) {
    const int vector = i / V;
    const int slot = (vector / threads * V + i % V) * threads + vector % threads;
    float gamma_sum = 0, beta_sum = 0;
    for (int other = 0; other < at_once; ++other) {
      gamma_sum += shared[kReduceWords + other * 2 * slots + slot];
      beta_sum += shared[kReduceWords + (other * 2 + 1) * slots + slot];
    }
    const Index c = (part * a.groups + group) * a.d + i;
    a.dgamma_parts[c] = gamma_sum;
    a.dbeta_parts[c] = beta_sum;
  }
}

}  // namespace gpu
}  // namespace keras_norms

#endif  // KERAS_NORMS_CUDA_ROWS_H_
