// From moments to the coefficients of y, from sums to the coefficients of dx.
#ifndef KERAS_NORMS_CORE_STANDARD_H_
#define KERAS_NORMS_CORE_STANDARD_H_

#include <cmath>
#include <cstdint>

#include "custom_ops/core/kernels.h"
#include "custom_ops/core/parallel.h"
#include "custom_ops/core/schedule.h"

namespace keras_norms {

inline void Merge(double count_a, Moment* a, double count_b, const Moment& b) {
  if (count_b == 0) return;
  const double delta = b.mean - a->mean;
  const double share = count_b / (count_a + count_b);
  a->mean += delta * share;
  a->m2 += b.m2 + delta * delta * count_a * share;
}

// Merges `size` moments of `count` elements each.
inline Moment MergeEqual(const double* mean, const double* m2, int64_t size, double count,
                         bool subtract_mean) {
  Moment all = {0, 0};
  for (int64_t i = 0; i < size; ++i) {
    all.mean += (mean[i] - mean[0]);
    all.m2 += m2[i];
  }
  if (!subtract_mean) return {0, all.m2};
  all.mean = mean[0] + all.mean / size;
  double between = 0;
  for (int64_t i = 0; i < size; ++i) between += (mean[i] - all.mean) * (mean[i] - all.mean);
  all.m2 += count * between;
  return all;
}

// What the elements of one mean are normalized with.
template <class U>
struct Standard {
  U center, residual, variance;
  double rstd;

  Standard(const Moment& moment, double count, double epsilon) {
    center = static_cast<U>(moment.mean);
    residual = static_cast<U>(moment.mean - center);
    variance = static_cast<U>(moment.m2 / count);
    rstd = 1 / std::sqrt(moment.m2 / count + epsilon);
  }
  // Of what was kept for the way back.
  Standard(U center, double residual, U variance, double epsilon)
      : center(center),
        residual(static_cast<U>(residual)),
        variance(variance),
        rstd(1 / std::sqrt(static_cast<double>(variance) + epsilon)) {}
  // y = (x - center) * scale + shift
  U Scale(const U* gamma) const { return static_cast<U>(gamma ? rstd * *gamma : rstd); }
  U Shift(const U* gamma, const U* beta) const {
    const double lost = residual * (gamma ? rstd * *gamma : rstd);
    return static_cast<U>((beta ? *beta : 0) - lost);
  }
};

// Whether z needs what rounding lost of the mean, which costs a pass over x to find. Of a mean
// within 8 deviations of 0 that moves z by at most 8 * gamma roundings of 1.
template <class U>
bool NeedsResidual(const U* mean, const U* variance, int64_t units, double epsilon) {
  for (int64_t i = 0; i < units; ++i) {
    if (static_cast<double>(mean[i]) * mean[i] > 64 * (variance[i] + epsilon)) return true;
  }
  return false;
}

// Where Normalize writes the statistics; any may be null.
template <class U>
struct StatisticsOut {
  U *mean, *residual, *variance;
  void Set(int64_t unit, const Standard<U>& standard) const {
    if (mean != nullptr) mean[unit] = standard.center;
    if (residual != nullptr) residual[unit] = standard.residual;
    if (variance != nullptr) variance[unit] = standard.variance;
  }
};

// The coefficients of dx, and the pieces of dgamma, from the sums over all elements of one mean.
// g and g_xc are sums of g = dy * gamma and g * (x - center).
template <class U>
struct GradientOf {
  Gradient<U> k;
  double residual, rstd;

  GradientOf(const Sums& sums, double count, U center, U variance, double epsilon,
             bool subtract_mean) {
    rstd = 1 / std::sqrt(static_cast<double>(variance) + epsilon);
    residual = subtract_mean ? sums.xc / count : 0;
    const double mean_g_xhat = rstd * (sums.g_xc - residual * sums.g) / count;
    k.center = center;
    k.residual = static_cast<U>(residual);
    k.rstd = static_cast<U>(rstd);
    k.mean_g = static_cast<U>(subtract_mean ? sums.g / count : 0);
    k.slope = static_cast<U>(rstd * mean_g_xhat);
  }
  // Sum of dy * x^ from the sums of dy and of dy * (x - center).
  double Dgamma(double sum_dy, double sum_dy_xc) const {
    return (sum_dy_xc - residual * sum_dy) * rstd;
  }
};

// dgamma and dbeta, summed over `parts` partial results [parts][channels] in order.
template <class U>
void SumParts(const Pool& pool, const double* parts_dgamma, const double* parts_dbeta,
              int64_t parts, int64_t channels, U* dgamma, U* dbeta) {
  const int64_t tasks = Tasks(channels, parts, 64);
  ParallelFor(pool, tasks, [&](int64_t task) {
    const Range range = Part(channels, tasks, task);
    for (int64_t c = range.begin; c < range.end; ++c) {
      double gamma_sum = 0, beta_sum = 0;
      for (int64_t p = 0; p < parts; ++p) {
        gamma_sum += parts_dgamma[p * channels + c];
        beta_sum += parts_dbeta[p * channels + c];
      }
      if (dgamma != nullptr) dgamma[c] = static_cast<U>(gamma_sum);
      if (dbeta != nullptr) dbeta[c] = static_cast<U>(beta_sum);
    }
  });
}

}  // namespace keras_norms

#endif  // KERAS_NORMS_CORE_STANDARD_H_
