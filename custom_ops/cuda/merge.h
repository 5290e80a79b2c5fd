// The small steps between the passes over x: partial results become coefficients. In double, of
// which there is little to do here.
#ifndef KERAS_NORMS_CUDA_MERGE_H_
#define KERAS_NORMS_CUDA_MERGE_H_

#include "custom_ops/cuda/device.h"

namespace keras_norms {
namespace gpu {

// `threads` of a block work on a unit, and neighbouring threads on neighbouring units, whose parts
// lie side by side.
struct UnitPlace {
  int units_at_once, member;
  Index unit;
  __device__ UnitPlace(int threads)
      : units_at_once(static_cast<int>(blockDim.x) / threads),
        member(static_cast<int>(threadIdx.x) / units_at_once),
        unit(static_cast<Index>(blockIdx.x) * units_at_once +
             static_cast<int>(threadIdx.x) % units_at_once) {}
};

struct WideMoment {
  double count, mean, m2;
  __device__ void Merge(const WideMoment& b) {
    if (b.count == 0) return;
    const double delta = b.mean - mean, share = b.count / (count + b.count);
    mean += delta * share;
    m2 += b.m2 + delta * delta * count * share;
    count += b.count;
  }
};

__device__ inline void MergeMomentsOf(const MergeMoments& a) {
  const UnitPlace at(a.threads);
  const bool inside = at.unit < a.units;
  const bool known = a.known.mean != nullptr;
  const bool wanted = inside && (!known || NeedsResidual(a.known, at.unit));
  WideMoment all = {0, 0, 0};
  if (wanted) {
    const Index base = at.unit / a.groups * a.n_stride + at.unit % a.groups * a.g_stride;
    for (Stride i(at.member, a.threads, a.width); i.row < a.parts; i.Advance()) {
      const Index from = base + i.row * a.p_stride + i.item;
      const Index count = PartSize(a.s, a.chunks, i.row / a.tiles) *
                          PartSize(a.vectors, a.tiles, i.row % a.tiles) * a.vector;
      all.Merge({static_cast<double>(count), static_cast<double>(a.mean[from]) + a.rest[from],
                 a.m2[from]});
    }
  }
  WideMoment* const shared = Shared<WideMoment>();
  shared[threadIdx.x] = all;
  for (int half = a.threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (at.member >= half) continue;
    all.Merge(shared[threadIdx.x + half * at.units_at_once]);
    shared[threadIdx.x] = all;
  }
  if (!inside || at.member > 0) return;
  const double center = known ? a.known.mean[at.unit] : static_cast<float>(all.mean);
  const double variance = known           ? a.known.variance[at.unit]
                          : all.count > 0 ? all.m2 / all.count
                                          : 0;
  const double residual = wanted && a.subtract_mean ? all.mean - center : 0;
  if (a.out_mean != nullptr) a.out_mean[at.unit] = static_cast<float>(center);
  if (a.residual != nullptr) a.residual[at.unit] = static_cast<float>(residual);
  if (a.variance != nullptr) a.variance[at.unit] = static_cast<float>(variance);
  if (a.rstd != nullptr) a.rstd[at.unit] = static_cast<float>(1 / sqrt(variance + a.epsilon));
}

struct WideSums {
  double g, g_xc, xc;
};

__device__ inline void MergeSumsOf(const MergeSums& a) {
  const UnitPlace at(a.threads);
  const bool inside = at.unit < a.units;
  const Index width = a.weighted ? 1 : a.d, first = at.unit * width;
  const Index channels = at.unit % a.groups * width;
  WideSums all = {0, 0, 0};
  for (Index i = at.member; inside && i < width; i += a.threads) {
    const double gamma = a.weighted ? 1 : At(a.gamma, channels + i, 1);
    all.g += gamma * a.dz[first + i];
    all.g_xc += gamma * a.dz_xc[first + i];
    all.xc += a.xc[first + i];
  }
  WideSums* const shared = Shared<WideSums>();
  shared[threadIdx.x] = all;
  for (int half = a.threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (at.member >= half) continue;
    const WideSums& other = shared[threadIdx.x + half * at.units_at_once];
    all = {all.g + other.g, all.g_xc + other.g_xc, all.xc + other.xc};
    shared[threadIdx.x] = all;
  }
  __syncthreads();
  if (!inside) return;
  const WideSums total = shared[threadIdx.x % at.units_at_once];
  const double count = static_cast<double>(a.count);
  const double rstd = 1 / sqrt(static_cast<double>(a.variance[at.unit]) + a.epsilon);
  const double residual = a.subtract_mean ? total.xc / count : 0;
  if (at.member == 0) {
    a.residual[at.unit] = static_cast<float>(residual);
    a.rstd[at.unit] = static_cast<float>(rstd);
    a.mean_g[at.unit] = static_cast<float>(a.subtract_mean ? total.g / count : 0);
    a.slope[at.unit] = static_cast<float>(rstd * rstd * (total.g_xc - residual * total.g) / count);
  }
  if (a.dgamma == nullptr) return;
  for (Index i = first + at.member; i < first + width; i += a.threads) {
    a.dgamma[i] = static_cast<float>((a.dz_xc[i] - residual * a.dz[i]) * rstd);
  }
}

__device__ inline void SumPartsOf(const SumParts& a) {
  const int across = static_cast<int>(threadIdx.x) % kSumColumns;
  const int down = static_cast<int>(threadIdx.x) / kSumColumns;
  // Not by an index, which would put the arguments into memory.
  const float* const in = blockIdx.y == 0 ? a.in[0] : blockIdx.y == 1 ? a.in[1] : a.in[2];
  float* const out = blockIdx.y == 0 ? a.out[0] : blockIdx.y == 1 ? a.out[1] : a.out[2];
  if (out == nullptr) return;
  const Index b = blockIdx.x / a.column_tiles;
  const Index c = blockIdx.x % a.column_tiles * kSumColumns + across;
  const bool inside = c < a.columns;
  double sum = 0;
  for (Index p = down; inside && p < a.parts; p += kSumRows) {
    sum += in[b * a.batch_stride + p * a.part_stride + c * a.column_stride];
  }
  double* const shared = Shared<double>();
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (down > 0 || !inside) return;
  for (int row = 1; row < kSumRows; ++row) sum += shared[row * kSumColumns + across];
  out[b * a.columns + c] = static_cast<float>(sum);
}

__device__ inline void MomentsCoefficientsOf(const MomentsCoefficients& a) {
  const Index unit = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (unit >= a.units) return;
  const double dvariance = 2.0 * a.dvariance[unit];
  a.scale[unit] = static_cast<float>(dvariance / a.count);
  a.shift[unit] = static_cast<float>((a.dmean[unit] - dvariance * a.residual[unit]) / a.count);
}

}  // namespace gpu
}  // namespace keras_norms

#endif  // KERAS_NORMS_CUDA_MERGE_H_
