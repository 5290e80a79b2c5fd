// The walk of t > 1, and of rows too long for registers: statistics of contiguous runs, that of a
// segment being as many as s.
#ifndef KERAS_NORMS_CUDA_SEGMENTS_H_
#define KERAS_NORMS_CUDA_SEGMENTS_H_

#include "custom_ops/cuda/coefficients.h"

namespace keras_norms {
namespace gpu {

// The piece that a thread works on, with others next to it, and the vectors that are its own.
struct SegmentPlace {
  int lane;
  bool inside;
  Index index, segment, n, q;  // index: of the piece
  Range s, vectors;            // of a run
  Stride at;

  // Of SegmentMoments or SegmentSums.
  template <class Arguments>
  __device__ explicit SegmentPlace(const Arguments& a)
      : lane(static_cast<int>(threadIdx.x) % a.threads),
        index(static_cast<Index>(blockIdx.x) * (blockDim.x / a.threads) +
              static_cast<int>(threadIdx.x) / a.threads),
        segment(index / (a.chunks * a.tiles)),
        n(segment / a.segments),
        q(segment % a.segments),
        s(Part(a.s, a.chunks, index % (a.chunks * a.tiles) / a.tiles)),
        vectors(Part(a.vectors, a.tiles, index % a.tiles)),
        at(lane, a.threads, vectors.end - vectors.begin) {
    inside = n < a.samples;
  }
  __device__ bool Ended() const { return !inside || at.row >= s.end - s.begin; }
  // In vectors, of x; and where in the run.
  template <class Arguments>
  __device__ Index Offset(const Arguments& a) const {
    return ((n * a.s + s.begin + at.row) * a.segments + q) * a.vectors + Item();
  }
  __device__ Index Item() const { return vectors.begin + at.item; }
};

template <class T, int V>
__device__ void SegmentMomentsOf(const SegmentMoments& a) {
  constexpr int kTile = kSegmentTile<V>;
  SegmentPlace at(a);
  const T* const x = static_cast<const T*>(a.x);
  const bool wanted = at.inside && (a.known.mean == nullptr || NeedsResidual(a.known, at.segment));
  Moment all = {0, 0, 0};
  float count = 0;
  while (wanted && !at.Ended()) {
    Vector<T, V> v[kTile];
    int valid = 0;
    KERAS_NORMS_UNROLL
    for (int i = 0; i < kTile; ++i) {
      if (at.Ended()) continue;
      v[i].Load(x + at.Offset(a) * V);
      valid = (i + 1) * V;
      at.at.Advance();
    }
    float values[kTile * V];
    KERAS_NORMS_UNROLL
    for (int i = 0; i < kTile * V; ++i) values[i] = i < valid ? v[i / V][i % V] : 0;
    const float size = static_cast<float>(valid);
    Chan(count, size)
        .Merge(TileMoment<kTile * V>(values, valid, 1 / size, a.subtract_mean != 0), &all);
    count += size;
  }

  const int block = static_cast<int>(blockDim.x), me = static_cast<int>(threadIdx.x);
  float* const counts = Shared<float>();
  Moment* const moments = reinterpret_cast<Moment*>(counts + block);
  counts[me] = count;
  moments[me] = all;
  for (int half = a.threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (at.lane >= half) continue;
    Chan(count, counts[me + half]).Merge(moments[me + half], &all);
    count += counts[me + half];
    counts[me] = count;
    moments[me] = all;
  }
  if (at.lane > 0 || !at.inside) return;
  a.mean[at.index] = all.mean;
  a.rest[at.index] = all.rest;
  a.m2[at.index] = all.m2;
}

template <class T, int V>
__device__ void SegmentSumsOf(const SegmentSums& a) {
  SegmentPlace at(a);
  const T *const x = static_cast<const T*>(a.x), *const dy = static_cast<const T*>(a.dy);
  Coefficients<V> k;
  const auto load = [&](Index first, Index step) {  // of V channels, or of one
    ForEach<V>([&](int j) {
      k.Load(a.affine, j, a.weighted ? at.segment : at.segment / a.d, first + j * step);
    });
  };
  if (at.inside && !a.weighted) load(at.q, 0);
  Sums all = {0, 0, 0};
  while (!at.Ended()) {
    Vector<T, V> x_v[kSumsBatch], dy_v[kSumsBatch];
    Index items[kSumsBatch];
    int valid = 0;
    ForEach<kSumsBatch>([&](int b) {
      if (at.Ended()) return;
      const Index offset = at.Offset(a) * V;
      x_v[b].Load(x + offset);
      dy_v[b].Load(dy + offset);
      items[b] = at.Item();
      valid = b + 1;
      at.at.Advance();
    });
    ForEach<kSumsBatch>([&](int b) {
      if (b >= valid) return;
      if (a.weighted) load((at.q * a.vectors + items[b]) * V, 1);
      float xc[V], dz[V];
      k.Differentiate(a.activation, x_v[b], dy_v[b], xc, dz);
      ForEach<V>([&](int j) {
        const float g = a.weighted ? Product(dz[j], k.gamma[j]) : dz[j];
        all.Add({g, g * xc[j], xc[j]});
      });
    });
  }

  const int me = static_cast<int>(threadIdx.x);
  Sums* const sums = Shared<Sums>();
  sums[me] = all;
  for (int half = a.threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (at.lane >= half) continue;
    all.Add(sums[me + half]);
    sums[me] = all;
  }
  if (at.lane > 0 || !at.inside) return;
  a.dz[at.index] = all.dz;
  a.dz_xc[at.index] = all.dz_xc;
  if (a.xc != nullptr) a.xc[at.index] = all.xc;
}

}  // namespace gpu
}  // namespace keras_norms

#endif  // KERAS_NORMS_CUDA_SEGMENTS_H_
