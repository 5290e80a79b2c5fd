// The walks: which loop runs over which part of x, and how their sums become coefficients.
//
//   rows   s = t = 1   a mean per contiguous row of d elements, gamma and beta per element
//   lanes  t = 1       channels side by side: statistics per lane over the rows, merged over d
//   runs   t > 1       each channel a contiguous run of t elements, statistics over runs
//
// Each walk has two schedules. Where there are many independent means, a task does all the work of
// some of them while their data is in the cache. Where there are few and they are large, tasks take
// pieces: first their sums, then (after merging) the elements. The cut into tasks and pieces
// depends on the geometry alone, and sums merge in order, so the number of threads never shows in a
// result.
#include "custom_ops/core/normalize.h"

#include <algorithm>

#include "custom_ops/core/dispatch.h"
#include "custom_ops/core/lanes.h"
#include "custom_ops/core/rows.h"
#include "custom_ops/core/runs.h"
#include "custom_ops/core/schedule.h"
#include "custom_ops/core/standard.h"

namespace keras_norms {
namespace {

// Calls fn(n, begin, end) for ranges of a sample's rows of lanes, on the pool.
template <class Fn>
void ForLaneRows(const Pool& pool, const Geometry& k, const Fn& fn) {
  const int64_t rows = std::max<int64_t>(1, kPieceElements / k.channels());
  const int64_t chunks = CeilDiv(k.s, rows);
  const int64_t tasks = Tasks(k.n * chunks, std::min(rows, k.s) * k.channels(), 1024);
  ParallelFor(pool, tasks, [&](int64_t task) {
    const Range range = Part(k.n * chunks, tasks, task);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const Range part = Part(k.s, chunks, i % chunks);
      fn(i / chunks, part.begin, part.end);
    }
  });
}

struct ScaleShiftScratch {
  bool cut;
  int64_t slots;
  LaneSums lanes;
  Sums* pieces;

  ScaleShiftScratch(Arena* arena, const Geometry& k)
      : cut(k.t == 1 && CutLanes(k)),
        slots(k.t > 1 ? 0
              : cut   ? k.n * LanePieces(k).pieces
                      : LaneTasks(k)),
        lanes(arena, slots * k.channels()),
        pieces(k.t > 1 ? arena->Take<Sums>(RunPieces(k).size()) : nullptr) {}
};

enum class Walk { kRows, kLanes, kRuns };

Walk WalkOf(const Geometry& k) {
  if (k.t > 1) return Walk::kRuns;
  return k.s == 1 && k.d > 1 ? Walk::kRows : Walk::kLanes;
}

// Short runs waste vectors: take the t elements of a channel as t channels of the same group.
bool Spreads(const Geometry& k) {
  return k.t > 1 && (k.t < 8 || (k.t < 64 && k.channels() * k.t <= 16384));
}

// Parameters repeated, and their gradients gathered, for a view whose t became channels.
template <class U>
struct Spread {
  Geometry k;
  int64_t t;
  U *gamma, *beta, *dgamma, *dbeta;
  void* scratch;

  Spread(Arena* arena, const Geometry& from, void* base)
      : k{from.n, from.s, from.g, from.d * from.t, 1},
        t(from.t),
        gamma(arena->Take<U>(k.channels())),
        beta(arena->Take<U>(k.channels())),
        dgamma(arena->Take<U>(k.channels())),
        dbeta(arena->Take<U>(k.channels())),
        scratch(base == nullptr ? nullptr : static_cast<char*>(base) + arena->used()) {}

  const U* Repeat(const U* from, U* to) const {
    if (from == nullptr) return nullptr;
    for (int64_t i = 0; i < k.channels(); ++i) to[i] = from[i / t];
    return to;
  }
  void Gather(const U* from, U* to) const {
    if (to == nullptr) return;
    for (int64_t c = 0; c < k.channels() / t; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < t; ++i) sum += from[c * t + i];
      to[c] = static_cast<U>(sum);
    }
  }
};

template <class T>
void NormalizeWith(const Pool& pool, const Geometry& k, const T* x, const Parameter<T>* gamma,
                   const Parameter<T>* beta, double epsilon, bool subtract_mean,
                   Activation activation, T* y, const StatisticsOut<Parameter<T>>& out,
                   void* scratch) {
  using U = Parameter<T>;
  if (k.size() == 0) {
    for (int64_t unit = 0; unit < k.units(); ++unit) out.Set(unit, Standard<U>({0, 0}, 1, 1));
    return;
  }
  if (Spreads(k)) {
    Arena arena(scratch);
    const Spread<U> spread(&arena, k, scratch);
    return NormalizeWith<T>(pool, spread.k, x, spread.Repeat(gamma, spread.gamma),
                            spread.Repeat(beta, spread.beta), epsilon, subtract_mean, activation, y,
                            out, spread.scratch);
  }
  const Walk walk = WalkOf(k);
  const auto run = walk == Walk::kRows    ? NormalizeRows<T, U>
                   : walk == Walk::kLanes ? NormalizeLanes<T, U>
                                          : NormalizeRuns<T, U>;
  run(pool, k, x, gamma, beta, epsilon, subtract_mean, activation, y, out, scratch);
}

}  // namespace

int64_t ScratchBytes(const Geometry& k) {
  if (k.size() == 0) return 0;
  int64_t most = 0;
  const auto count = [&most](const auto& layout) {
    Arena arena(nullptr);
    layout(&arena);
    most = std::max(most, arena.used());
  };
  switch (WalkOf(k)) {
    case Walk::kRows:
      count([&](Arena* a) { RowsForward<double> work(a, k); });
      count([&](Arena* a) { RowsBackward<double> work(a, k); });
      break;
    case Walk::kLanes:
      count([&](Arena* a) { LanesForward<double> work(a, k); });
      count([&](Arena* a) { LanesBackward<double> work(a, k); });
      break;
    case Walk::kRuns:
      count([&](Arena* a) { RunsForward<double> work(a, k); });
      count([&](Arena* a) { RunsBackward<double> work(a, k); });
      break;
  }
  count([&](Arena* a) { ScaleShiftScratch work(a, k); });
  if (Spreads(k)) {
    count([&](Arena* a) {
      const Spread<double> spread(a, k, nullptr);
      a->Take<char>(ScratchBytes(spread.k));
    });
  }
  if (WalkOf(k) == Walk::kLanes) {
    count([&](Arena* a) { a->Take<double>(3 * k.n * k.channels() + 24); });
  }
  return most;
}

template <class T>
void Normalize(const Pool& pool, const Geometry& k, const T* x, const Parameter<T>* gamma,
               const Parameter<T>* beta, double epsilon, bool subtract_mean, Activation activation,
               T* y, Parameter<T>* mean, Parameter<T>* variance, void* scratch) {
  NormalizeWith<T>(pool, k, x, gamma, beta, epsilon, subtract_mean, activation, y,
                   {mean, nullptr, variance}, scratch);
}

template <class T>
void NormalizeGrad(const Pool& pool, const Geometry& k, const T* dy, const T* x,
                   const Parameter<T>* gamma, const Parameter<T>* beta, const Parameter<T>* mean,
                   const Parameter<T>* variance, double epsilon, bool subtract_mean,
                   Activation activation, T* dx, Parameter<T>* dgamma, Parameter<T>* dbeta,
                   void* scratch) {
  using U = Parameter<T>;
  if (k.size() == 0) {
    if (dgamma != nullptr) std::fill_n(dgamma, k.channels(), U{0});
    if (dbeta != nullptr) std::fill_n(dbeta, k.channels(), U{0});
    return;
  }
  if (Spreads(k)) {
    Arena arena(scratch);
    const Spread<U> spread(&arena, k, scratch);
    NormalizeGrad<T>(pool, spread.k, dy, x, spread.Repeat(gamma, spread.gamma),
                     spread.Repeat(beta, spread.beta), mean, variance, epsilon, subtract_mean,
                     activation, dx, dgamma ? spread.dgamma : nullptr,
                     dbeta ? spread.dbeta : nullptr, spread.scratch);
    spread.Gather(spread.dgamma, dgamma);
    spread.Gather(spread.dbeta, dbeta);
    return;
  }
  const Walk walk = WalkOf(k);
  const auto run = walk == Walk::kRows    ? NormalizeRowsGrad<T, U>
                   : walk == Walk::kLanes ? NormalizeLanesGrad<T, U>
                                          : NormalizeRunsGrad<T, U>;
  run(pool, k, dy, x, gamma, beta, mean, variance, epsilon, subtract_mean, activation, dx, dgamma,
      dbeta, scratch);
}

template <class T>
void Moments(const Pool& pool, const Geometry& k, const T* x, bool subtract_mean,
             Parameter<T>* mean, Parameter<T>* residual, Parameter<T>* variance, void* scratch) {
  NormalizeWith<T>(pool, k, x, nullptr, nullptr, 1.0, subtract_mean, Activation::kNone, nullptr,
                   {mean, residual, variance}, scratch);
}

template <class T>
void MomentsGrad(const Pool& pool, const Geometry& k, const T* x, const Parameter<T>* mean,
                 const Parameter<T>* residual, const Parameter<T>* dmean,
                 const Parameter<T>* dvariance, T* dx, void* scratch) {
  using U = Parameter<T>;
  if (k.size() == 0) return;
  const Kernels<T>& kernels = KernelsOf<T>();
  const double count = static_cast<double>(k.count());
  const auto scale_of = [&](int64_t unit) { return static_cast<U>(2 * dvariance[unit] / count); };
  const auto shift_of = [&](int64_t unit) {
    return static_cast<U>((dmean[unit] - 2.0 * dvariance[unit] * residual[unit]) / count);
  };
  if (WalkOf(k) == Walk::kLanes) {
    const int64_t channels = k.channels();
    Arena arena(scratch);
    U* center = arena.Take<U>(k.n * channels);
    U* scale = arena.Take<U>(k.n * channels);
    U* shift = arena.Take<U>(k.n * channels);
    for (int64_t i = 0; i < k.n * channels; ++i) {
      const int64_t unit = i / k.d;
      center[i] = mean[unit];
      scale[i] = scale_of(unit);
      shift[i] = shift_of(unit);
    }
    return ScaleShift<T>(pool, k, x, center, scale, shift, Activation::kNone, dx);
  }
  // Of rows and runs, the d * t elements of a mean in one s lie side by side.
  const int64_t block = k.d * k.t, blocks = k.n * k.s * k.g;
  const int64_t tiles = CeilDiv(block, kPieceElements);
  const Finish<T> finish = {Activation::kNone, nullptr, Streams(k, 2, x, dx)};
  const int64_t tasks = Tasks(blocks * tiles, CeilDiv(block, tiles), 1024);
  ParallelFor(pool, tasks, [&](int64_t task) {
    const Range range = Part(blocks * tiles, tasks, task);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t b = i / tiles, unit = b / (k.s * k.g) * k.g + b % k.g;
      const Range part = Part(block, tiles, i % tiles);
      kernels.segment_affine(x + b * block + part.begin, part.end - part.begin, mean[unit],
                             scale_of(unit), shift_of(unit), finish, dx + b * block + part.begin);
    }
  });
}

template <class T>
void ScaleShift(const Pool& pool, const Geometry& k, const T* x, const Parameter<T>* center,
                const Parameter<T>* scale, const Parameter<T>* shift, Activation activation, T* y) {
  using U = Parameter<T>;
  if (k.size() == 0) return;
  const Kernels<T>& kernels = KernelsOf<T>();
  const int64_t channels = k.channels();
  const Finish<T> finish = {activation, nullptr, Streams(k, 2, x, y)};
  if (k.t == 1) {
    ForLaneRows(pool, k, [&](int64_t n, int64_t begin, int64_t end) {
      const int64_t base = n * channels, offset = (n * k.s + begin) * channels;
      kernels.lanes_affine(x + offset, end - begin, channels, center ? center + base : nullptr,
                           scale + base, shift ? shift + base : nullptr, finish, y + offset);
    });
    return;
  }
  // In the order of memory: there is nothing to gather first.
  const int64_t tiles = CeilDiv(k.t, kPieceElements), runs = k.n * k.s * channels;
  const int64_t tasks = Tasks(runs * tiles, CeilDiv(k.t, tiles), 1024);
  ParallelFor(pool, tasks, [&](int64_t task) {
    const Range range = Part(runs * tiles, tasks, task);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const int64_t run = i / tiles, c = run / (k.s * channels) * channels + run % channels;
      const Range part = Part(k.t, tiles, i % tiles);
      const int64_t offset = run * k.t + part.begin;
      kernels.segment_affine(x + offset, part.end - part.begin, center ? center[c] : U{0}, scale[c],
                             shift ? shift[c] : U{0}, finish, y + offset);
    }
  });
}

template <class T>
void ScaleShiftGrad(const Pool& pool, const Geometry& k, const T* dy, const T* x,
                    const Parameter<T>* center, const Parameter<T>* scale,
                    const Parameter<T>* shift, Activation activation, T* dx, Parameter<T>* dscale,
                    Parameter<T>* dshift, void* scratch) {
  using U = Parameter<T>;
  const int64_t channels = k.channels(), sample = k.s * channels;
  if (k.size() == 0) {
    std::fill_n(dscale, k.n * channels, U{0});
    std::fill_n(dshift, k.n * channels, U{0});
    return;
  }
  const Kernels<T>& kernels = KernelsOf<T>();
  Arena arena(scratch);
  const ScaleShiftScratch work(&arena, k);
  const auto center_at = [&](int64_t c) { return center ? center + c : nullptr; };
  const bool activated = activation != Activation::kNone;
  const T* const dz = activated ? dx : dy;
  // Puts dz = dy * activation'(z) of rows of lanes into dx, where the sums find it in cache.
  const auto activate = [&](int64_t begin, int64_t rows, int64_t n) {
    kernels.lanes_affine(x + begin, rows, channels, center_at(n * channels), scale + n * channels,
                         shift ? shift + n * channels : nullptr, {activation, dy + begin},
                         dx + begin);
  };
  // The sums first: dx may be dy.
  if (k.t > 1) {
    const RunPieces pieces(k);
    ForPieces(pool, pieces, [&](int64_t i, const RunPiece& piece) {
      const int64_t c = piece.n * channels + piece.c;
      const U middle = center ? center[c] : U{0};
      if (activated) {
        ActivatePiece(kernels, k, piece, x, middle, scale[c], shift ? shift[c] : U{0}, activation,
                      dy, dx);
      }
      work.pieces[i] = ChannelSums(kernels, k, piece, dz, x, middle);
    });
    for (int64_t c = 0; c < k.n * channels; ++c) {
      double sum_dy = 0, sum_dy_xc = 0;
      for (int64_t p = c * pieces.per_channel(); p < (c + 1) * pieces.per_channel(); ++p) {
        sum_dy += work.pieces[p].g;
        sum_dy_xc += work.pieces[p].g_xc;
      }
      dshift[c] = static_cast<U>(sum_dy);
      dscale[c] = static_cast<U>(sum_dy_xc);
    }
  } else if (work.cut) {
    const int64_t pieces = LanePieces(k).pieces;
    ParallelFor(pool, k.n * pieces, [&](int64_t piece) {
      const Range range = Part(k.s, pieces, piece % pieces);
      const int64_t n = piece / pieces, begin = n * sample + range.begin * channels,
                    slot = piece * channels;
      if (activated) activate(begin, range.end - range.begin, n);
      kernels.lanes_sums(dz + begin, x + begin, range.end - range.begin, channels,
                         center_at(n * channels), work.lanes.dy + slot, work.lanes.dy_xc + slot,
                         work.lanes.xc + slot);
    });
    for (int64_t n = 0; n < k.n; ++n) {
      SumParts(pool, work.lanes.dy_xc + n * pieces * channels,
               work.lanes.dy + n * pieces * channels, pieces, channels, dscale + n * channels,
               dshift + n * channels);
    }
  } else {
    ParallelFor(pool, work.slots, [&](int64_t task) {
      const Range range = Part(k.n, work.slots, task);
      const int64_t slot = task * channels;
      for (int64_t n = range.begin; n < range.end; ++n) {
        if (activated) activate(n * sample, k.s, n);
        kernels.lanes_sums(dz + n * sample, x + n * sample, k.s, channels, center_at(n * channels),
                           work.lanes.dy + slot, work.lanes.dy_xc + slot, work.lanes.xc + slot);
        for (int64_t c = 0; c < channels; ++c) {
          dshift[n * channels + c] = static_cast<U>(work.lanes.dy[slot + c]);
          dscale[n * channels + c] = static_cast<U>(work.lanes.dy_xc[slot + c]);
        }
      }
    });
  }
  ScaleShift<T>(pool, k, dz, nullptr, scale, nullptr, Activation::kNone, dx);
}

#define KERAS_NORMS_INSTANTIATE(T)                                                                 \
  template void Normalize<T>(const Pool&, const Geometry&, const T*, const Parameter<T>*,          \
                             const Parameter<T>*, double, bool, Activation, T*, Parameter<T>*,     \
                             Parameter<T>*, void*);                                                \
  template void NormalizeGrad<T>(const Pool&, const Geometry&, const T*, const T*,                 \
                                 const Parameter<T>*, const Parameter<T>*, const Parameter<T>*,    \
                                 const Parameter<T>*, double, bool, Activation, T*, Parameter<T>*, \
                                 Parameter<T>*, void*);                                            \
  template void Moments<T>(const Pool&, const Geometry&, const T*, bool, Parameter<T>*,            \
                           Parameter<T>*, Parameter<T>*, void*);                                   \
  template void MomentsGrad<T>(const Pool&, const Geometry&, const T*, const Parameter<T>*,        \
                               const Parameter<T>*, const Parameter<T>*, const Parameter<T>*, T*,  \
                               void*);                                                             \
  template void ScaleShift<T>(const Pool&, const Geometry&, const T*, const Parameter<T>*,         \
                              const Parameter<T>*, const Parameter<T>*, Activation, T*);           \
  template void ScaleShiftGrad<T>(const Pool&, const Geometry&, const T*, const T*,                \
                                  const Parameter<T>*, const Parameter<T>*, const Parameter<T>*,   \
                                  Activation, T*, Parameter<T>*, Parameter<T>*, void*);
KERAS_NORMS_INSTANTIATE(float)
KERAS_NORMS_INSTANTIATE(double)
KERAS_NORMS_INSTANTIATE(bfloat16)
KERAS_NORMS_INSTANTIATE(float16)
#undef KERAS_NORMS_INSTANTIATE

}  // namespace keras_norms
