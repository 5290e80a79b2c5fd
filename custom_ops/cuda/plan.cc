// Which kernels run, in which shape. Three walks, as on the CPU:
//
//   rows      s = t = 1   a row in registers, read once; longer ones are segments, then lanes
//   lanes     t = 1       channels side by side
//   segments  t > 1       runs of t elements
//
// The last two go over x twice: partial sums to the workspace, merged by a small kernel, then the
// elements. Devices with clusters of blocks read slices once that these, or all blocks that run at
// the same time, can hold (Held). Scale and shift are normalization by given numbers, with a unit
// per channel.
#include "custom_ops/cuda/plan.h"

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>

#include "custom_ops/core/schedule.h"
#include "custom_ops/cuda/arguments.h"

namespace keras_norms {
namespace gpu {
namespace {

constexpr int64_t kSharedBytes = 48 << 10;  // what every device gives without being asked
constexpr int64_t kBlocks = 2048;           // fill any device: from here on blocks get more work
constexpr int64_t kMostShared = 256 << 10;  // no block has more
constexpr int64_t kLeastPart = 2048;        // bytes of a slice that are worth a block
constexpr int64_t kTogether = 128;          // blocks of a cooperative launch, at most

int64_t PowerOf2(int64_t least, int64_t most) {
  int64_t power = 1;
  while (power < least && power < most) power *= 2;
  return power;
}

template <class T>
struct Type;
template <>
struct Type<float> {
  static constexpr const char* kName = "float32";
};
template <>
struct Type<bfloat16> {
  static constexpr const char* kName = "bfloat16";
};
template <>
struct Type<float16> {
  static constexpr const char* kName = "float16";
};

// Sums over all elements of a channel, or of a unit.
struct SumPlanes {
  float *dz, *dz_xc, *xc;
};

class Plan {
 public:
  // Without a launcher it only counts the workspace. `width`: elements of a vector, where they fit.
  Plan(Launcher* launcher, const char* type, int width, void* workspace)
      : launcher_(launcher), type_(type), width_(width), arena_(workspace) {
    if (launcher != nullptr && width > 1) capability_ = launcher->capability();
  }

  bool ok() const { return ok_; }
  int64_t used() const { return arena_.used(); }

  void Normalize(const Geometry& k, const void* x, const float* gamma, const float* beta,
                 double epsilon, bool subtract_mean, Activation activation, void* y, float* mean,
                 float* residual, float* variance) {
    if (k.size() > 0 && IsRow(k)) {
      const int width = Width(k.d);
      if (k.d <= int64_t{kRowThreads} * (width == 1 ? kRowVectors<1> : kRowVectors<4>)*width) {
        const int threads =
            static_cast<int>(PowerOf2(CeilDiv(k.d / width, width == 1 ? 8 : 4), kRowThreads));
        const int64_t at_once = RowsAtOnce(threads, k.units());
        RowsForward a = {x,
                         gamma,
                         beta,
                         y,
                         mean,
                         residual,
                         variance,
                         k.units(),
                         k.g,
                         static_cast<int>(k.d),
                         threads,
                         static_cast<float>(epsilon),
                         subtract_mean,
                         static_cast<int>(activation)};
        return Launch("rows_forward", width, CeilDiv(k.units(), at_once), threads * at_once,
                      kReduceWords * sizeof(float), &a);
      }
    }
    if (auto held = Held(k, false)) {
      TakeTold(&*held);
      SlicesForward a = {held->slice,
                         x,
                         gamma,
                         beta,
                         y,
                         mean,
                         residual,
                         variance,
                         static_cast<float>(epsilon),
                         subtract_mean,
                         static_cast<int>(activation)};
      return LaunchSlices("slices_forward", *held, k.n, &a);
    }
    float *center = mean, *rest = residual, *rstd = nullptr;
    const bool apply = k.size() > 0 && (y != nullptr || launcher_ == nullptr);
    if (apply) {
      if (center == nullptr) center = arena_.Take<float>(k.units());
      if (rest == nullptr) rest = arena_.Take<float>(k.units());
      rstd = arena_.Take<float>(k.units());
    }
    Statistics(k, x, epsilon, subtract_mean, {}, center, rest, variance, rstd);
    if (apply) ApplyTo(k, x, {center, rest, rstd, nullptr, gamma, beta}, activation, y);
  }

  void NormalizeGrad(const Geometry& k, const void* dy, const void* x, const float* gamma,
                     const float* beta, const float* mean, const float* variance, double epsilon,
                     bool subtract_mean, Activation activation, void* dx, float* dgamma,
                     float* dbeta) {
    const int64_t channels = k.channels();
    const bool parameters = dgamma != nullptr || dbeta != nullptr || launcher_ == nullptr;
    if (k.size() == 0) {
      if (parameters) Sum({nullptr, nullptr}, {dgamma, dbeta}, 1, channels, 0, 0, 0, 1);
      return;
    }
    if (IsRow(k)) {
      const int width = Width(k.d);
      const int64_t most = width == 1 ? kRowGradientVectors<1> : kRowGradientVectors<4>;
      const int threads = static_cast<int>(PowerOf2(CeilDiv(k.d / width, most / 2), kRowThreads));
      const int64_t slots = CeilDiv(k.d / width, threads) * threads * width;
      int64_t at_once = RowsAtOnce(threads, k.n);
      const auto shared = [&] { return (kReduceWords + at_once * 2 * slots) * sizeof(float); };
      while (shared() > kSharedBytes && at_once * threads > 32) at_once /= 2;
      if (k.d <= kRowThreads * most * width && at_once > 0 && shared() <= kSharedBytes) {
        // As few parts as fill a device, but of few enough rows to be summed in float.
        const int64_t parts =
            std::min(CeilDiv(k.n, at_once * 8), std::max<int64_t>(512, CeilDiv(k.n, at_once * 64)));
        float* const dgamma_parts = parameters ? arena_.Take<float>(parts * channels) : nullptr;
        float* const dbeta_parts = parameters ? arena_.Take<float>(parts * channels) : nullptr;
        RowsBackward a = {dy,
                          x,
                          gamma,
                          beta,
                          mean,
                          variance,
                          dx,
                          dgamma_parts,
                          dbeta_parts,
                          k.n,
                          k.g,
                          parts,
                          static_cast<int>(k.d),
                          threads,
                          static_cast<float>(epsilon),
                          subtract_mean,
                          static_cast<int>(activation)};
        Launch("rows_backward", width, parts * k.g, threads * at_once, shared(), &a);
        if (parameters) {
          Sum({dgamma_parts, dbeta_parts}, {dgamma, dbeta}, 1, channels, parts, 0, channels, 1);
        }
        return;
      }
    }

    if (auto held = Held(k, true)) {
      TakeTold(&*held);
      const Slice& slice = held->slice;
      const bool own = k.d == 1;  // the sums of a unit are those of a channel
      const int64_t parts = IsRow(k) ? RowParts(k.n, slice.cluster) : k.n;
      const int64_t planes = IsRow(k) || own ? parts : parts * slice.cluster;
      SlicesBackward a = {slice,
                          dy,
                          x,
                          gamma,
                          beta,
                          mean,
                          variance,
                          dx,
                          dgamma,
                          dbeta,
                          k.n,
                          parts,
                          static_cast<float>(epsilon),
                          subtract_mean,
                          static_cast<int>(activation)};
      const bool whole = own && planes == 1;  // the one part is all
      if (parameters && !whole) {
        a.dgamma_parts = arena_.Take<float>(planes * channels);
        a.dbeta_parts = arena_.Take<float>(planes * channels);
      }
      LaunchSlices("slices_backward", *held, parts, &a);
      if (parameters && !whole) {
        Sum({a.dgamma_parts, a.dbeta_parts}, {dgamma, dbeta}, 1, channels, planes, 0, channels, 1);
      }
      return;
    }

    Affine affine = {mean, nullptr, nullptr, nullptr, gamma, beta};
    if (activation != Activation::kNone || launcher_ == nullptr) {
      float* const residual = arena_.Take<float>(k.units());
      float* const rstd = arena_.Take<float>(k.units());
      Statistics(k, x, epsilon, subtract_mean, {mean, variance, static_cast<float>(epsilon)},
                 nullptr, residual, nullptr, rstd);
      affine.residual = residual;
      affine.scale = rstd;
    }
    const bool rows = IsRow(k);
    const int64_t width = rows ? 1 : k.d, sums = k.units() * width;
    const SumPlanes planes = {arena_.Take<float>(sums), arena_.Take<float>(sums),
                              arena_.Take<float>(sums)};
    float *const residual = arena_.Take<float>(k.units()), *const rstd =
                                                               arena_.Take<float>(k.units());
    float *const mean_g = arena_.Take<float>(k.units()), *const slope =
                                                             arena_.Take<float>(k.units());
    float* const dgamma_n = parameters && !rows ? arena_.Take<float>(sums) : nullptr;
    SumsTo(k, dy, x, affine, activation, rows, planes);
    {
      const int threads = static_cast<int>(PowerOf2(CeilDiv(width, 8), kThreads));
      MergeSums a = {planes.dz, planes.dz_xc, planes.xc,     gamma,  mean,
                     variance,  k.units(),    k.g,           k.d,    k.count(),
                     epsilon,   residual,     rstd,          mean_g, slope,
                     dgamma_n,  threads,      subtract_mean, rows};
      LaunchUnits("merge_sums", k.units(), threads, 3 * sizeof(double), &a);
    }
    affine.scale = rstd;
    const int vectors = Width(k.t == 1 ? channels : k.t);
    const bool row_parts = rows && parameters;
    Gradient a = {
        WalkOf(k, vectors, row_parts), dy, x, dx, affine, residual, mean_g, slope, nullptr, nullptr,
        static_cast<int>(activation)};
    const int64_t parts = CeilDiv(a.walk.outer, a.walk.outer_tile);
    if (row_parts) {
      a.dgamma_parts = arena_.Take<float>(parts * channels);
      a.dbeta_parts = arena_.Take<float>(parts * channels);
    }
    LaunchWalk(row_parts ? "gradient_rows" : "gradient", vectors, &a);
    if (row_parts) {
      Sum({a.dgamma_parts, a.dbeta_parts}, {dgamma, dbeta}, 1, channels, parts, 0, channels, 1);
    } else if (parameters) {
      Sum({dgamma_n, planes.dz}, {dgamma, dbeta}, 1, channels, k.n, 0, channels, 1);
    }
  }

  // As Held's launches, for any capability.
  void TakeSliceParts(const Geometry& k) {
    if (width_ == 1) return;
    const int64_t bytes = k.size() * kVectorBytes / width_;
    const int64_t most = bytes / std::max<int64_t>(1, k.n) / kLeastPart;
    const int64_t row = k.d / width_ * (2 * kVectorBytes + width_ * 2 * sizeof(float));
    const int64_t fewest = std::max<int64_t>(1, CeilDiv(row, kMostShared));
    int64_t planes = k.d == 1   ? k.n
                     : IsRow(k) ? RowParts(k.n, fewest)
                                : k.n * std::clamp<int64_t>(most, 1, kMostCluster);
    if (bytes <= kTogether * kMostShared) {
      const int64_t blocks = std::min(kTogether, k.n * most);
      if (k.d > 1) planes = std::max(planes, blocks);
      const int64_t units = std::min<int64_t>(k.g, kSliceThreads);
      arena_.Take<char>(std::min(bytes / kToldShare, blocks * kSharedFigures * units * 4));
      arena_.Take<unsigned>(blocks);
    }
    arena_.Take<float>(planes * k.channels());
    arena_.Take<float>(planes * k.channels());
  }

  void MomentsGrad(const Geometry& k, const void* x, const float* mean, const float* residual,
                   const float* dmean, const float* dvariance, void* dx) {
    if (k.size() == 0) return;
    float *const scale = arena_.Take<float>(k.units()), *const shift =
                                                            arena_.Take<float>(k.units());
    MomentsCoefficients a = {
        residual, dmean, dvariance, scale, shift, k.units(), static_cast<double>(k.count())};
    LaunchUnits("moments_coefficients", k.units(), 1, 0, &a);
    ApplyTo(k, x, {mean, nullptr, scale, shift, nullptr, nullptr}, Activation::kNone, dx);
  }

  void ScaleShift(const Geometry& k, const void* x, const float* center, const float* scale,
                  const float* shift, Activation activation, void* y) {
    if (k.size() == 0) return;
    ApplyTo(PerChannel(k), x, {center, nullptr, scale, shift, nullptr, nullptr}, activation, y);
  }

  void ScaleShiftGrad(const Geometry& k, const void* dy, const void* x, const float* center,
                      const float* scale, const float* shift, Activation activation, void* dx,
                      float* dscale, float* dshift) {
    if (k.size() == 0) {
      Sum({nullptr, nullptr}, {dscale, dshift}, 1, k.n * k.channels(), 0, 0, 0, 1);
      return;
    }
    const Affine affine = {center, nullptr, scale, shift, nullptr, nullptr};
    SumsTo(PerChannel(k), dy, x, affine, activation, false, {dshift, dscale, nullptr});
    const int width = Width(k.t == 1 ? k.channels() : k.t);
    Gradient a = {WalkOf(PerChannel(k), width, false),
                  dy,
                  x,
                  dx,
                  affine,
                  nullptr,
                  nullptr,
                  nullptr,
                  nullptr,
                  nullptr,
                  static_cast<int>(activation)};
    LaunchWalk("gradient", width, &a);
  }

 private:
  static bool IsRow(const Geometry& k) { return k.s == 1 && k.t == 1 && k.d > 1; }
  static Geometry PerChannel(const Geometry& k) { return {k.n, k.s, k.channels(), 1, k.t}; }
  // Rows of a block: whole warps of them, though not more than there are.
  static int64_t RowsAtOnce(int threads, int64_t rows) {
    return std::max<int64_t>(PowerOf2(rows, std::max(1, kThreads / threads)), 32 / threads);
  }

  // What clusters of blocks hold in shared memory. Tensors moved through memory, at least:
  //
  //                          forward              backward
  //   two reads              x, x, y: 3           x, dy, x, dy, dx: 5
  //   slices, rows           x, y: 2              x, dy, dx: 3
  //
  //   walk      slice                               served where
  //   rows      a row                               it is beyond registers
  //   lanes     all of s, neighbouring groups       these are whole vectors
  //   segments  a group                             s or d = 1, channels are whole vectors
  //
  // Neighbouring groups are held together until a row of them has 64 bytes and all an eighth of a
  // block's shared memory.
  //
  // Slices beyond the largest cluster, as of batch norm, are held by the blocks of a cooperative
  // launch, of which there are about kTogether whatever the device, if it can run so many at the
  // same time: tensors of up to 27 MB, backward 14 MB. The second read that this saves would mostly
  // come from the L2 cache. What counts more is launches, 2 for 3 forward and 2 for 4 or 5
  // backward, against a wait of all blocks for each other, backward two. A cluster waits less, so
  // it comes first. No bound was measured on a GPU.
  struct HeldShape {
    Slice slice;
    int threads;
    int64_t shared;
    int64_t slices;
    bool cooperative;
  };
  static constexpr int64_t kVectorBytes = 16;
  static constexpr int64_t kToldShare = 8;  // blocks tell each other no more than x over this

  std::optional<HeldShape> Held(const Geometry& given, bool backward) const {
    const Geometry k = given.channels() == 1 && given.s > 1
                           ? Geometry{given.n, 1, 1, 1, given.s * given.t}
                           : given;
    const int64_t most = capability_.shared_bytes, channels = k.channels();
    constexpr int64_t kLargest = int64_t{1} << 24;  // vectors: beyond what any cluster holds
    if (capability_.cluster == 0 || k.size() == 0) return std::nullopt;
    HeldShape held = {};
    Slice& slice = held.slice;
    // Of a vector of x: with it that of dy, and sums for its elements, or for itself.
    const int64_t sums = IsRow(k) ? width_ : k.t > 1 && k.d > 1 ? 1 : 0;
    const int64_t vector_bytes =
        backward ? 2 * kVectorBytes + sums * 2 * int64_t{sizeof(float)} : kVectorBytes;
    const bool lanes = k.t == 1 && !IsRow(k);
    int64_t columns = 0, vectors = 0, units = 1;
    if (lanes) {
      if (channels % width_ != 0) return std::nullopt;
      for (units = 1; units < k.g; ++units) {
        columns = units * k.d / width_;
        if (k.g % units == 0 && units * k.d % width_ == 0 && columns * kVectorBytes >= 64 &&
            k.s * columns * vector_bytes >= most / 8) {
          break;
        }
      }
      columns = units * k.d / width_;
      vectors = k.s * columns;
    } else {
      const int64_t length = k.d * k.t;
      if ((k.s > 1 && k.d > 1) || length % width_ != 0 || (k.t > 1 && k.t % width_ != 0)) {
        return std::nullopt;
      }
      vectors = k.s * (length / width_);
      if (k.s > 1) {
        slice.length = static_cast<int>(length / width_);
        slice.skip = (channels - 1) * k.t;
      }
    }
    if (vectors > kLargest || vectors * kVectorBytes < kLeastPart) return std::nullopt;
    const int64_t part = std::min(vectors, most / 2 / vector_bytes);  // of a block, about
    held.threads =
        static_cast<int>(PowerOf2(std::max({CeilDiv(part, 8), columns, units, int64_t{32}}),
                                  backward ? kSliceGradientThreads : kSliceThreads));
    if (!lanes) columns = held.threads;
    if (std::max(columns, units) > held.threads) return std::nullopt;
    slice.columns = static_cast<int>(columns);
    slice.vectors = static_cast<int>(vectors);
    slice.units = static_cast<int>(units);
    slice.rows = static_cast<int>(CeilDiv(vectors, columns));
    slice.tiles = static_cast<int>(k.g / units);
    slice.channels = static_cast<int>(units * k.d);
    slice.sample = k.s * channels * k.t;
    slice.tile = units * k.d * k.t;
    slice.row = lanes ? channels : columns * width_;
    slice.run = lanes ? 0 : static_cast<int>(k.s * k.t);
    slice.lanes = static_cast<int>(PowerOf2(held.threads / units / 2 + 1, 32));
    slice.head = kReduceWords + width_ * (held.threads + kSlicePadding) + kSliceFigures * units;
    slice.head = static_cast<int>(CeilDiv(slice.head, 4) * 4);
    held.slices = k.n * slice.tiles;
    // Forward a block merges what so many have found where it had its own sums.
    const int64_t merged =
        backward ? kTogether : std::max<int64_t>(1, width_ * held.threads / units);
    const int64_t blocks =
        std::min<int64_t>({slice.rows, slice.vectors * kVectorBytes / kLeastPart, merged});
    const int64_t half = most / 2 - kReservedBytes;
    const auto cut = [&](int64_t c) {
      slice.cluster = static_cast<int>(c);
      slice.slots = static_cast<int>(CeilDiv(slice.rows, c) * columns);
      held.shared = slice.head * int64_t{sizeof(float)} + slice.slots * vector_bytes;
    };
    // Two blocks on a multiprocessor if clusters that every device has can do that; else one.
    for (const auto& [shared, cluster] : {std::pair{half, 8}, {most, kMostCluster}}) {
      for (int c = 1; c <= cluster && c <= blocks; c *= 2) {
        cut(c);
        if (c <= static_cast<int>(capability_.cluster) && held.shared <= shared) return held;
      }
    }
    if (held.slices > kTogether) return std::nullopt;
    cut(std::min(kTogether / held.slices, blocks));
    const int64_t together = held.slices * slice.cluster * (held.shared > half ? 2 : 1);
    const int64_t told = slice.cluster * units * kSharedFigures * int64_t{sizeof(float)};
    held.cooperative = held.shared <= most && together <= capability_.together &&
                       told <= slice.vectors * kVectorBytes / kToldShare;
    return held.cooperative ? std::optional(held) : std::nullopt;
  }
  // What the blocks of a cooperative launch tell each other, of which none has arrived: zeros by a
  // kernel in the order of the stream, as all else here, so that graphs of launches do it again.
  void TakeTold(HeldShape* held) {
    if (!held->cooperative) return;
    Slice* const slice = &held->slice;
    slice->told = arena_.Take<float>(held->slices * slice->cluster * kSharedFigures * slice->units);
    slice->arrived = arena_.Take<unsigned>(held->slices);
    float* const zeros = reinterpret_cast<float*>(slice->arrived);  // those of both types
    Sum({nullptr}, {zeros}, 1, held->slices, 0, 0, 0, 1);
  }
  // Of dgamma, for rows: few, but enough to keep a device busy and to be summed in float.
  static int64_t RowParts(int64_t n, int64_t cluster) {
    return std::min(n, std::max(CeilDiv(256, cluster), CeilDiv(n, 64)));
  }
  template <class Arguments>
  void LaunchSlices(const char* step, const HeldShape& held, int64_t parts, Arguments* arguments) {
    const Slice& slice = held.slice;
    Launch(step, width_, parts * slice.tiles * slice.cluster, held.threads, held.shared, arguments,
           held.cooperative ? 1 : slice.cluster, held.cooperative);
  }

  // Elements of the vectors that runs of `length` elements consist of.
  int Width(int64_t length) const { return length % width_ == 0 ? width_ : 1; }

  template <class Arguments>
  void Launch(const std::string& kernel, Dim3 grid, int64_t block, int64_t shared,
              Arguments* arguments, int cluster = 1, bool cooperative = false) {
    if (launcher_ == nullptr) return;
    void* pointers[] = {arguments};
    const Shape shape = {grid,
                         {static_cast<unsigned>(block), 1, 1},
                         static_cast<unsigned>(shared),
                         static_cast<unsigned>(cluster),
                         cooperative};
    ok_ = ok_ && launcher_->Launch(kernel.c_str(), shape, pointers);
  }
  template <class Arguments>
  void Launch(const char* step, int width, int64_t grid, int64_t block, int64_t shared,
              Arguments* arguments, int cluster = 1, bool cooperative = false) {
    if (grid > INT32_MAX) {
      ok_ = false;
      return;
    }
    Launch(std::string(step) + "_" + type_ + "x" + std::to_string(width),
           {static_cast<unsigned>(grid), 1, 1}, block, shared, arguments, cluster, cooperative);
  }
  template <class Arguments>
  void LaunchWalk(const char* step, int width, Arguments* arguments) {
    const Walk& w = arguments->walk;
    const int64_t rows = PowerOf2(w.outer_tile, kThreads / w.columns);
    Launch(step, width, CeilDiv(w.outer, w.outer_tile) * w.inner_tiles, w.columns * rows, 0,
           arguments);
  }
  // Of kernels for units, `threads` for each.
  template <class Arguments>
  void LaunchUnits(const char* kernel, int64_t units, int threads, int64_t bytes_a_thread,
                   Arguments* arguments) {
    if (units == 0) return;
    const int64_t at_once = PowerOf2(units, kThreads / threads);
    const int64_t block = at_once * threads, grid = CeilDiv(units, at_once);
    if (grid > INT32_MAX) {
      ok_ = false;
      return;
    }
    Launch(kernel, {static_cast<unsigned>(grid), 1, 1}, block, block * bytes_a_thread, arguments);
  }

  void Sum(std::initializer_list<const float*> in, std::initializer_list<float*> out, int64_t batch,
           int64_t columns, int64_t parts, int64_t batch_stride, int64_t part_stride,
           int64_t column_stride) {
    if (batch * columns == 0) return;
    SumParts a = {};
    std::copy(in.begin(), in.end(), a.in);
    std::copy(out.begin(), out.end(), a.out);
    a.columns = columns;
    a.column_tiles = CeilDiv(columns, kSumColumns);
    a.parts = parts;
    a.batch_stride = batch_stride;
    a.part_stride = part_stride;
    a.column_stride = column_stride;
    const int64_t grid = batch * a.column_tiles;
    if (grid > INT32_MAX) {
      ok_ = false;
      return;
    }
    constexpr int kBlock = kSumColumns * kSumRows;
    Launch("sum_parts", {static_cast<unsigned>(grid), static_cast<unsigned>(in.size()), 1}, kBlock,
           kBlock * sizeof(double), &a);
  }

  // Shapes that the kernels for moments and for sums share.
  struct LaneShape {
    int width, columns;
    int64_t pieces, tiles, block, grid;
  };
  LaneShape Lanes(const Geometry& k, int width) const {
    const int64_t vectors = k.channels() / width;
    LaneShape l;
    l.width = width;
    l.columns = static_cast<int>(PowerOf2(vectors, k.s < 8 ? kThreads : 32));
    const int64_t at_once = PowerOf2(CeilDiv(k.s, kLaneTile), kThreads / l.columns);
    l.block = l.columns * at_once;
    l.tiles = CeilDiv(vectors, l.columns);
    const int64_t rows = at_once * kLaneTile * 4;
    const int64_t more = k.n * l.tiles * CeilDiv(k.s, rows) / kBlocks;
    l.pieces = CeilDiv(k.s, rows * std::clamp<int64_t>(more, 1, 4));
    l.grid = k.n * l.pieces * l.tiles;
    return l;
  }

  struct SegmentShape {
    int width, threads;
    int64_t vectors, chunks, tiles, block, grid;
    int64_t pieces() const { return chunks * tiles; }
  };
  static SegmentShape Segments(const Geometry& k, int64_t segments, int64_t length, int width) {
    SegmentShape r;
    r.width = width;
    r.vectors = length / width;
    r.threads = static_cast<int>(PowerOf2(CeilDiv(k.s * r.vectors, 4), kThreads));
    const int64_t least = kThreads * 16;
    const int64_t more = k.n * segments * CeilDiv(k.s * r.vectors, least) / kBlocks;
    const int64_t piece = least * std::clamp<int64_t>(more, 1, 4);
    r.tiles = CeilDiv(r.vectors, piece);
    r.chunks = r.tiles > 1 ? k.s : CeilDiv(k.s, piece / r.vectors);
    const int64_t all = k.n * segments * r.pieces();
    const int64_t at_once = PowerOf2(all, kThreads / r.threads);
    r.block = r.threads * at_once;
    r.grid = CeilDiv(all, at_once);
    return r;
  }

  // The statistics of each unit; with `known`, what its mean lost, where that matters.
  void Statistics(const Geometry& k, const void* x, double epsilon, bool subtract_mean,
                  const Known& known, float* mean, float* residual, float* variance, float* rstd) {
    MergeMoments merge = {};
    merge.units = k.units();
    merge.groups = k.g;
    merge.tiles = merge.width = merge.vectors = merge.vector = 1;
    merge.epsilon = epsilon;
    merge.out_mean = mean;
    merge.residual = residual;
    merge.variance = variance;
    merge.rstd = rstd;
    merge.subtract_mean = subtract_mean;
    merge.known = known;
    const auto take = [&](int64_t size, auto* a) {
      merge.mean = a->mean = arena_.Take<float>(size);
      merge.rest = a->rest = arena_.Take<float>(size);
      merge.m2 = a->m2 = arena_.Take<float>(size);
      a->subtract_mean = subtract_mean;
      a->known = known;
    };
    if (k.size() == 0) {
      // No parts: the moments of nothing.
    } else if (k.t == 1 && !IsRow(k)) {
      const int64_t channels = k.channels();
      const LaneShape l = Lanes(k, Width(channels));
      LanesMoments a = {};
      take(k.n * l.pieces * channels, &a);
      a.x = x;
      a.s = merge.s = k.s;
      a.channels = merge.p_stride = channels;
      a.d = merge.g_stride = merge.width = k.d;
      a.pieces = merge.chunks = merge.parts = l.pieces;
      merge.n_stride = l.pieces * channels;
      a.tiles = l.tiles;
      a.columns = l.columns;
      const int64_t words = 1 + 3 * l.width;
      Launch("lanes_moments", l.width, l.grid, l.block, l.block * words * sizeof(float), &a);
    } else {
      const int64_t length = k.d * k.t;
      const SegmentShape r = Segments(k, k.g, length, Width(length));
      SegmentMoments a = {};
      take(k.units() * r.pieces(), &a);
      a.x = x;
      a.samples = k.n;
      a.s = merge.s = k.s;
      a.segments = k.g;
      a.vectors = merge.vectors = r.vectors;
      merge.vector = r.width;
      a.chunks = merge.chunks = r.chunks;
      a.tiles = merge.tiles = r.tiles;
      merge.parts = merge.g_stride = r.pieces();
      merge.n_stride = k.g * r.pieces();
      merge.p_stride = 1;
      a.threads = r.threads;
      Launch("segment_moments", r.width, r.grid, r.block, r.block * 4 * sizeof(float), &a);
    }
    merge.threads = static_cast<int>(PowerOf2(CeilDiv(merge.parts * merge.width, 8), kThreads));
    LaunchUnits("merge_moments", k.units(), merge.threads, 3 * sizeof(double), &merge);
  }

  // Sums per channel, or, of rows, per unit and times gamma.
  void SumsTo(const Geometry& k, const void* dy, const void* x, const Affine& affine,
              Activation activation, bool rows, const SumPlanes& to) {
    const int64_t channels = k.channels();
    const auto parts_of = [&](int64_t size, bool direct) {
      if (direct) return to;
      return SumPlanes{
          arena_.Take<float>(size), arena_.Take<float>(size),
          to.xc != nullptr || launcher_ == nullptr ? arena_.Take<float>(size) : nullptr};
    };
    if (k.t == 1 && !rows) {
      const LaneShape l = Lanes(k, Width(channels));
      const SumPlanes parts = parts_of(k.n * l.pieces * channels, l.pieces == 1);
      LanesSums a = {dy,
                     x,
                     affine,
                     parts.dz,
                     parts.dz_xc,
                     parts.xc,
                     k.s,
                     channels,
                     k.d,
                     l.pieces,
                     l.tiles,
                     l.columns,
                     static_cast<int>(activation)};
      Launch("lanes_sums", l.width, l.grid, l.block, l.block * 3 * l.width * sizeof(float), &a);
      if (l.pieces == 1) return;
      Sum({parts.dz, parts.dz_xc, parts.xc}, {to.dz, to.dz_xc, to.xc}, k.n, channels, l.pieces,
          l.pieces * channels, channels, 1);
    } else {
      const int64_t segments = rows ? k.g : channels, length = rows ? k.d : k.t;
      const SegmentShape r = Segments(k, segments, length, Width(length));
      const int64_t sums = k.n * segments;
      const SumPlanes parts = parts_of(sums * r.pieces(), r.pieces() == 1);
      SegmentSums a = {dy,          x,         affine,    parts.dz,
                       parts.dz_xc, parts.xc,  k.n,       k.s,
                       segments,    k.d,       r.vectors, r.chunks,
                       r.tiles,     r.threads, rows,      static_cast<int>(activation)};
      Launch("segment_sums", r.width, r.grid, r.block, r.block * 3 * sizeof(float), &a);
      if (r.pieces() == 1) return;
      Sum({parts.dz, parts.dz_xc, parts.xc}, {to.dz, to.dz_xc, to.xc}, 1, sums, r.pieces(), 0, 1,
          r.pieces());
    }
  }

  // `row_parts`: for dgamma and dbeta each thread keeps to its columns, in few tiles of rows.
  static Walk WalkOf(const Geometry& k, int width, bool row_parts) {
    Walk w;
    w.s = k.s;
    w.channels = k.channels();
    w.d = k.d;
    w.lanes = k.t == 1;
    w.outer = w.lanes ? k.n * k.s : k.n * k.s * w.channels;
    w.inner = (w.lanes ? w.channels : k.t) / width;
    w.columns =
        static_cast<int>(PowerOf2(w.inner, !w.lanes || row_parts || w.outer < 64 ? kThreads : 32));
    if (row_parts) {
      w.columns = kThreads;
      w.outer_tile = CeilDiv(k.n, std::max(CeilDiv(k.n, 64), std::min<int64_t>(k.n, 16)));
      w.inner_tile = w.columns;
    } else {
      const int64_t rows = PowerOf2(w.outer, kThreads / w.columns);
      const int64_t across = w.lanes ? 1 : std::min<int64_t>(8, CeilDiv(w.inner, w.columns));
      w.inner_tile = w.columns * across;
      w.outer_tile = rows * (8 / across);
    }
    w.inner_tiles = CeilDiv(w.inner, w.inner_tile);
    return w;
  }

  void ApplyTo(const Geometry& k, const void* x, const Affine& affine, Activation activation,
               void* y) {
    const int width = Width(k.t == 1 ? k.channels() : k.t);
    Apply a = {WalkOf(k, width, false), x, y, affine, static_cast<int>(activation)};
    LaunchWalk("apply", width, &a);
  }

  Launcher* launcher_;
  Capability capability_;
  const char* type_;
  int width_;
  Arena arena_;
  bool ok_ = true;
};

// With vectors of 16 bytes if all of the call's pointers allow it.
template <class T>
Plan PlanOf(Launcher* launcher, void* workspace, std::initializer_list<const void*> pointers) {
  const bool aligned = std::all_of(pointers.begin(), pointers.end(), [](const void* p) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0;
  });
  return Plan(launcher, Type<T>::kName, aligned ? 16 / sizeof(T) : 1, workspace);
}

}  // namespace

template <class T>
int64_t WorkspaceBytes(const Geometry& k) {
  int64_t most = 0;
  for (int width : {1, static_cast<int>(16 / sizeof(T))}) {
    const auto count = [&](const auto& function) {
      Plan plan(nullptr, Type<T>::kName, width, nullptr);
      function(&plan);
      most = std::max(most, plan.used());
    };
    constexpr Activation kNone = Activation::kNone;
    count([&](Plan* p) {
      p->Normalize(k, nullptr, nullptr, nullptr, 0, true, kNone, nullptr, nullptr, nullptr,
                   nullptr);
    });
    count([&](Plan* p) {
      p->NormalizeGrad(k, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0, true, kNone,
                       nullptr, nullptr, nullptr);
    });
    count([&](Plan* p) { p->TakeSliceParts(k); });
    count(
        [&](Plan* p) { p->MomentsGrad(k, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr); });
    count([&](Plan* p) {
      p->ScaleShiftGrad(k, nullptr, nullptr, nullptr, nullptr, nullptr, kNone, nullptr, nullptr,
                        nullptr);
    });
  }
  return most;
}

template <class T>
bool Normalize(Launcher* launcher, const Geometry& k, const T* x, const float* gamma,
               const float* beta, double epsilon, bool subtract_mean, Activation activation, T* y,
               float* mean, float* variance, void* workspace) {
  Plan plan = PlanOf<T>(launcher, workspace, {x, y, gamma, beta});
  plan.Normalize(k, x, gamma, beta, epsilon, subtract_mean, activation, y, mean, nullptr, variance);
  return plan.ok();
}

template <class T>
bool NormalizeGrad(Launcher* launcher, const Geometry& k, const T* dy, const T* x,
                   const float* gamma, const float* beta, const float* mean, const float* variance,
                   double epsilon, bool subtract_mean, Activation activation, T* dx, float* dgamma,
                   float* dbeta, void* workspace) {
  Plan plan = PlanOf<T>(launcher, workspace, {dy, x, dx, gamma, beta});
  plan.NormalizeGrad(k, dy, x, gamma, beta, mean, variance, epsilon, subtract_mean, activation, dx,
                     dgamma, dbeta);
  return plan.ok();
}

template <class T>
bool Moments(Launcher* launcher, const Geometry& k, const T* x, bool subtract_mean, float* mean,
             float* residual, float* variance, void* workspace) {
  Plan plan = PlanOf<T>(launcher, workspace, {x});
  plan.Normalize(k, x, nullptr, nullptr, 1, subtract_mean, Activation::kNone, nullptr, mean,
                 residual, variance);
  return plan.ok();
}

template <class T>
bool MomentsGrad(Launcher* launcher, const Geometry& k, const T* x, const float* mean,
                 const float* residual, const float* dmean, const float* dvariance, T* dx,
                 void* workspace) {
  Plan plan = PlanOf<T>(launcher, workspace, {x, dx});
  plan.MomentsGrad(k, x, mean, residual, dmean, dvariance, dx);
  return plan.ok();
}

template <class T>
bool ScaleShift(Launcher* launcher, const Geometry& k, const T* x, const float* center,
                const float* scale, const float* shift, Activation activation, T* y) {
  Plan plan = PlanOf<T>(launcher, nullptr, {x, y});
  plan.ScaleShift(k, x, center, scale, shift, activation, y);
  return plan.ok();
}

template <class T>
bool ScaleShiftGrad(Launcher* launcher, const Geometry& k, const T* dy, const T* x,
                    const float* center, const float* scale, const float* shift,
                    Activation activation, T* dx, float* dscale, float* dshift, void* workspace) {
  Plan plan = PlanOf<T>(launcher, workspace, {dy, x, dx});
  plan.ScaleShiftGrad(k, dy, x, center, scale, shift, activation, dx, dscale, dshift);
  return plan.ok();
}

#define KERAS_NORMS_INSTANTIATE(T)                                                               \
  template int64_t WorkspaceBytes<T>(const Geometry&);                                           \
  template bool Normalize<T>(Launcher*, const Geometry&, const T*, const float*, const float*,   \
                             double, bool, Activation, T*, float*, float*, void*);               \
  template bool NormalizeGrad<T>(Launcher*, const Geometry&, const T*, const T*, const float*,   \
                                 const float*, const float*, const float*, double, bool,         \
                                 Activation, T*, float*, float*, void*);                         \
  template bool Moments<T>(Launcher*, const Geometry&, const T*, bool, float*, float*, float*,   \
                           void*);                                                               \
  template bool MomentsGrad<T>(Launcher*, const Geometry&, const T*, const float*, const float*, \
                               const float*, const float*, T*, void*);                           \
  template bool ScaleShift<T>(Launcher*, const Geometry&, const T*, const float*, const float*,  \
                              const float*, Activation, T*);                                     \
  template bool ScaleShiftGrad<T>(Launcher*, const Geometry&, const T*, const T*, const float*,  \
                                  const float*, const float*, Activation, T*, float*, float*,    \
                                  void*);
KERAS_NORMS_INSTANTIATE(float)
KERAS_NORMS_INSTANTIATE(bfloat16)
KERAS_NORMS_INSTANTIATE(float16)
#undef KERAS_NORMS_INSTANTIATE

}  // namespace gpu
}  // namespace keras_norms
