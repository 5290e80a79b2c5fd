// The walk of t = 1: channels side by side, statistics per lane over the rows, merged over d.
#ifndef KERAS_NORMS_CORE_LANES_H_
#define KERAS_NORMS_CORE_LANES_H_

#include <algorithm>
#include <cstdint>

#include "custom_ops/core/dispatch.h"
#include "custom_ops/core/parallel.h"
#include "custom_ops/core/schedule.h"
#include "custom_ops/core/standard.h"

namespace keras_norms {

constexpr int64_t kPieceElements = 65536;  // of a lane walk

inline bool CutLanes(const Geometry& k) {
  return k.n < kFewMeans && k.s * k.channels() >= kPieceElements;
}

struct LanePieces {
  int64_t pieces;  // of each sample
  explicit LanePieces(const Geometry& k) {
    const int64_t rows = std::max<int64_t>(64, kPieceElements / k.channels());
    pieces = CeilDiv(k.s, rows);
  }
};

// Tasks that each hold scratch for all channels.
inline int64_t LaneTasks(const Geometry& k) {
  const int64_t most = std::max<int64_t>(1, std::min<int64_t>(32, (1 << 20) / k.channels()));
  return Tasks(k.n, k.s * k.channels(), most);
}

template <class U>
struct LanesForward {
  double *mean, *m2;              // [slots][channels]
  U *center, *scale, *shift;      // [samples or tasks][channels]
  double *piece_mean, *piece_m2;  // [n][pieces][channels], when cut

  LanesForward(Arena* arena, const Geometry& k) {
    const int64_t slots = CutLanes(k) ? k.n : LaneTasks(k), channels = k.channels();
    mean = arena->Take<double>(slots * channels);
    m2 = arena->Take<double>(slots * channels);
    center = arena->Take<U>(slots * channels);
    scale = arena->Take<U>(slots * channels);
    shift = arena->Take<U>(slots * channels);
    if (!CutLanes(k)) return;
    const int64_t pieces = k.n * LanePieces(k).pieces * channels;
    piece_mean = arena->Take<double>(pieces);
    piece_m2 = arena->Take<double>(pieces);
  }
  // Turns the lane moments of sample n, in a slot, into statistics and coefficients.
  void Standardize(const Geometry& k, int64_t n, int64_t slot, const U* gamma, const U* beta,
                   double epsilon, bool subtract_mean, const StatisticsOut<U>& out) const {
    const int64_t base = slot * k.channels();
    for (int64_t g = 0; g < k.g; ++g) {
      const int64_t first = base + g * k.d;
      const Standard<U> standard(
          MergeEqual(mean + first, m2 + first, k.d, static_cast<double>(k.s), subtract_mean),
          static_cast<double>(k.count()), epsilon);
      out.Set(n * k.g + g, standard);
      for (int64_t i = 0; i < k.d; ++i) {
        const int64_t c = g * k.d + i;
        const U* w = gamma ? gamma + c : nullptr;
        center[base + c] = standard.center;
        scale[base + c] = standard.Scale(w);
        shift[base + c] = standard.Shift(w, beta ? beta + c : nullptr);
      }
    }
  }
};

template <class T, class U>
void NormalizeLanes(const Pool& pool, const Geometry& k, const T* x, const U* gamma, const U* beta,
                    double epsilon, bool subtract_mean, Activation activation, T* y,
                    const StatisticsOut<U>& out, void* scratch) {
  const Kernels<T>& kernels = KernelsOf<T>();
  const int64_t channels = k.channels(), sample = k.s * channels;
  const bool stream = Streams(k, 2, x, y);
  Arena arena(scratch);
  const LanesForward<U> work(&arena, k);
  if (!CutLanes(k)) {
    const int64_t tasks = LaneTasks(k);
    ParallelFor(pool, tasks, [&](int64_t task) {
      const Range range = Part(k.n, tasks, task);
      const int64_t base = task * channels;
      for (int64_t n = range.begin; n < range.end; ++n) {
        kernels.lanes_moments(x + n * sample, k.s, channels, subtract_mean, work.mean + base,
                              work.m2 + base);
        work.Standardize(k, n, task, gamma, beta, epsilon, subtract_mean, out);
        if (y == nullptr) continue;
        kernels.lanes_affine(x + n * sample, k.s, channels, work.center + base, work.scale + base,
                             work.shift + base, {activation, nullptr, stream}, y + n * sample);
      }
    });
    return;
  }
  const int64_t pieces = LanePieces(k).pieces;
  ParallelFor(pool, k.n * pieces, [&](int64_t piece) {
    const Range range = Part(k.s, pieces, piece % pieces);
    kernels.lanes_moments(x + piece / pieces * sample + range.begin * channels,
                          range.end - range.begin, channels, subtract_mean,
                          work.piece_mean + piece * channels, work.piece_m2 + piece * channels);
  });
  const int64_t merges = Tasks(channels, pieces * 8, 16);
  for (int64_t n = 0; n < k.n; ++n) {
    ParallelFor(pool, merges, [&](int64_t task) {
      const Range lanes = Part(channels, merges, task);
      for (int64_t c = lanes.begin; c < lanes.end; ++c) {
        Moment all = {0, 0};
        for (int64_t p = 0; p < pieces; ++p) {
          const Range range = Part(k.s, pieces, p);
          const int64_t slot = (n * pieces + p) * channels + c;
          Merge(range.begin, &all, range.end - range.begin,
                {work.piece_mean[slot], work.piece_m2[slot]});
        }
        work.mean[n * channels + c] = all.mean;
        work.m2[n * channels + c] = all.m2;
      }
    });
    work.Standardize(k, n, n, gamma, beta, epsilon, subtract_mean, out);
  }
  if (y == nullptr) return;
  ParallelFor(pool, k.n * pieces, [&](int64_t piece) {
    const Range range = Part(k.s, pieces, piece % pieces);
    const int64_t n = piece / pieces, begin = n * sample + range.begin * channels,
                  base = n * channels;
    kernels.lanes_affine(x + begin, range.end - range.begin, channels, work.center + base,
                         work.scale + base, work.shift + base, {activation, nullptr, stream},
                         y + begin);
  });
}

struct LaneSums {
  double *dy, *dy_xc, *xc;
  LaneSums(Arena* arena, int64_t size)
      : dy(arena->Take<double>(size)),
        dy_xc(arena->Take<double>(size)),
        xc(arena->Take<double>(size)) {}
  // Adds slot `from` to slot `to`, or copies it there when it is the first.
  void Gather(const LaneSums& pieces, int64_t from, int64_t to, int64_t lanes, bool first) const {
    for (int64_t c = 0; c < lanes; ++c) {
      dy[to + c] = (first ? 0 : dy[to + c]) + pieces.dy[from + c];
      dy_xc[to + c] = (first ? 0 : dy_xc[to + c]) + pieces.dy_xc[from + c];
      xc[to + c] = (first ? 0 : xc[to + c]) + pieces.xc[from + c];
    }
  }
};

template <class U>
struct LanesBackward {
  bool cut;
  int64_t slots;  // samples when cut, tasks otherwise
  LaneSums sums;
  U *center, *residual, *rstd, *mean_g, *slope, *gamma;
  double *dgamma, *dbeta;
  LaneSums pieces;

  LanesBackward(Arena* arena, const Geometry& k)
      : cut(CutLanes(k)),
        slots(cut ? k.n : LaneTasks(k)),
        sums(arena, slots * k.channels()),
        center(arena->Take<U>(slots * k.channels())),
        residual(arena->Take<U>(slots * k.channels())),
        rstd(arena->Take<U>(slots * k.channels())),
        mean_g(arena->Take<U>(slots * k.channels())),
        slope(arena->Take<U>(slots * k.channels())),
        gamma(arena->Take<U>(k.channels())),
        dgamma(arena->Take<double>(slots * k.channels())),
        dbeta(arena->Take<double>(slots * k.channels())),
        pieces(arena, cut ? k.n * LanePieces(k).pieces * k.channels() : 0) {}

  LaneGradient<U> At(int64_t base) const {
    return {center + base, residual + base, rstd + base, mean_g + base, slope + base, gamma};
  }
  void SpreadCenter(const Geometry& k, int64_t n, int64_t slot, const U* mean) const {
    for (int64_t c = 0; c < k.channels(); ++c) {
      center[slot * k.channels() + c] = mean[n * k.g + c / k.d];
    }
  }
  // Scale and shift of z, which lie where rstd and residual will. xc: whether its sums are there.
  void Affine(const Geometry& k, int64_t n, int64_t slot, const U* beta, const U* variance,
              double epsilon, bool xc) const {
    const int64_t base = slot * k.channels();
    for (int64_t g = 0; g < k.g; ++g) {
      const int64_t first = g * k.d;
      double lost = 0;
      for (int64_t i = 0; xc && i < k.d; ++i) lost += sums.xc[base + first + i];
      const Standard<U> standard(center[base + first], lost / static_cast<double>(k.count()),
                                 variance[n * k.g + g], epsilon);
      for (int64_t c = first; c < first + k.d; ++c) {
        rstd[base + c] = standard.Scale(gamma + c);
        residual[base + c] = standard.Shift(gamma + c, beta ? beta + c : nullptr);
      }
    }
  }
  // Turns the lane sums of sample n, in a slot, into coefficients, and adds its dgamma and dbeta.
  void Differentiate(const Geometry& k, int64_t n, int64_t slot, const U* variance, double epsilon,
                     bool subtract_mean) const {
    const int64_t base = slot * k.channels();
    for (int64_t g = 0; g < k.g; ++g) {
      const int64_t first = base + g * k.d;
      Sums all = {0, 0, 0};
      for (int64_t i = 0; i < k.d; ++i) {
        const double w = gamma[g * k.d + i];
        all.g += w * sums.dy[first + i];
        all.g_xc += w * sums.dy_xc[first + i];
        all.xc += sums.xc[first + i];
      }
      const GradientOf<U> gradient(all, static_cast<double>(k.count()), center[first],
                                   variance[n * k.g + g], epsilon, subtract_mean);
      for (int64_t i = first; i < first + k.d; ++i) {
        residual[i] = gradient.k.residual;
        rstd[i] = gradient.k.rstd;
        mean_g[i] = gradient.k.mean_g;
        slope[i] = gradient.k.slope;
        dgamma[i] += gradient.Dgamma(sums.dy[i], sums.dy_xc[i]);
        dbeta[i] += sums.dy[i];
      }
    }
  }
};

template <class T, class U>
void NormalizeLanesGrad(const Pool& pool, const Geometry& k, const T* dy, const T* x,
                        const U* gamma, const U* beta, const U* mean, const U* variance,
                        double epsilon, bool subtract_mean, Activation activation, T* dx, U* dgamma,
                        U* dbeta, void* scratch) {
  const Kernels<T>& kernels = KernelsOf<T>();
  const int64_t channels = k.channels(), sample = k.s * channels;
  const bool activated = activation != Activation::kNone;
  const bool stream = !activated && Streams(k, 3, dy, dx);
  Arena arena(scratch);
  const LanesBackward<U> work(&arena, k);
  for (int64_t c = 0; c < channels; ++c) work.gamma[c] = gamma ? gamma[c] : U{1};
  std::fill_n(work.dgamma, work.slots * channels, 0.0);
  std::fill_n(work.dbeta, work.slots * channels, 0.0);
  if (!work.cut) {
    ParallelFor(pool, work.slots, [&](int64_t task) {
      const Range range = Part(k.n, work.slots, task);
      const int64_t base = task * channels;
      for (int64_t n = range.begin; n < range.end; ++n) {
        const T *sample_dy = dy + n * sample, *sample_x = x + n * sample;
        const auto sum = [&](const T* of) {
          kernels.lanes_sums(of, sample_x, k.s, channels, work.center + base, work.sums.dy + base,
                             work.sums.dy_xc + base, work.sums.xc + base);
        };
        work.SpreadCenter(k, n, task, mean);
        if (activated) {
          const bool residuals = NeedsResidual(mean + n * k.g, variance + n * k.g, k.g, epsilon);
          if (residuals) sum(sample_x);
          work.Affine(k, n, task, beta, variance, epsilon, residuals);
          kernels.lanes_affine(sample_x, k.s, channels, work.center + base, work.rstd + base,
                               work.residual + base, {activation, sample_dy}, dx + n * sample);
          sample_dy = dx + n * sample;
        }
        sum(sample_dy);
        work.Differentiate(k, n, task, variance, epsilon, subtract_mean);
        kernels.lanes_gradient(sample_dy, sample_x, k.s, channels, work.At(base), stream,
                               dx + n * sample);
      }
    });
  } else {
    const int64_t pieces = LanePieces(k).pieces;
    // The sums of `of`, after the derivative of the activation where that is asked for.
    const auto sum = [&](const T* of, bool activate) {
      ParallelFor(pool, k.n * pieces, [&](int64_t piece) {
        const Range range = Part(k.s, pieces, piece % pieces);
        const int64_t n = piece / pieces, begin = n * sample + range.begin * channels,
                      slot = piece * channels, base = n * channels, rows = range.end - range.begin;
        const T* piece_of = of + begin;
        if (activate) {
          kernels.lanes_affine(x + begin, rows, channels, work.center + base, work.rstd + base,
                               work.residual + base, {activation, piece_of}, dx + begin);
          piece_of = dx + begin;
        }
        kernels.lanes_sums(piece_of, x + begin, rows, channels, work.center + base,
                           work.pieces.dy + slot, work.pieces.dy_xc + slot, work.pieces.xc + slot);
      });
      for (int64_t n = 0; n < k.n; ++n) {
        for (int64_t p = 0; p < pieces; ++p) {
          const int64_t from = (n * pieces + p) * channels;
          work.sums.Gather(work.pieces, from, n * channels, channels, p == 0);
        }
      }
    };
    for (int64_t n = 0; n < k.n; ++n) work.SpreadCenter(k, n, n, mean);
    if (activated) {
      const bool residuals = NeedsResidual(mean, variance, k.units(), epsilon);
      if (residuals) sum(x, false);
      for (int64_t n = 0; n < k.n; ++n) {
        work.Affine(k, n, n, beta, variance, epsilon, residuals);
      }
    }
    sum(dy, activated);
    for (int64_t n = 0; n < k.n; ++n) {
      work.Differentiate(k, n, n, variance, epsilon, subtract_mean);
    }
    if (activated) dy = dx;
    ParallelFor(pool, k.n * pieces, [&](int64_t piece) {
      const Range range = Part(k.s, pieces, piece % pieces);
      const int64_t n = piece / pieces, begin = n * sample + range.begin * channels;
      kernels.lanes_gradient(dy + begin, x + begin, range.end - range.begin, channels,
                             work.At(n * channels), stream, dx + begin);
    });
  }
  if (dgamma != nullptr || dbeta != nullptr) {
    SumParts(pool, work.dgamma, work.dbeta, work.slots, channels, dgamma, dbeta);
  }
}

}  // namespace keras_norms

#endif  // KERAS_NORMS_CORE_LANES_H_
