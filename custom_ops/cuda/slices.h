// Slices that the shared memory of a block, or of a cluster of blocks, holds, so that x is read
// once. Each block of a cluster finds the statistics of its part, and each reads those of all, in
// the same order: from the others' shared memory, or, where a cluster is more blocks than a device
// joins, from global memory behind a barrier of theirs. For compute capability 9.0 and newer.
#ifndef KERAS_NORMS_CUDA_SLICES_H_
#define KERAS_NORMS_CUDA_SLICES_H_

#include "custom_ops/cuda/device.h"

#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900

namespace keras_norms {
namespace gpu {

constexpr int kRanks = 4;  // blocks of a cluster that a thread reads from at once

// What a block and a thread work on. A thread copies, reads and writes vectors of its own, those of
// one column in every rows_at_once-th row: what it copies, no other thread waits for.
template <int V>
struct SlicePlace {
  const Slice& slice;
  int me, block, rank, rows_at_once, column, down;
  int begin, end;  // rows of this block
  Index first;     // element of the slice
  Index unit, channel;
  // Shared memory: for GroupSum; of each thread; of each unit.
  float *reduce, *parts, *figures;
  Words* held;

  __device__ explicit SlicePlace(const Slice& s)
      : slice(s),
        me(static_cast<int>(threadIdx.x)),
        block(static_cast<int>(blockDim.x)),
        rank(static_cast<int>(blockIdx.x % s.cluster)),
        rows_at_once(block / s.columns),
        column(me % s.columns),
        down(me / s.columns) {
    begin = RowsBefore(rank);
    end = RowsBefore(rank + 1);
    reduce = Shared<float>();
    parts = reduce + kReduceWords;
    figures = parts + V * (block + kSlicePadding);
    held = reinterpret_cast<Words*>(reduce + s.head);
  }
  // Of the blocks before block r. As Part, but a slice is small.
  __device__ int RowsBefore(int r) const {
    return static_cast<int>(static_cast<unsigned>(slice.rows) * r / slice.cluster);
  }
  __device__ void MoveTo(Index sample, Index tile) {
    first = sample * slice.sample + tile * slice.tile;
    unit = (sample * slice.tiles + tile) * slice.units;
    channel = tile * slice.channels;
  }

  // Calls visit(slot, vector, offset) for this thread's vectors: where it is held, which of the
  // slice it is, and where that is in x.
  template <class Visit>
  __device__ void ForVectors(const Visit& visit) const {
    if (down >= rows_at_once) return;
    KERAS_NORMS_NO_UNROLL
    for (int row = begin + down; row < end; row += rows_at_once) {
      const int vector = row * slice.columns + column;
      if (vector >= slice.vectors) return;
      visit(vector - begin * slice.columns, vector, Offset(row, column));
    }
  }

  // In x, of a vector.
  __device__ Index Offset(int row, int column) const {
    const Index offset = first + row * slice.row + column * V;
    if (slice.length == 0) return offset;
    const unsigned vector = row * slice.columns + column;
    return offset + vector / static_cast<unsigned>(slice.length) * slice.skip;
  }

  // Plane i of the figures of units.
  __device__ float* Figures(int i) const { return figures + i * slice.units; }
  // Elements of a unit in one row, in all, and in block r.
  __device__ int Width() const { return slice.columns * V / slice.units; }
  __device__ float Count() const { return static_cast<float>(slice.vectors * V / slice.units); }
  __device__ float Count(int r) const {
    const int all = RowsBefore(r + 1) * slice.columns;
    const int vectors = (all < slice.vectors ? all : slice.vectors) - RowsBefore(r) * slice.columns;
    return static_cast<float>(vectors * V / slice.units);
  }
  // To each of a thread's elements that of its unit.
  __device__ void Spread(int plane, float (&to)[V]) const {
    const float* const from = Figures(plane);
    if (slice.units == 1) {
      ForEach<V>([&](int j) { to[j] = from[0]; });
    } else {
      int unit = column * V / Width(), within = column * V % Width();
      ForEach<V>([&](int j) {
        to[j] = from[unit];
        if (++within == Width()) {
          within = 0;
          ++unit;
        }
      });
    }
  }
  __device__ void LoadParameters(const float* p, int vector, float otherwise,
                                 float (&to)[V]) const {
    if (slice.run > 1) {
      const float value = At(p, channel + vector * V / slice.run, otherwise);
      ForEach<V>([&](int j) { to[j] = value; });
    } else {
      gpu::LoadParameters(p, channel + (slice.run == 0 ? column : vector) * V, otherwise, to);
    }
  }

  // Threads for each of `items`: all, or a power of 2.
  __device__ int Share(int items, int least) const {
    int threads = block;
    while (threads > least && threads * items > block) threads /= 2;
    return threads;
  }

  // Sums v over the threads, for each group of `width` neighbouring channels of a row, and calls
  // write(group, sum) in one thread each. What is written there all of the block can read.
  template <class Write>
  __device__ void Sum(int width, const float (&v)[V], const Write& write) const {
    const int plane = block + kSlicePadding, groups = slice.columns * V / width;
    ForEach<V>([&](int j) { parts[j * plane + me] = v[j]; });
    __syncthreads();
    const int threads = Share(groups, 1);
    KERAS_NORMS_NO_UNROLL
    for (int base = 0; base < groups; base += block / threads) {
      const int group = base + me / threads;
      float sum[1] = {0};
      KERAS_NORMS_NO_UNROLL
      for (int i = me % threads; group < groups && i < width * rows_at_once; i += threads) {
        const int c = group * width + i % width;
        sum[0] += parts[c % V * plane + i / width * slice.columns + c / V];
      }
      GroupSum(threads, reduce, sum);
      if (group < groups && me % threads == 0) write(group, sum[0]);
    }
    __syncthreads();
  }
  // Of units, to a plane of figures.
  __device__ void SumUnits(const float (&v)[V], int plane) const {
    Sum(Width(), v, [&](int u, float sum) { Figures(plane)[u] = sum; });
  }

  // After the time-th call each block can read `planes` of the others' figures, from `plane` on.
  // Those of a unit were written by the thread of its number, or before a barrier.
  __device__ void TellFigures(int plane, int planes, int time) const {
    if (slice.told == nullptr) {
      ClusterSynchronize();
      return;
    }
    for (int i = plane; me < slice.units && i < plane + planes; ++i) {
      Tell(ToldBy(rank) + i * slice.units + me, Figures(i)[me]);
    }
    __syncthreads();
    if (me == 0) {
      unsigned* const arrived = slice.arrived + blockIdx.x / slice.cluster;
      Arrive(arrived);
      AwaitArrivals(arrived, time * slice.cluster);
    }
    __syncthreads();
  }
  // Where the others have no more to read from this block, which may end then.
  __device__ void LeaveFigures() const {
    if (slice.told == nullptr) {
      ClusterSynchronize();
    } else {
      __syncthreads();
    }
  }
  __device__ float* ToldBy(int r) const {
    const Index block_of_grid = static_cast<Index>(blockIdx.x) - rank + r;
    return slice.told + block_of_grid * (kSharedFigures * slice.units);
  }
  // What the blocks have found for a unit `slice.lanes` threads merge, this one from block Lane()
  // on.
  __device__ int Merged() const { return me / slice.lanes; }
  __device__ int Lane() const { return me % slice.lanes; }
  __device__ float FigureOf(int r, int plane) const {
    const int i = plane * slice.units + Merged();
    return slice.told == nullptr ? FromBlock(r, figures + i) : Told(ToldBy(r) + i);
  }
  // Calls visit(r, figures) with N of them from `plane` on, for the blocks that this thread merges.
  template <int N, class Visit>
  __device__ void ForBlocks(int plane, const Visit& visit) const {
    if (Merged() >= slice.units) return;
    KERAS_NORMS_NO_UNROLL
    for (int r = Lane(); r < slice.cluster; r += kRanks * slice.lanes) {
      float v[kRanks][N];  // all are read before the first is merged: to hide the way to them
      ForEach<kRanks>([&](int i) {
        if (r + i * slice.lanes >= slice.cluster) return;
        ForEach<N>([&](int j) { v[i][j] = FigureOf(r + i * slice.lanes, plane + j); });
      });
      ForEach<kRanks>([&](int i) {
        if (r + i * slice.lanes < slice.cluster) visit(r + i * slice.lanes, v[i]);
      });
    }
  }
  // Of N planes, of the unit that this thread merges.
  template <int N>
  __device__ void SumBlocks(int plane, float (&sums)[N]) const {
    ForEach<N>([&](int j) { sums[j] = 0; });
    ForBlocks<N>(plane,
                 [&](int, const float (&v)[N]) { ForEach<N>([&](int j) { sums[j] += v[j]; }); });
    GroupSum(slice.lanes, reduce, sums);
  }
  // Whether it is for this thread to write what was merged.
  __device__ bool Merges() const { return Lane() == 0 && Merged() < slice.units; }
};

template <class T, int V>
__device__ void NormalizeSlice(const SlicesForward& a) {
  enum { kMean, kRest, kM2, kCenter, kSum, kSquares, kAllMean, kAllRest, kRstd, kFigures };
  static_assert(kFigures <= kSliceFigures, "room for the figures");
  SlicePlace<V> at(a.slice);
  const Index index = blockIdx.x / a.slice.cluster;
  at.MoveTo(index / a.slice.tiles, index % a.slice.tiles);
  const T* const x = static_cast<const T*>(a.x);
  at.ForVectors([&](int slot, int, Index offset) { CopyAsync(x + offset, at.held + slot); });

  // As in rows.h: a mean of the distances from the first element, then of those from that mean.
  const int units = a.slice.units, me = at.me;
  const float count = at.Count(at.rank), inverse = count > 0 ? 1 / count : 0;
  float center[V], sums[V] = {}, squares[V] = {};
  if (me < units) {
    Vector<T, 1> element;
    const bool given = a.subtract_mean && count > 0;
    if (given) element.Load(x + at.Offset(at.begin, 0) + me * at.Width());
    at.Figures(kCenter)[me] = given ? element[0] : 0;
  }
  AwaitCopies();
  __syncthreads();
  if (a.subtract_mean) {
    at.Spread(kCenter, center);
    at.ForVectors([&](int slot, int, Index) {
      const Vector<T, V> v = {at.held[slot]};
      ForEach<V>([&](int j) { sums[j] += v[j] - center[j]; });
    });
    at.SumUnits(sums, kSum);
    if (me < units) at.Figures(kCenter)[me] += at.Figures(kSum)[me] * inverse;
    __syncthreads();
  }
  at.Spread(kCenter, center);
  ForEach<V>([&](int j) { sums[j] = 0; });
  at.ForVectors([&](int slot, int, Index) {
    const Vector<T, V> v = {at.held[slot]};
    ForEach<V>([&](int j) {
      const float c = v[j] - center[j];
      sums[j] += c;
      squares[j] += c * c;
    });
  });
  at.SumUnits(sums, kSum);
  at.SumUnits(squares, kSquares);
  if (me < units) {
    const float sum = at.Figures(kSum)[me], squared = at.Figures(kSquares)[me];
    const float rest = a.subtract_mean ? sum * inverse : 0;
    TwoSum(at.Figures(kCenter)[me], rest, &at.Figures(kMean)[me], &at.Figures(kRest)[me]);
    at.Figures(kM2)[me] = squared - sum * rest;
  }

  // The same of the blocks: a mean of the distances from the first one's, then of those from it.
  at.TellFigures(kMean, kSharedFigures, 1);
  const int lanes = a.slice.lanes, unit = at.Merged();
  const float start = unit < units ? at.FigureOf(0, kMean) : 0;
  float* const distances = at.parts + unit;  // of a thread's own blocks
  float within[2] = {0, 0}, between[1] = {0};
  at.template ForBlocks<kSharedFigures>(kMean, [&](int r, const float (&v)[kSharedFigures]) {
    const float distance = (v[kMean] - start) + v[kRest];
    distances[r * units] = distance;
    within[0] += distance * at.Count(r);
    within[1] += v[kM2];
  });
  GroupSum(lanes, at.reduce, within);
  const float delta = within[0] / at.Count();
  KERAS_NORMS_NO_UNROLL
  for (int r = at.Lane(); unit < units && r < a.slice.cluster; r += lanes) {
    const float c = distances[r * units] - delta;
    between[0] += c * c * at.Count(r);
  }
  GroupSum(lanes, at.reduce, between);
  if (at.Merges()) {
    const float m2 = within[1] + between[0];
    const float variance = m2 < 0 ? 0 : m2 / at.Count();
    float mean, rest;
    TwoSum(start, delta, &mean, &rest);
    at.Figures(kAllMean)[unit] = mean;
    at.Figures(kAllRest)[unit] = rest;
    at.Figures(kRstd)[unit] = 1 / sqrtf(variance + a.epsilon);
    if (at.rank == 0) {
      if (a.mean != nullptr) a.mean[at.unit + unit] = mean;
      if (a.residual != nullptr) a.residual[at.unit + unit] = rest;
      if (a.variance != nullptr) a.variance[at.unit + unit] = variance;
    }
  }
  at.LeaveFigures();
  if (a.y == nullptr) return;

  T* const y = static_cast<T*>(a.y);
  float weight[V], shift[V];
  const auto load = [&](int vector) {
    float gamma[V], rest[V];
    at.LoadParameters(a.gamma, vector, 1, gamma);
    at.LoadParameters(a.beta, vector, 0, shift);
    at.Spread(kRstd, weight);
    at.Spread(kAllRest, rest);
    ForEach<V>([&](int j) {
      weight[j] *= gamma[j];
      shift[j] -= rest[j] * weight[j];
    });
  };
  at.Spread(kAllMean, center);
  if (a.slice.run == 0) load(0);
  at.ForVectors([&](int slot, int vector, Index offset) {
    if (a.slice.run != 0) load(vector);
    Vector<T, V> v = {at.held[slot]};
    float z[V];
    ForEach<V>([&](int j) { z[j] = (v[j] - center[j]) * weight[j] + shift[j]; });
    Activate(a.activation, z);
    v.Set(z);
    v.Store(y + offset);
  });
}

// Where each unit is a channel, dgamma and dbeta are sums of units. Otherwise, of a run of 1, each
// thread adds them up for its own elements, slice after slice, in shared memory after x and dy; of
// longer runs there are the sums of each vector.
template <class T, int V>
__device__ void NormalizeSliceGrad(const SlicesBackward& a) {
  enum { kSum, kPart, kPart2, kMean, kRstd, kResidual, kMeanG, kSlope, kFigures };
  static_assert(kFigures <= kSliceFigures, "room for the figures");
  SlicePlace<V> at(a.slice);
  const Slice& slice = a.slice;
  const T *const x = static_cast<const T*>(a.x), *const dy = static_cast<const T*>(a.dy);
  T* const dx = static_cast<T*>(a.dx);
  Words *const x_held = at.held, *const dy_held = at.held + slice.slots;
  float* const extra = reinterpret_cast<float*>(at.held + 2 * slice.slots);
  const int units = slice.units, me = at.me, run = slice.run, plane = slice.slots;
  const bool own = slice.channels == units;  // each unit is a channel
  const bool parameters = a.dgamma_parts != nullptr && !own;
  const Index index = blockIdx.x / slice.cluster, tile = index % slice.tiles;
  const Index part = index / slice.tiles;
  const Index channels = static_cast<Index>(slice.tiles) * slice.channels;
  const Index to = (run == 1 || own ? part : part * slice.cluster + at.rank) * channels;
  const Range samples = Part(a.samples, a.parts, part);
  const float count = at.Count();

  float mean[V], rstd[V], residual[V], gamma[V], beta[V];
  const auto load = [&](int vector) {
    at.LoadParameters(a.gamma, vector, 1, gamma);
    at.LoadParameters(a.beta, vector, 0, beta);
  };
  // xc and dz, once load was called for the vector, if each has parameters of its own.
  const auto differentiate = [&](int slot, float (&xc)[V], float (&dz)[V]) {
    const Vector<T, V> x_v = {x_held[slot]}, dy_v = {dy_held[slot]};
    ForEach<V>([&](int j) {
      xc[j] = (x_v[j] - mean[j]) - residual[j];
      dz[j] = dy_v[j];
    });
    if (a.activation == kNone) return;
    float z[V];
    ForEach<V>([&](int j) { z[j] = xc[j] * (rstd[j] * gamma[j]) + beta[j]; });
    TimesDerivative(a.activation, z, dz);
  };

  for (Index sample = samples.begin; sample < samples.end; ++sample) {
    at.MoveTo(sample, tile);
    at.ForVectors([&](int slot, int, Index offset) {
      CopyAsync(x + offset, x_held + slot);
      CopyAsync(dy + offset, dy_held + slot);
    });
    if (me < units) {
      at.Figures(kMean)[me] = a.mean[at.unit + me];
      at.Figures(kRstd)[me] = 1 / sqrtf(a.variance[at.unit + me] + a.epsilon);
    }
    if (run == 0) load(0);
    AwaitCopies();
    __syncthreads();
    at.Spread(kMean, mean);
    at.Spread(kRstd, rstd);

    // What the mean lost by rounding.
    float sums[V] = {};
    at.ForVectors([&](int slot, int, Index) {
      const Vector<T, V> v = {x_held[slot]};
      ForEach<V>([&](int j) { sums[j] += v[j] - mean[j]; });
    });
    at.SumUnits(sums, kSum);
    at.TellFigures(kSum, 1, 1);
    float lost[1];
    at.SumBlocks(kSum, lost);
    if (at.Merges()) at.Figures(kResidual)[at.Merged()] = a.subtract_mean ? lost[0] / count : 0;
    __syncthreads();
    at.Spread(kResidual, residual);

    // Per channel if run is 0 or it is a unit; otherwise times gamma, of which there may be many
    // for each sum.
    float products[V] = {};
    ForEach<V>([&](int j) { sums[j] = 0; });
    at.ForVectors([&](int slot, int vector, Index) {
      if (run != 0) load(vector);
      float xc[V], dz[V];
      differentiate(slot, xc, dz);
      float all = 0, all_xc = 0;
      ForEach<V>([&](int j) {
        const float g = run == 0 || own ? dz[j] : Product(dz[j], gamma[j]);
        sums[j] += g;
        products[j] += g * xc[j];
        all += dz[j];
        all_xc += dz[j] * xc[j];
      });
      if (run <= 1 || !parameters) return;
      extra[slot] = all_xc;
      extra[plane + slot] = all;
    });
    if (run == 0 && !own) {
      if (parameters) {
        const Index first = to + at.channel;
        at.Sum(1, products, [&](int c, float sum) {
          a.dgamma_parts[first + c] = sum * at.Figures(kRstd)[c / at.Width()];
        });
        at.Sum(1, sums, [&](int c, float sum) { a.dbeta_parts[first + c] = sum; });
      }
      ForEach<V>([&](int j) {
        sums[j] *= gamma[j];
        products[j] *= gamma[j];
      });
    }
    at.SumUnits(sums, kPart);
    at.SumUnits(products, kPart2);
    if (run > 1 && parameters) {  // its runs are whole vectors
      const int length = run / V, threads = at.Share(slice.channels, 32);
      const int before = at.begin * slice.columns, last = at.end * slice.columns;
      const int after = last < slice.vectors ? last : slice.vectors;
      KERAS_NORMS_NO_UNROLL
      for (int base = 0; base < slice.channels; base += at.block / threads) {
        const int c = base + me / threads;
        int i = c * length, end = i + length;
        i = (i < before ? before : i) + me % threads;
        end = end < after ? end : after;
        float v[2] = {0, 0};
        for (; c < slice.channels && i < end; i += threads) {
          v[0] += extra[i - before];
          v[1] += extra[plane + i - before];
        }
        GroupSum(threads, at.reduce, v);
        if (c >= slice.channels || me % threads > 0) continue;
        a.dgamma_parts[to + at.channel + c] = v[0] * at.Figures(kRstd)[0];
        a.dbeta_parts[to + at.channel + c] = v[1];
      }
    }
    at.TellFigures(kPart, 2, 2);
    float merged[2];
    at.SumBlocks(kPart, merged);
    if (at.Merges()) {
      const int unit = at.Merged();
      const float scale = at.Figures(kRstd)[unit];
      if (own) {
        const Index c = at.channel + unit;
        if (at.rank == 0 && a.dgamma_parts != nullptr) a.dgamma_parts[to + c] = merged[1] * scale;
        if (at.rank == 0 && a.dbeta_parts != nullptr) a.dbeta_parts[to + c] = merged[0];
        const float weight = At(a.gamma, c, 1);
        ForEach<2>([&](int i) { merged[i] *= weight; });
      }
      at.Figures(kMeanG)[unit] = a.subtract_mean ? merged[0] / count : 0;
      at.Figures(kSlope)[unit] = scale * scale * merged[1] / count;
    }
    __syncthreads();

    float mean_g[V], slope[V];
    at.Spread(kMeanG, mean_g);
    at.Spread(kSlope, slope);
    at.ForVectors([&](int slot, int vector, Index offset) {
      if (run != 0) load(vector);
      float xc[V], dz[V], out[V];
      differentiate(slot, xc, dz);
      ForEach<V>([&](int j) {
        out[j] = rstd[j] * (Product(dz[j], gamma[j]) - mean_g[j] - xc[j] * slope[j]);
      });
      if (run == 1 && parameters) {
        float* const own = extra + slot;
        const bool begins = sample == samples.begin;
        ForEach<V>([&](int j) {
          const float dgamma = dz[j] * (xc[j] * rstd[j]);
          own[j * plane] = begins ? dgamma : own[j * plane] + dgamma;
          own[(V + j) * plane] = begins ? dz[j] : own[(V + j) * plane] + dz[j];
        });
      }
      Vector<T, V> v;
      v.Set(out);
      v.Store(dx + offset);
    });
  }
  if (run == 1 && parameters) {
    at.ForVectors([&](int slot, int vector, Index) {
      const Index c = to + at.channel + static_cast<Index>(vector) * V;
      ForEach<V>([&](int j) {
        a.dgamma_parts[c + j] = extra[j * plane + slot];
        a.dbeta_parts[c + j] = extra[(V + j) * plane + slot];
      });
    });
  }
  at.LeaveFigures();
}

}  // namespace gpu
}  // namespace keras_norms

#endif  // compute capability 9.0

#endif  // KERAS_NORMS_CUDA_SLICES_H_
