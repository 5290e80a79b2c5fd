// The walk of t = 1: channels side by side, a thread for V of them, statistics over pieces of s.
#ifndef KERAS_NORMS_CUDA_LANES_H_
#define KERAS_NORMS_CUDA_LANES_H_

#include "custom_ops/cuda/coefficients.h"

namespace keras_norms {
namespace gpu {

// What a thread of LanesMoments and LanesSums works on.
struct LanePlace {
  int across, down, rows_at_once;
  Index n, piece, first;  // first: its first channel
  bool inside;
  Range rows;

  __device__ LanePlace(Index s, Index channels, Index pieces, Index tiles, int columns, int width)
      : across(static_cast<int>(threadIdx.x) % columns),
        down(static_cast<int>(threadIdx.x) / columns),
        rows_at_once(static_cast<int>(blockDim.x) / columns),
        n(blockIdx.x / tiles / pieces),
        piece(blockIdx.x / tiles % pieces),
        first((blockIdx.x % tiles * columns + across) * width),
        inside(first < channels),
        rows(Part(s, pieces, piece)) {}
};

template <class T, int V>
__device__ void LanesMomentsOf(const LanesMoments& a) {
  constexpr int kTile = kLaneTile;
  const LanePlace at(a.s, a.channels, a.pieces, a.tiles, a.columns, V);
  const T* const x = static_cast<const T*>(a.x) + at.n * a.s * a.channels + at.first;
  const bool subtract_mean = a.subtract_mean != 0;
  bool wanted = at.inside;
  if (wanted && a.known.mean != nullptr) {
    wanted = false;
    ForChannels<V>(at.first, true, a.d, at.n * (a.channels / a.d),
                   [&](int, Index unit, Index) { wanted |= NeedsResidual(a.known, unit); });
  }
  Moment all[V];
  ForEach<V>([&](int j) { all[j] = {0, 0, 0}; });
  float count = 0;
  for (Index row = at.rows.begin + at.down; wanted && row < at.rows.end;
       row += kTile * at.rows_at_once) {
    Vector<T, V> v[kTile];
    int valid = 0;
    KERAS_NORMS_UNROLL
    for (int i = 0; i < kTile; ++i) {
      const Index here = row + i * at.rows_at_once;
      if (here >= at.rows.end) continue;
      v[i].Load(x + here * a.channels);
      valid = i + 1;
    }
    const float size = static_cast<float>(valid), inverse = 1 / size;
    const Chan chan(count, size);
    ForEach<V>([&](int j) {
      float values[kTile];
      KERAS_NORMS_UNROLL
      for (int i = 0; i < kTile; ++i) values[i] = i < valid ? v[i][j] : 0;
      chan.Merge(TileMoment<kTile>(values, valid, inverse, subtract_mean), &all[j]);
    });
    count += size;
  }

  // A tree over the threads of a column.
  const int block = static_cast<int>(blockDim.x), me = static_cast<int>(threadIdx.x);
  float* const counts = Shared<float>();
  Moment* const moments = reinterpret_cast<Moment*>(counts + block);
  counts[me] = count;
  ForEach<V>([&](int j) { moments[j * block + me] = all[j]; });
  for (int half = at.rows_at_once / 2; half > 0; half /= 2) {
    __syncthreads();
    if (at.down >= half) continue;
    const int other = me + half * a.columns;
    const Chan chan(count, counts[other]);
    count += counts[other];
    counts[me] = count;
    ForEach<V>([&](int j) {
      chan.Merge(moments[j * block + other], &all[j]);
      moments[j * block + me] = all[j];
    });
  }
  if (at.down > 0 || !at.inside) return;
  const Index to = (at.n * a.pieces + at.piece) * a.channels + at.first;
  ForEach<V>([&](int j) {
    a.mean[to + j] = all[j].mean;
    a.rest[to + j] = all[j].rest;
    a.m2[to + j] = all[j].m2;
  });
}

template <class T, int V>
__device__ void LanesSumsOf(const LanesSums& a) {
  const LanePlace at(a.s, a.channels, a.pieces, a.tiles, a.columns, V);
  const Index sample = at.n * a.s * a.channels + at.first;
  const T* const x = static_cast<const T*>(a.x) + sample;
  const T* const dy = static_cast<const T*>(a.dy) + sample;
  Coefficients<V> k;
  if (at.inside) {
    ForChannels<V>(at.first, true, a.d, at.n * (a.channels / a.d),
                   [&](int j, Index unit, Index c) { k.Load(a.affine, j, unit, c); });
  }
  Sums all[V];
  ForEach<V>([&](int j) { all[j] = {0, 0, 0}; });
  for (Index row = at.rows.begin + at.down; at.inside && row < at.rows.end;
       row += kSumsBatch * at.rows_at_once) {
    Vector<T, V> x_v[kSumsBatch], dy_v[kSumsBatch];
    ForEach<kSumsBatch>([&](int b) {
      const Index here = row + b * at.rows_at_once;
      if (here >= at.rows.end) return;
      x_v[b].Load(x + here * a.channels);
      dy_v[b].Load(dy + here * a.channels);
    });
    ForEach<kSumsBatch>([&](int b) {
      if (row + b * at.rows_at_once >= at.rows.end) return;
      float xc[V], dz[V];
      k.Differentiate(a.activation, x_v[b], dy_v[b], xc, dz);
      ForEach<V>([&](int j) { all[j].Add({dz[j], dz[j] * xc[j], xc[j]}); });
    });
  }

  const int block = static_cast<int>(blockDim.x), me = static_cast<int>(threadIdx.x);
  Sums* const sums = Shared<Sums>();
  ForEach<V>([&](int j) { sums[j * block + me] = all[j]; });
  for (int half = at.rows_at_once / 2; half > 0; half /= 2) {
    __syncthreads();
    if (at.down >= half) continue;
    ForEach<V>([&](int j) {
      all[j].Add(sums[j * block + me + half * a.columns]);
      sums[j * block + me] = all[j];
    });
  }
  if (at.down > 0 || !at.inside) return;
  const Index to = (at.n * a.pieces + at.piece) * a.channels + at.first;
  ForEach<V>([&](int j) {
    a.dz[to + j] = all[j].dz;
    a.dz_xc[to + j] = all[j].dz_xc;
    if (a.xc != nullptr) a.xc[to + j] = all[j].xc;
  });
}

}  // namespace gpu
}  // namespace keras_norms

#endif  // KERAS_NORMS_CUDA_LANES_H_
