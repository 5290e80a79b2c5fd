// What is done to each element once its coefficients are known.
#ifndef KERAS_NORMS_CUDA_ELEMENTWISE_H_
#define KERAS_NORMS_CUDA_ELEMENTWISE_H_

#include "custom_ops/cuda/coefficients.h"

namespace keras_norms {
namespace gpu {

// Vectors that a thread loads before it works on the first: to hide the way to memory.
constexpr int kApplyBatch = 4;

// Calls load(j, unit, channel) for the V elements at hand whenever their coefficients change, and
// then visit(begin, end, step) for the vectors that have them: those at begin, begin + step ... <
// end.
template <int V, class LoadFn, class Visit>
__device__ void ForWalk(const Walk& w, const LoadFn& load, const Visit& visit) {
  const int across = static_cast<int>(threadIdx.x) % w.columns;
  const int down = static_cast<int>(threadIdx.x) / w.columns;
  const int rows_at_once = static_cast<int>(blockDim.x) / w.columns;
  const Index outer = blockIdx.x / w.inner_tiles * w.outer_tile;
  const Index outer_end = outer + w.outer_tile < w.outer ? outer + w.outer_tile : w.outer;
  const Index inner = blockIdx.x % w.inner_tiles * w.inner_tile;
  const Index inner_end = inner + w.inner_tile < w.inner ? inner + w.inner_tile : w.inner;
  const Index first = inner + across, units = w.channels / w.d;
  if (first >= inner_end) return;
  for (Index o = outer + down; o < outer_end;) {
    const Index n = w.lanes ? o / w.s : o / w.channels / w.s;
    const Index c = w.lanes ? first * V : o % w.channels;
    const Index begin = (o * w.inner + first) * V;
    Index end = o * w.inner + inner_end, step = w.columns, next = o + rows_at_once;
    if (w.lanes) {
      const Index sample_end = (n + 1) * w.s;
      const Index last = sample_end < outer_end ? sample_end : outer_end;
      end = last * w.inner;
      step = rows_at_once * w.inner;
      while (next < last) next += rows_at_once;
    }
    ForChannels<V>(c, w.lanes != 0, w.d, n * units, load);
    visit(begin, end * V, step * V);
    o = next;
  }
}

template <class T, int V>
__device__ void ApplyTo(const Apply& a) {
  const T* const x = static_cast<const T*>(a.x);
  T* const y = static_cast<T*>(a.y);
  Coefficients<V> k;
  ForWalk<V>(
      a.walk, [&](int j, Index unit, Index channel) { k.Load(a.affine, j, unit, channel); },
      [&](Index begin, Index end, Index step) {
        for (; begin < end; begin += kApplyBatch * step) {
          Vector<T, V> v[kApplyBatch];
          ForEach<kApplyBatch>([&](int b) {
            if (begin + b * step < end) v[b].Load(x + begin + b * step);
          });
          ForEach<kApplyBatch>([&](int b) {
            if (begin + b * step >= end) return;
            float z[V];
            k.Transform(v[b], z);
            Activate(a.activation, z);
            v[b].Set(z);
            v[b].Store(y + begin + b * step);
          });
        }
      });
}

// kParts: with the parts of dgamma and dbeta, of rows. Their sums take the registers of a batch,
// which rows, each with coefficients of its own, have no use for.
template <class T, int V, bool kParts>
__device__ void GradientOf(const Gradient& a) {
  constexpr int kBatch = kParts ? 1 : 2;
  const T *const x = static_cast<const T*>(a.x), *const dy = static_cast<const T*>(a.dy);
  T* const dx = static_cast<T*>(a.dx);
  Coefficients<V> k;
  float residual[V] = {}, mean_g[V] = {}, slope[V] = {}, dgamma[V] = {}, dbeta[V] = {};
  const auto differentiate = [&](Vector<T, V>* x_v, const Vector<T, V>& dy_v) {
    float xc[V], dz[V], out[V];
    k.Differentiate(a.activation, *x_v, dy_v, xc, dz);
    if (a.slope == nullptr) {  // of scale and shift: x, which may be infinite, has no part in it
      ForEach<V>([&](int j) { out[j] = dz[j] * k.scale[j]; });
    } else {
      ForEach<V>([&](int j) {
        xc[j] -= residual[j];
        const float g = Product(dz[j], k.gamma[j]);
        out[j] = k.scale[j] * (g - mean_g[j] - xc[j] * slope[j]);
        if constexpr (kParts) {
          dgamma[j] += dz[j] * (xc[j] * k.scale[j]);
          dbeta[j] += dz[j];
        }
      });
    }
    x_v->Set(out);
  };
  ForWalk<V>(
      a.walk,
      [&](int j, Index unit, Index channel) {
        k.Load(a.affine, j, unit, channel);
        residual[j] = At(a.residual, unit, 0);
        mean_g[j] = At(a.mean_g, unit, 0);
        slope[j] = At(a.slope, unit, 0);
      },
      [&](Index begin, Index end, Index step) {
        for (; begin < end; begin += kBatch * step) {
          Vector<T, V> x_v[kBatch], dy_v[kBatch];
          ForEach<kBatch>([&](int b) {
            if (begin + b * step >= end) return;
            x_v[b].Load(x + begin + b * step);
            dy_v[b].Load(dy + begin + b * step);
          });
          ForEach<kBatch>([&](int b) {
            if (begin + b * step >= end) return;
            differentiate(&x_v[b], dy_v[b]);
            x_v[b].Store(dx + begin + b * step);
          });
        }
      });
  if constexpr (!kParts) return;
  const Index i = blockIdx.x % a.walk.inner_tiles * a.walk.inner_tile + threadIdx.x;
  if (i >= a.walk.inner) return;
  const Index to = (blockIdx.x / a.walk.inner_tiles * a.walk.inner + i) * V;
  ForEach<V>([&](int j) {
    a.dgamma_parts[to + j] = dgamma[j];
    a.dbeta_parts[to + j] = dbeta[j];
  });
}

}  // namespace gpu
}  // namespace keras_norms

#endif  // KERAS_NORMS_CUDA_ELEMENTWISE_H_
