// The walk of t > 1: each channel of each s a contiguous run of t elements.
#ifndef KERAS_NORMS_CORE_RUNS_H_
#define KERAS_NORMS_CORE_RUNS_H_

#include <algorithm>
#include <cstdint>

#include "custom_ops/core/dispatch.h"
#include "custom_ops/core/parallel.h"
#include "custom_ops/core/schedule.h"
#include "custom_ops/core/standard.h"

namespace keras_norms {

constexpr int64_t kLargeMean = 65536;  // elements behind a mean from which few means are cut

// A rectangle of one channel's elements: runs [s.begin, s.end), in each [t.begin, t.end).
struct RunPiece {
  int64_t n, c;
  Range s, t;
  int64_t count() const { return (s.end - s.begin) * (t.end - t.begin); }
};

struct RunPieces {
  Geometry k;
  int64_t tiles;   // of each run
  int64_t chunks;  // of each channel's runs

  explicit RunPieces(const Geometry& geometry) : k(geometry) {
    tiles = CeilDiv(k.t, kTaskElements);
    chunks = tiles > 1 ? k.s : CeilDiv(k.s, std::max<int64_t>(1, kTaskElements / k.t));
  }
  int64_t per_channel() const { return tiles * chunks; }
  int64_t size() const { return k.n * k.channels() * per_channel(); }
  RunPiece At(int64_t piece) const {
    const int64_t within = piece % per_channel(), channel = piece / per_channel();
    return {channel / k.channels(), channel % k.channels(), Part(k.s, chunks, within / tiles),
            Part(k.t, tiles, within % tiles)};
  }
  int64_t tasks() const { return Tasks(size(), CeilDiv(k.s * k.t, per_channel()), 1024); }
};

// Calls fn(offset, size) for each contiguous part of a piece.
template <class Fn>
void ForRuns(const Geometry& k, const RunPiece& piece, const Fn& fn) {
  for (int64_t s = piece.s.begin; s < piece.s.end; ++s) {
    fn(((piece.n * k.s + s) * k.channels() + piece.c) * k.t + piece.t.begin,
       piece.t.end - piece.t.begin);
  }
}

// Calls fn(index, piece) for all pieces, on the pool.
template <class Fn>
void ForPieces(const Pool& pool, const RunPieces& pieces, const Fn& fn) {
  const int64_t tasks = pieces.tasks();
  ParallelFor(pool, tasks, [&](int64_t task) {
    const Range range = Part(pieces.size(), tasks, task);
    for (int64_t i = range.begin; i < range.end; ++i) fn(i, pieces.At(i));
  });
}

inline RunPiece WholeChannel(const Geometry& k, int64_t n, int64_t c) {
  return {n, c, {0, k.s}, {0, k.t}};
}

inline bool CutRuns(const Geometry& k) { return k.units() < kFewMeans && k.count() >= kLargeMean; }

template <class U>
struct RunsForward {
  Moment* moments;            // per piece
  U *center, *scale, *shift;  // [n][channels]
  RunsForward(Arena* arena, const Geometry& k) {
    if (!CutRuns(k)) return;
    moments = arena->Take<Moment>(RunPieces(k).size());
    center = arena->Take<U>(k.n * k.channels());
    scale = arena->Take<U>(k.n * k.channels());
    shift = arena->Take<U>(k.n * k.channels());
  }
};

template <class T, class U>
void NormalizeRuns(const Pool& pool, const Geometry& k, const T* x, const U* gamma, const U* beta,
                   double epsilon, bool subtract_mean, Activation activation, T* y,
                   const StatisticsOut<U>& out, void* scratch) {
  const Kernels<T>& kernels = KernelsOf<T>();
  const int64_t channels = k.channels();
  const double count = static_cast<double>(k.count());
  const bool stream = Streams(k, 2, x, y);
  const auto at = [](const U* p, int64_t c) { return p ? p + c : nullptr; };
  if (!CutRuns(k)) {
    const int64_t tasks = Tasks(k.units(), k.count(), 256);
    ParallelFor(pool, tasks, [&](int64_t task) {
      const Range range = Part(k.units(), tasks, task);
      for (int64_t unit = range.begin; unit < range.end; ++unit) {
        const int64_t n = unit / k.g, g = unit % k.g, block = k.d * k.t;
        Moment all = {0, 0};
        for (int64_t s = 0; s < k.s; ++s) {  // the runs of a group lie side by side
          const T* begin = x + ((n * k.s + s) * channels + g * k.d) * k.t;
          Merge(s * block, &all, block, kernels.segment_moments(begin, block, subtract_mean));
        }
        const Standard<U> standard(all, count, epsilon);
        out.Set(unit, standard);
        if (y == nullptr) continue;
        for (int64_t c = g * k.d; c < (g + 1) * k.d; ++c) {
          const U scale = standard.Scale(at(gamma, c));
          const U shift = standard.Shift(at(gamma, c), at(beta, c));
          ForRuns(k, WholeChannel(k, n, c), [&](int64_t offset, int64_t size) {
            kernels.segment_affine(x + offset, size, standard.center, scale, shift,
                                   {activation, nullptr, stream}, y + offset);
          });
        }
      }
    });
    return;
  }
  Arena arena(scratch);
  const RunsForward<U> work(&arena, k);
  const RunPieces pieces(k);
  ForPieces(pool, pieces, [&](int64_t i, const RunPiece& piece) {
    Moment all = {0, 0};
    int64_t before = 0;
    ForRuns(k, piece, [&](int64_t offset, int64_t size) {
      Merge(before, &all, size, kernels.segment_moments(x + offset, size, subtract_mean));
      before += size;
    });
    work.moments[i] = all;
  });
  for (int64_t unit = 0; unit < k.units(); ++unit) {
    const int64_t n = unit / k.g, first = unit % k.g * k.d;
    const int64_t begin = (n * channels + first) * pieces.per_channel();
    Moment all = {0, 0};
    int64_t before = 0;
    for (int64_t i = begin; i < begin + k.d * pieces.per_channel(); ++i) {
      Merge(before, &all, pieces.At(i).count(), work.moments[i]);
      before += pieces.At(i).count();
    }
    const Standard<U> standard(all, count, epsilon);
    out.Set(unit, standard);
    for (int64_t c = first; c < first + k.d; ++c) {
      work.center[n * channels + c] = standard.center;
      work.scale[n * channels + c] = standard.Scale(at(gamma, c));
      work.shift[n * channels + c] = standard.Shift(at(gamma, c), at(beta, c));
    }
  }
  if (y == nullptr) return;
  ForPieces(pool, pieces, [&](int64_t, const RunPiece& piece) {
    const int64_t at_channel = piece.n * channels + piece.c;
    ForRuns(k, piece, [&](int64_t offset, int64_t size) {
      kernels.segment_affine(x + offset, size, work.center[at_channel], work.scale[at_channel],
                             work.shift[at_channel], {activation, nullptr, stream}, y + offset);
    });
  });
}

template <class T, class U>
Sums ChannelSums(const Kernels<T>& kernels, const Geometry& k, const RunPiece& piece, const T* dy,
                 const T* x, U center) {
  Sums all = {0, 0, 0};
  ForRuns(k, piece, [&](int64_t offset, int64_t size) {
    const Sums run = kernels.segment_sums(dy + offset, x + offset, size, nullptr, center);
    all = {all.g + run.g, all.g_xc + run.g_xc, all.xc + run.xc};
  });
  return all;
}

// Puts dz = dy * activation'(z) of a piece into dx, where the sums find it in cache.
template <class T, class U>
void ActivatePiece(const Kernels<T>& kernels, const Geometry& k, const RunPiece& piece, const T* x,
                   U center, U scale, U shift, Activation activation, const T* dy, T* dx) {
  ForRuns(k, piece, [&](int64_t offset, int64_t size) {
    kernels.segment_affine(x + offset, size, center, scale, shift, {activation, dy + offset},
                           dx + offset);
  });
}

// Adds a channel's sums of dy, times gamma, to its group's sums of g.
template <class U>
void AddChannel(const Sums& channel, const U* gamma, int64_t c, Sums* group) {
  const double w = gamma ? gamma[c] : 1;
  *group = {group->g + w * channel.g, group->g_xc + w * channel.g_xc, group->xc + channel.xc};
}

template <class U>
struct RunsBackward {
  bool cut;
  int64_t parts;           // samples are summed in this many parts; when cut, one each
  Sums* channels;          // [parts][channels] (a task's own); [n][channels] when cut
  double *dgamma, *dbeta;  // [parts][channels]
  Sums* pieces;
  Gradient<U>* gradients;  // per unit, when cut

  RunsBackward(Arena* arena, const Geometry& k) : cut(CutRuns(k)) {
    parts = cut ? k.n : std::min<int64_t>(k.n, 16);
    channels = arena->Take<Sums>(parts * k.channels());
    dgamma = arena->Take<double>(parts * k.channels());
    dbeta = arena->Take<double>(parts * k.channels());
    if (!cut) return;
    pieces = arena->Take<Sums>(RunPieces(k).size());
    gradients = arena->Take<Gradient<U>>(k.units());
  }
};

template <class T, class U>
void NormalizeRunsGrad(const Pool& pool, const Geometry& k, const T* dy, const T* x, const U* gamma,
                       const U* beta, const U* mean, const U* variance, double epsilon,
                       bool subtract_mean, Activation activation, T* dx, U* dgamma, U* dbeta,
                       void* scratch) {
  const Kernels<T>& kernels = KernelsOf<T>();
  const int64_t channels = k.channels();
  const double count = static_cast<double>(k.count());
  const bool activated = activation != Activation::kNone;
  const bool stream = !activated && Streams(k, 3, dy, dx);
  const T* const dz = activated ? dx : dy;
  Arena arena(scratch);
  const RunsBackward<U> work(&arena, k);
  std::fill_n(work.dgamma, work.parts * channels, 0.0);
  std::fill_n(work.dbeta, work.parts * channels, 0.0);

  // From the sums of a unit's channels, at `sums`: its coefficients; its dgamma, dbeta to `part`.
  const auto differentiate = [&](int64_t unit, int64_t part, const Sums* sums) {
    const int64_t first = unit % k.g * k.d;
    Sums all = {0, 0, 0};
    for (int64_t i = 0; i < k.d; ++i) AddChannel(sums[i], gamma, first + i, &all);
    const GradientOf<U> gradient(all, count, mean[unit], variance[unit], epsilon, subtract_mean);
    for (int64_t i = 0; i < k.d; ++i) {
      const int64_t slot = part * channels + first + i;
      work.dgamma[slot] += gradient.Dgamma(sums[i].g, sums[i].g_xc);
      work.dbeta[slot] += sums[i].g;
    }
    return gradient.k;
  };
  const auto activate = [&](const RunPiece& piece, int64_t unit, double residual) {
    const Standard<U> standard(mean[unit], residual, variance[unit], epsilon);
    const U* w = gamma ? gamma + piece.c : nullptr;
    const U* b = beta ? beta + piece.c : nullptr;
    ActivatePiece(kernels, k, piece, x, standard.center, standard.Scale(w), standard.Shift(w, b),
                  activation, dy, dx);
  };
  const auto apply = [&](const RunPiece& piece, const Gradient<U>& gradient) {
    const U w = gamma ? gamma[piece.c] : U{1};
    ForRuns(k, piece, [&](int64_t offset, int64_t size) {
      kernels.segment_gradient(dz + offset, x + offset, size, gradient, w, stream, dx + offset);
    });
  };

  if (!work.cut) {
    ParallelFor(pool, work.parts * k.g, [&](int64_t task) {
      const int64_t part = task / k.g, g = task % k.g;
      const Range range = Part(k.n, work.parts, part);
      Sums* sums = work.channels + part * channels + g * k.d;
      for (int64_t n = range.begin; n < range.end; ++n) {
        const int64_t unit = n * k.g + g;
        double xc = 0;
        if (activated && NeedsResidual(mean + unit, variance + unit, 1, epsilon)) {
          for (int64_t c = g * k.d; c < (g + 1) * k.d; ++c) {
            xc += ChannelSums(kernels, k, WholeChannel(k, n, c), x, x, mean[unit]).xc;
          }
        }
        for (int64_t i = 0; i < k.d; ++i) {
          const RunPiece channel = WholeChannel(k, n, g * k.d + i);
          if (activated) activate(channel, unit, xc / count);
          sums[i] = ChannelSums(kernels, k, channel, dz, x, mean[unit]);
        }
        const Gradient<U> gradient = differentiate(unit, part, sums);
        for (int64_t i = 0; i < k.d; ++i) apply(WholeChannel(k, n, g * k.d + i), gradient);
      }
    });
  } else {
    const RunPieces pieces(k);
    const auto unit_of = [&](const RunPiece& piece) { return piece.n * k.g + piece.c / k.d; };
    if (activated) {
      const bool residuals = NeedsResidual(mean, variance, k.units(), epsilon);
      if (residuals) {
        ForPieces(pool, pieces, [&](int64_t i, const RunPiece& piece) {
          work.pieces[i] = ChannelSums(kernels, k, piece, x, x, mean[unit_of(piece)]);
        });
      }
      const int64_t per_unit = k.d * pieces.per_channel();
      for (int64_t unit = 0; unit < k.units(); ++unit) {
        double xc = 0;
        for (int64_t i = unit * per_unit; residuals && i < (unit + 1) * per_unit; ++i) {
          xc += work.pieces[i].xc;
        }
        work.gradients[unit].residual = static_cast<U>(xc / count);
      }
    }
    ForPieces(pool, pieces, [&](int64_t i, const RunPiece& piece) {
      const int64_t unit = unit_of(piece);
      if (activated) activate(piece, unit, work.gradients[unit].residual);
      work.pieces[i] = ChannelSums(kernels, k, piece, dz, x, mean[unit]);
    });
    for (int64_t unit = 0; unit < k.units(); ++unit) {
      const int64_t n = unit / k.g, first = n * channels + unit % k.g * k.d;
      for (int64_t c = first; c < first + k.d; ++c) {
        Sums all = {0, 0, 0};
        for (int64_t p = 0; p < pieces.per_channel(); ++p) {
          const Sums& piece = work.pieces[c * pieces.per_channel() + p];
          all = {all.g + piece.g, all.g_xc + piece.g_xc, all.xc + piece.xc};
        }
        work.channels[c] = all;
      }
      work.gradients[unit] = differentiate(unit, n, work.channels + first);
    }
    ForPieces(pool, pieces, [&](int64_t, const RunPiece& piece) {
      apply(piece, work.gradients[unit_of(piece)]);
    });
  }
  if (dgamma != nullptr || dbeta != nullptr) {
    SumParts(pool, work.dgamma, work.dbeta, work.parts, channels, dgamma, dbeta);
  }
}

}  // namespace keras_norms

#endif  // KERAS_NORMS_CORE_RUNS_H_
