// The inner loops, compiled once per instruction set and reached through a table of pointers.
//
// A segment is a run of contiguous elements with one center; lanes are rows of `channels`
// neighbouring elements, each channel a lane of its own. Every loop reads its arrays once, in
// order. Sums leave the vector registers as double after at most a few hundred additions per lane.
#ifndef KERAS_NORMS_CORE_KERNELS_H_
#define KERAS_NORMS_CORE_KERNELS_H_

#include <cstdint>

#include "custom_ops/core/activation.h"
#include "custom_ops/core/geometry.h"

namespace keras_norms {

// Below this many elements a row costs less in a lane of its own than in vectors of its own.
constexpr int64_t kShortRow = 64;

// Mean and sum of squared distances from it. Without subtract_mean: 0 and the sum of squares.
struct Moment {
  double mean;
  double m2;
};

// With xc = x - center and g = dy * gamma.
struct Sums {
  double g;     // sum of g
  double g_xc;  // sum of g * xc
  double xc;    // sum of xc
};

// What turns dy and x into dx for one mean: x^ = (x - center - residual) * rstd and
//   dx = rstd * (dy * gamma - mean_g - (x - center - residual) * slope),  slope = rstd * mean(g *
//   x^)
template <class U>
struct Gradient {
  U center, residual, rstd, mean_g, slope;
};

// The same per lane, with gamma beside them.
template <class U>
struct LaneGradient {
  const U *center, *residual, *rstd, *mean_g, *slope, *gamma;
};

template <class T>
struct Kernels {
  using U = Parameter<T>;

  Moment (*segment_moments)(const T* x, int64_t size, bool subtract_mean);
  // z = (x - center) * scale + shift, of which `finish` makes y. y may be finish.dy, here and
  // below.
  void (*segment_affine)(const T* x, int64_t size, U center, U scale, U shift,
                         const Finish<T>& finish, T* y);
  // z = (x - center - residual) * rstd * gamma[i] + beta[i]; gamma, beta may be null
  void (*row_affine)(const T* x, int64_t size, U center, U residual, U rstd, const U* gamma,
                     const U* beta, const Finish<T>& finish, T* y);
  // gamma[i] may be null
  Sums (*segment_sums)(const T* dy, const T* x, int64_t size, const U* gamma, U center);
  void (*segment_gradient)(const T* dy, const T* x, int64_t size, const Gradient<U>& k, U gamma,
                           bool stream, T* dx);
  // Of rows `stride` elements apart, each with its k. Adds dy * x^ to dgamma[i] and dy to dbeta[i]
  // where they are not null. gamma may be null.
  void (*rows_gradient)(const T* dy, const T* x, int64_t rows, int64_t size, int64_t stride,
                        const Gradient<U>* k, const U* gamma, bool stream, T* dx, U* dgamma,
                        U* dbeta);

  // Rows of `size` <= kShortRow elements, `stride` apart, each normalized by itself, side by side
  // in the lanes of vectors. Statistics of row r go to out[r * out_stride]; those that are null,
  // and y if it is null, are not written.
  void (*short_rows)(const T* x, int64_t rows, int64_t stride, int64_t size, bool subtract_mean,
                     const U* gamma, const U* beta, double epsilon, Activation activation, T* y,
                     U* mean, U* residual, U* variance, int64_t out_stride);
  // Adds the sums of dy * x^ to dgamma[i] and of dy to dbeta[i], where dy is first multiplied by
  // the activation's derivative. beta is read for that only, and may be null.
  void (*short_rows_gradient)(const T* dy, const T* x, int64_t rows, int64_t stride, int64_t size,
                              bool subtract_mean, const U* gamma, const U* beta, const U* mean,
                              const U* variance, int64_t statistics_stride, double epsilon,
                              Activation activation, T* dx, double* dgamma, double* dbeta);

  // Sets mean[c] and m2[c] of each lane over the rows.
  void (*lanes_moments)(const T* x, int64_t rows, int64_t channels, bool subtract_mean,
                        double* mean, double* m2);
  // z = (x - center[c]) * scale[c] + shift[c]; center, shift may be null
  void (*lanes_affine)(const T* x, int64_t rows, int64_t channels, const U* center, const U* scale,
                       const U* shift, const Finish<T>& finish, T* y);
  // Sets per lane the sums of dy, dy * xc and xc. center may be null.
  void (*lanes_sums)(const T* dy, const T* x, int64_t rows, int64_t channels, const U* center,
                     double* sum_dy, double* sum_dy_xc, double* sum_xc);
  void (*lanes_gradient)(const T* dy, const T* x, int64_t rows, int64_t channels,
                         const LaneGradient<U>& k, bool stream, T* dx);
};

// One table per element type and instruction set; each is defined in kernels_<target>.cc.
#define KERAS_NORMS_DECLARE_KERNELS(target) \
  namespace target {                        \
  extern const Kernels<float> kFloat;       \
  extern const Kernels<double> kDouble;     \
  extern const Kernels<bfloat16> kBfloat16; \
  extern const Kernels<float16> kFloat16;   \
  }
KERAS_NORMS_DECLARE_KERNELS(baseline)
#if defined(__x86_64__)
KERAS_NORMS_DECLARE_KERNELS(avx2)
KERAS_NORMS_DECLARE_KERNELS(avx512)
#endif
#undef KERAS_NORMS_DECLARE_KERNELS

}  // namespace keras_norms

#endif  // KERAS_NORMS_CORE_KERNELS_H_
