// The walk of s = t = 1: a mean per contiguous row of d elements, gamma and beta per element.
#ifndef KERAS_NORMS_CORE_ROWS_H_
#define KERAS_NORMS_CORE_ROWS_H_

#include <algorithm>
#include <cstdint>

#include "custom_ops/core/dispatch.h"
#include "custom_ops/core/parallel.h"
#include "custom_ops/core/schedule.h"
#include "custom_ops/core/standard.h"

namespace keras_norms {

constexpr int64_t kWideRow = 32768;      // elements of a row from which few rows are cut
constexpr int64_t kRowInCache = 131072;  // elements of a row above which any row is cut
constexpr int64_t kSamplesAtOnce = 256;  // of short rows, in each group
constexpr int64_t kRowsAtOnce = 2;       // whose gradients a task finds together
constexpr int64_t kFlushRows = 64;       // rows whose parameter gradients are summed in U
constexpr int64_t kColumns = 4096;       // columns per task of a wide row's gradient

inline bool CutRows(const Geometry& k, int64_t row_in_cache) {
  return k.d > row_in_cache || (k.units() < kFewMeans && k.d >= kWideRow);
}

// Calls fn(row, samples) for the rows of each group in a few samples at a time, so that what the
// groups share of a cache line is still there.
template <class Fn>
void ForSamples(const Geometry& k, Range range, const Fn& fn) {
  const int64_t most = k.g == 1 ? k.n : kSamplesAtOnce;
  for (int64_t n = range.begin; n < range.end; n += most) {
    const int64_t samples = std::min(most, range.end - n);
    for (int64_t g = 0; g < k.g; ++g) fn(n * k.g + g, samples);
  }
}

struct RowPieces {
  int64_t rows, tiles;
  explicit RowPieces(const Geometry& k) : rows(k.units()), tiles(CeilDiv(k.d, kTaskElements)) {}
  int64_t size() const { return rows * tiles; }
};

template <class U>
struct RowsForward {
  Moment* moments;
  U *center, *residual, *rstd;
  RowsForward(Arena* arena, const Geometry& k) {
    if (!CutRows(k, kRowInCache)) return;
    moments = arena->Take<Moment>(RowPieces(k).size());
    center = arena->Take<U>(k.units());
    residual = arena->Take<U>(k.units());
    rstd = arena->Take<U>(k.units());
  }
};

template <class T, class U>
void NormalizeRows(const Pool& pool, const Geometry& k, const T* x, const U* gamma, const U* beta,
                   double epsilon, bool subtract_mean, Activation activation, T* y,
                   const StatisticsOut<U>& out, void* scratch) {
  const Kernels<T>& kernels = KernelsOf<T>();
  const int64_t rows = k.units(), d = k.d;
  const bool stream = Streams(k, 2, x, y);
  const auto at = [&](const U* p, int64_t row) { return p ? p + row % k.g * d : nullptr; };
  if (d <= kShortRow) {
    const int64_t tasks = Tasks(k.n, k.channels(), 256);
    ParallelFor(pool, tasks, [&](int64_t task) {
      ForSamples(k, Part(k.n, tasks, task), [&](int64_t row, int64_t samples) {
        kernels.short_rows(x + row * d, samples, k.channels(), d, subtract_mean, at(gamma, row),
                           at(beta, row), epsilon, activation, y ? y + row * d : nullptr,
                           out.mean ? out.mean + row : nullptr,
                           out.residual ? out.residual + row : nullptr,
                           out.variance ? out.variance + row : nullptr, k.g);
      });
    });
    return;
  }
  if (!CutRows(k, kRowInCache)) {
    const int64_t tasks = Tasks(rows, d, 256);
    ParallelFor(pool, tasks, [&](int64_t task) {
      const Range range = Part(rows, tasks, task);
      for (int64_t row = range.begin; row < range.end; ++row) {
        const Standard<U> standard(kernels.segment_moments(x + row * d, d, subtract_mean),
                                   static_cast<double>(d), epsilon);
        out.Set(row, standard);
        if (y == nullptr) continue;
        kernels.row_affine(x + row * d, d, standard.center, standard.residual,
                           static_cast<U>(standard.rstd), at(gamma, row), at(beta, row),
                           {activation, nullptr, stream}, y + row * d);
      }
    });
    return;
  }
  Arena arena(scratch);
  const RowsForward<U> work(&arena, k);
  const RowPieces pieces(k);
  ParallelFor(pool, pieces.size(), [&](int64_t piece) {
    const Range range = Part(d, pieces.tiles, piece % pieces.tiles);
    work.moments[piece] = kernels.segment_moments(x + piece / pieces.tiles * d + range.begin,
                                                  range.end - range.begin, subtract_mean);
  });
  for (int64_t row = 0; row < rows; ++row) {
    Moment all = {0, 0};
    for (int64_t tile = 0; tile < pieces.tiles; ++tile) {
      const Range range = Part(d, pieces.tiles, tile);
      Merge(range.begin, &all, range.end - range.begin, work.moments[row * pieces.tiles + tile]);
    }
    const Standard<U> standard(all, static_cast<double>(d), epsilon);
    out.Set(row, standard);
    work.center[row] = standard.center;
    work.residual[row] = standard.residual;
    work.rstd[row] = static_cast<U>(standard.rstd);
  }
  if (y == nullptr) return;
  ParallelFor(pool, pieces.size(), [&](int64_t piece) {
    const Range range = Part(d, pieces.tiles, piece % pieces.tiles);
    const int64_t row = piece / pieces.tiles, begin = row * d + range.begin;
    const auto from = [&](const U* p) { return p ? at(p, row) + range.begin : nullptr; };
    kernels.row_affine(x + begin, range.end - range.begin, work.center[row], work.residual[row],
                       work.rstd[row], from(gamma), from(beta), {activation, nullptr, stream},
                       y + begin);
  });
}

// Parameter gradients of a few rows at a time in U, of all of them in double.
template <class U>
struct ParameterSums {
  U *dgamma, *dbeta;
  double *dgamma_sum, *dbeta_sum;

  void Clear(int64_t size) const {
    std::fill_n(dgamma, size, U{0});
    std::fill_n(dbeta, size, U{0});
    std::fill_n(dgamma_sum, size, 0.0);
    std::fill_n(dbeta_sum, size, 0.0);
  }
  void Flush(int64_t size) const {
    for (int64_t i = 0; i < size; ++i) {
      dgamma_sum[i] += dgamma[i];
      dbeta_sum[i] += dbeta[i];
      dgamma[i] = dbeta[i] = 0;
    }
  }
  ParameterSums From(int64_t i) const {
    return {dgamma + i, dbeta + i, dgamma_sum + i, dbeta_sum + i};
  }
};

template <class U>
struct RowsBackward {
  bool cut;
  int64_t tasks;
  ParameterSums<U> sums;
  Sums* pieces;
  Gradient<U>* gradients;

  RowsBackward(Arena* arena, const Geometry& k) : cut(CutRows(k, kWideRow)) {
    tasks = cut ? 1 : Tasks(k.units(), k.d, 16);
    const int64_t size = tasks * k.channels();
    sums = {arena->Take<U>(size), arena->Take<U>(size), arena->Take<double>(size),
            arena->Take<double>(size)};
    if (!cut) return;
    pieces = arena->Take<Sums>(RowPieces(k).size());
    gradients = arena->Take<Gradient<U>>(k.units());
  }
};

template <class T, class U>
void NormalizeRowsGrad(const Pool& pool, const Geometry& k, const T* dy, const T* x, const U* gamma,
                       const U* beta, const U* mean, const U* variance, double epsilon,
                       bool subtract_mean, Activation activation, T* dx, U* dgamma, U* dbeta,
                       void* scratch) {
  const Kernels<T>& kernels = KernelsOf<T>();
  const int64_t rows = k.units(), d = k.d, channels = k.channels();
  const bool parameters = dgamma != nullptr || dbeta != nullptr;
  const bool stream = activation == Activation::kNone && Streams(k, 3, dy, dx);
  const double count = static_cast<double>(d);
  Arena arena(scratch);
  const RowsBackward<U> work(&arena, k);
  if (d <= kShortRow) {
    ParallelFor(pool, work.tasks, [&](int64_t task) {
      const ParameterSums<U> sums = work.sums.From(task * channels);
      sums.Clear(channels);
      ForSamples(k, Part(k.n, work.tasks, task), [&](int64_t row, int64_t samples) {
        const int64_t first = row % k.g * d;
        kernels.short_rows_gradient(dy + row * d, x + row * d, samples, channels, d, subtract_mean,
                                    gamma ? gamma + first : nullptr, beta ? beta + first : nullptr,
                                    mean + row, variance + row, k.g, epsilon, activation,
                                    dx + row * d, sums.dgamma_sum + first, sums.dbeta_sum + first);
      });
    });
    if (parameters) {
      SumParts(pool, work.sums.dgamma_sum, work.sums.dbeta_sum, work.tasks, channels, dgamma,
               dbeta);
    }
    return;
  }
  if (!work.cut) {
    // Rows of one group are as far apart as samples.
    const int64_t at_once = k.g == 1 ? kRowsAtOnce : 1;
    ParallelFor(pool, work.tasks, [&](int64_t task) {
      const Range range = Part(rows, work.tasks, task);
      const ParameterSums<U> sums = work.sums.From(task * channels);
      if (parameters) sums.Clear(channels);
      int64_t since_flush = 0;
      for (int64_t begin = range.begin, end; begin < range.end; begin = end) {
        end = std::min(range.end, begin + at_once);
        const int64_t first = begin % k.g * d;
        const U* row_gamma = gamma ? gamma + first : nullptr;
        Gradient<U> gradients[kRowsAtOnce];
        for (int64_t row = begin; row < end; ++row) {
          const T *row_dy = dy + row * d, *row_x = x + row * d;
          if (activation != Activation::kNone) {
            double residual = 0;
            if (NeedsResidual(mean + row, variance + row, 1, epsilon)) {
              residual = kernels.segment_sums(row_x, row_x, d, nullptr, mean[row]).xc / count;
            }
            const Standard<U> standard(mean[row], residual, variance[row], epsilon);
            kernels.row_affine(row_x, d, standard.center, standard.residual,
                               static_cast<U>(standard.rstd), row_gamma,
                               beta ? beta + first : nullptr, {activation, row_dy}, dx + row * d);
            row_dy = dx + row * d;
          }
          gradients[row - begin] =
              GradientOf<U>(kernels.segment_sums(row_dy, row_x, d, row_gamma, mean[row]), count,
                            mean[row], variance[row], epsilon, subtract_mean)
                  .k;
        }
        kernels.rows_gradient((activation == Activation::kNone ? dy : dx) + begin * d,
                              x + begin * d, end - begin, d, d, gradients, row_gamma, stream,
                              dx + begin * d, parameters ? sums.dgamma + first : nullptr,
                              parameters ? sums.dbeta + first : nullptr);
        since_flush += end - begin;
        if (parameters && since_flush >= kFlushRows * k.g) {
          sums.Flush(channels);
          since_flush = 0;
        }
      }
      if (parameters) sums.Flush(channels);
    });
    if (parameters) {
      SumParts(pool, work.sums.dgamma_sum, work.sums.dbeta_sum, work.tasks, channels, dgamma,
               dbeta);
    }
    return;
  }
  const RowPieces pieces(k);
  const auto sum_of = [&](int64_t row) {
    Sums all = {0, 0, 0};
    for (int64_t tile = 0; tile < pieces.tiles; ++tile) {
      const Sums& piece = work.pieces[row * pieces.tiles + tile];
      all = {all.g + piece.g, all.g_xc + piece.g_xc, all.xc + piece.xc};
    }
    return all;
  };
  if (activation != Activation::kNone) {
    const bool residuals = NeedsResidual(mean, variance, rows, epsilon);
    if (residuals) {
      ParallelFor(pool, pieces.size(), [&](int64_t piece) {
        const Range range = Part(d, pieces.tiles, piece % pieces.tiles);
        const int64_t row = piece / pieces.tiles;
        const T* begin = x + row * d + range.begin;
        work.pieces[piece] =
            kernels.segment_sums(begin, begin, range.end - range.begin, nullptr, mean[row]);
      });
    }
    for (int64_t row = 0; row < rows; ++row) {
      work.gradients[row].residual = residuals ? static_cast<U>(sum_of(row).xc / count) : U{0};
    }
  }
  ParallelFor(pool, pieces.size(), [&](int64_t piece) {
    const Range range = Part(d, pieces.tiles, piece % pieces.tiles);
    const int64_t row = piece / pieces.tiles, begin = row * d + range.begin,
                  size = range.end - range.begin;
    const auto from = [&](const U* p) { return p ? p + row % k.g * d + range.begin : nullptr; };
    const T* piece_dy = dy + begin;
    if (activation != Activation::kNone) {
      const Standard<U> standard(mean[row], work.gradients[row].residual, variance[row], epsilon);
      kernels.row_affine(x + begin, size, standard.center, standard.residual,
                         static_cast<U>(standard.rstd), from(gamma), from(beta),
                         {activation, piece_dy}, dx + begin);
      piece_dy = dx + begin;
    }
    work.pieces[piece] = kernels.segment_sums(piece_dy, x + begin, size, from(gamma), mean[row]);
  });
  if (activation != Activation::kNone) dy = dx;
  for (int64_t row = 0; row < rows; ++row) {
    work.gradients[row] =
        GradientOf<U>(sum_of(row), count, mean[row], variance[row], epsilon, subtract_mean).k;
  }
  const int64_t strips = CeilDiv(d, kColumns);
  ParallelFor(pool, k.g * strips, [&](int64_t task) {
    const int64_t group = task / strips;
    const Range range = Part(d, strips, task % strips);
    const int64_t first = group * d + range.begin, size = range.end - range.begin;
    const ParameterSums<U> sums = work.sums.From(first);
    if (parameters) sums.Clear(size);
    for (int64_t n = 0, end; n < k.n; n = end) {
      end = std::min(k.n, n + (k.g == 1 ? kRowsAtOnce : 1));
      const int64_t row = n * k.g + group, begin = row * d + range.begin;
      kernels.rows_gradient(dy + begin, x + begin, end - n, size, d, work.gradients + row,
                            gamma ? gamma + first : nullptr, stream, dx + begin,
                            parameters ? sums.dgamma : nullptr, parameters ? sums.dbeta : nullptr);
      if (parameters && end % kFlushRows == 0) sums.Flush(size);
    }
    if (parameters) sums.Flush(size);
  });
  if (parameters) {
    SumParts(pool, work.sums.dgamma_sum, work.sums.dbeta_sum, 1, channels, dgamma, dbeta);
  }
}

}  // namespace keras_norms

#endif  // KERAS_NORMS_CORE_ROWS_H_
