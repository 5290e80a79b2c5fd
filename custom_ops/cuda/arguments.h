// What the kernels are given: one struct each, by value, filled by plan.cc. Included by both sides,
// so free of anything that either lacks.
//
// Pointers are to device memory and, where "may be null" stands, may be null. `activation` counts
// as in custom_ops/core/activation.h. Blocks have one dimension.
#ifndef KERAS_NORMS_CUDA_ARGUMENTS_H_
#define KERAS_NORMS_CUDA_ARGUMENTS_H_

namespace keras_norms {
namespace gpu {

using Index = long long;

constexpr int kRowThreads = 512;            // most threads of a block, where a block holds rows
constexpr int kThreads = 256;               // and elsewhere
constexpr int kSliceThreads = 512;          // most threads of a block that holds a part of a slice
constexpr int kSliceGradientThreads = 256;  // and backward
constexpr int kSlicePadding = 32 / 8;  // floats after those of each thread, against bank conflicts
constexpr int kMostCluster = 16;       // blocks of a cluster
constexpr int kSliceFigures = 10;      // floats for each unit of a slice
constexpr int kSharedFigures = 3;      // the first of them: those that its blocks tell each other
constexpr int kLaneTile = 4;           // rows of lanes whose moments are found in registers
constexpr int kReduceWords = 64;       // floats that GroupSum needs of shared memory
constexpr int kReservedBytes = 1024;   // of shared memory, that the system takes of each block
constexpr int kSumRows = 8;            // of the block of SumParts, and its columns
constexpr int kSumColumns = 32;

// Vectors of `width` elements that a thread holds of a row, forward; and of x and of dy, backward.
template <int width>
constexpr int kRowVectors = width == 1 ? 16 : 8;
template <int width>
constexpr int kRowGradientVectors = width == 1 ? 8 : 4;
// Vectors of a segment whose moments are found in registers.
template <int width>
constexpr int kSegmentTile = width == 1 ? 8 : 2;

// The walk of s = t = 1 for rows that fit into registers, `threads` (a power of 2) for each.
struct RowsForward {
  const void* x;                      // [rows][d]
  const float *gamma, *beta;          // [groups][d], may be null
  void* y;                            // may be null
  float *mean, *residual, *variance;  // [rows], each may be null
  Index rows, groups;
  int d, threads;
  float epsilon;
  int subtract_mean, activation;
};

// Block (part, group) takes the rows of a group in one of `parts` equal parts of the samples.
struct RowsBackward {
  const void *dy, *x;                 // [samples][groups][d]
  const float *gamma, *beta;          // [groups][d], may be null
  const float *mean, *variance;       // [samples][groups]
  void* dx;                           // may be dy
  float *dgamma_parts, *dbeta_parts;  // [parts][groups][d], may be null, both
  Index samples, groups, parts;
  int d, threads;
  float epsilon;
  int subtract_mean, activation;
};

// The rounding that a mean lost is wanted only where it shows: with known.mean the moments of means
// near 0 are left out.
struct Known {
  const float *mean, *variance;  // per unit; may be null, both
  float epsilon;
};

// Moments of each channel over pieces of s: block (n, piece, tile of columns).
struct LanesMoments {
  const void* x;            // [samples][s][channels]
  float *mean, *rest, *m2;  // [samples][pieces][channels]
  Index s, channels, d, pieces, tiles;
  int columns;  // vectors side by side in a block, a power of 2
  int subtract_mean;
  Known known;
};

// Moments of segments: segment (n, q) is s runs of `vectors` vectors, [n][s][segments][vectors]. A
// piece is one of `chunks` parts of s and one of `tiles` parts of a run; `threads` (a power of 2)
// work on each.
struct SegmentMoments {
  const void* x;
  float *mean, *rest, *m2;  // [n][segments][pieces]
  Index samples, s, segments, vectors, chunks, tiles;
  int threads;
  int subtract_mean;
  Known known;
};

// How z is found again: z = (x - center) * scale * gamma + beta + shift, less what residual moves.
struct Affine {
  const float *center, *residual, *scale, *shift;  // per unit, may be null
  const float *gamma, *beta;                       // per channel, may be null
};

// Sums of dz, dz * xc and xc, where xc = x - center and dz = dy * activation'(z).
struct LanesSums {
  const void *dy, *x;
  Affine affine;
  float *dz, *dz_xc, *xc;  // [samples][pieces][channels]; xc may be null
  Index s, channels, d, pieces, tiles;
  int columns;
  int activation;
};

// Of segments as in SegmentMoments. A segment is a channel (of d in a unit), or, if `weighted`, a
// unit with a channel per element: then dz is multiplied by gamma.
struct SegmentSums {
  const void *dy, *x;
  Affine affine;
  float *dz, *dz_xc, *xc;  // [n][segments][pieces]; xc may be null
  Index samples, s, segments, d, vectors, chunks, tiles;
  int threads;
  int weighted, activation;
};

// Elementwise over [outer][inner] vectors, a block taking [outer_tile][inner_tile] of them. If
// `lanes`, inner are channels and `s` outer rows have a sample in common, and inner_tile is
// `columns`; otherwise outer are [n][s][channels] and inner the elements of one channel.
struct Walk {
  Index outer, inner, outer_tile, inner_tile, inner_tiles;
  Index s, channels, d;  // d channels have a unit in common
  int columns;           // threads along inner, a power of 2
  int lanes;
};

// y = activation(z)
struct Apply {
  Walk walk;
  const void* x;
  void* y;
  Affine affine;
  int activation;
};

// dx = scale * (dz * gamma - mean_g - (x - center - residual) * slope), where residual is exact and
// affine.residual is what z was found with.
struct Gradient {
  Walk walk;
  const void *dy, *x;
  void* dx;  // may be dy
  Affine affine;
  const float *residual, *mean_g, *slope;  // per unit; may be null, all
  // [tiles of outer][channels], of gradient_rows: then `lanes`, and columns is all threads.
  float *dgamma_parts, *dbeta_parts;
  int activation;
};

// A slice is what has its statistics to itself and is held in the shared memory of a cluster of
// blocks: `rows` of `columns` vectors, of which `vectors` are there (the last row may be shorter),
// with `units` units side by side. Block r of a cluster has Part(rows, cluster, r).
//
// A cluster is the device's own, whose blocks read each other's shared memory, or, if `told` is not
// null, any blocks that run at the same time: they tell each other figures in memory.
struct Slice {
  Index sample, tile, row;  // elements from one to the next
  Index skip;               // that lie between the runs of `length` vectors; length 0: none
  int length;
  int tiles;  // slices of a sample
  int rows, columns, vectors, units, cluster;
  int lanes;     // threads, a power of 2, that merge what the blocks have found for a unit
  int slots;     // vectors that a block holds, at most
  int head;      // floats before these in shared memory, for sums and figures
  int channels;  // of a slice
  // 0: the elements of a row have channels of their own, the same ones in each row. Otherwise so
  // many elements in turn have a channel in common.
  int run;
  float* told;        // [slices][cluster][kSharedFigures][units]
  unsigned* arrived;  // [slices], 0 at first: how often a block has told its figures
};

struct SlicesForward {
  Slice slice;
  const void* x;
  const float *gamma, *beta;          // [tiles][slice.channels], may be null
  void* y;                            // may be null
  float *mean, *residual, *variance;  // [samples][tiles][slice.units], each may be null
  float epsilon;
  int subtract_mean, activation;
};

// Cluster (part, tile) takes the slices of a tile in one of `parts` equal parts of the samples. Of
// a run of 1, and where each unit is a channel, the parts of dgamma are
// [parts][tiles][slice.channels], otherwise there is one for each block of a cluster:
// [parts][cluster][tiles][slice.channels]. parts = samples but for a run of 1.
struct SlicesBackward {
  Slice slice;
  const void *dy, *x;
  const float *gamma, *beta;          // as above
  const float *mean, *variance;       // as above
  void* dx;                           // may be dy
  float *dgamma_parts, *dbeta_parts;  // may be null, both; each, where each unit is a channel
  Index samples, parts;
  float epsilon;
  int subtract_mean, activation;
};

// From partial moments to those of units: of unit (n, g), part (p, i) lies at
// n * n_stride + g * g_stride + p * p_stride + i, for i < width, and has Part(s, chunks, p / tiles)
// * Part(vectors, tiles, p % tiles) * vector elements. `threads` (a power of 2) for each unit.
struct MergeMoments {
  const float *mean, *rest, *m2;
  Index units, groups, n_stride, g_stride, p_stride, parts, width;
  Index s, chunks, vectors, tiles, vector;
  double epsilon;
  float *out_mean, *residual, *variance, *rstd;  // [units], each may be null
  int threads;
  int subtract_mean;
  Known known;  // then residual is the distance from known.mean, and rstd known.variance's
};

// From sums per channel (or, if `weighted`, per unit) to the coefficients of dx, and each sample's
// part of dgamma.
struct MergeSums {
  const float *dz, *dz_xc, *xc;  // [samples][groups][d], if weighted [samples][groups]
  const float* gamma;            // [groups][d], may be null
  const float *mean, *variance;
  Index units, groups, d, count;
  double epsilon;
  float *residual, *rstd, *mean_g, *slope;  // [units]
  float* dgamma;                            // [samples][groups][d], may be null
  int threads;
  int subtract_mean, weighted;
};

// out[b][c] = sum over p of in[b * batch_stride + p * part_stride + c * column_stride], of as many
// planes as the grid is high.
struct SumParts {
  const float* in[3];
  float* out[3];  // may be null
  Index columns, column_tiles, parts, batch_stride, part_stride, column_stride;
};

// The coefficients of Apply for the gradient of moments.
struct MomentsCoefficients {
  const float *residual, *dmean, *dvariance;
  float *scale, *shift;
  Index units;
  double count;
};

}  // namespace gpu
}  // namespace keras_norms

#endif  // KERAS_NORMS_CUDA_ARGUMENTS_H_
