// What every function of the core, or of another backend, has to give: plain loops over the 5-D
// view, in long double where the processor has one (elsewhere a library computes it, too slowly).
#ifndef KERAS_NORMS_TESTS_CPP_REFERENCE_H_
#define KERAS_NORMS_TESTS_CPP_REFERENCE_H_

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <string>
#include <type_traits>
#include <vector>

#include "tests/cpp/cases.h"

namespace keras_norms {

using Real = std::conditional_t<LDBL_MANT_DIG == 64, long double, double>;

// The activations and their derivatives, as custom_ops/core/activation.h defines them.
inline double Activate(Activation activation, double z) {
  switch (activation) {
    case Activation::kRelu:
      return z < 0 ? 0 : z;
    case Activation::kSilu:
      return z / (1 + std::exp(-z));
    case Activation::kGelu:
      return z * std::erfc(-z / std::sqrt(2.0)) / 2;
    default:
      return z;
  }
}
inline double Derivative(Activation activation, double z) {
  const double sigmoid = 1 / (1 + std::exp(-z));
  switch (activation) {
    case Activation::kRelu:
      return z > 0;
    case Activation::kSilu:
      return sigmoid + z * sigmoid / (1 + std::exp(z));
    case Activation::kGelu:
      return std::erfc(-z / std::sqrt(2.0)) / 2 + z * std::exp(-z * z / 2) / std::sqrt(2 * M_PI);
    default:
      return 1;
  }
}

// What the formulas of custom_ops/core/normalize.h give, and the sizes that bounds are relative to.
struct Reference {
  std::vector<double> y, dx, moments_dx, affine_y, affine_dx;
  std::vector<double> z, affine_z;  // before the activation
  std::vector<double> mean, variance;
  std::vector<double> dgamma, dbeta, dscale, dshift;
  // The square root of the sum of the squares of what is summed: the typical size of such a sum.
  double dgamma_size = 0, dbeta_size = 0, dscale_size = 0, dshift_size = 0;
  double affine_terms = 0;  // the largest |x - center| * |scale| + |shift|
  double largest_rstd = 0, largest_g = 0;
  double largest_scaled_dy = 0;  // |dy * scale|

  template <class T>
  Reference(const Inputs<T>& in, const Options& o);
};

// Calls fn(i, c) for the elements of mean (n, g): their index and their channel.
template <class Fn>
void ForUnit(const Geometry& k, int64_t n, int64_t g, const Fn& fn) {
  for (int64_t s = 0; s < k.s; ++s) {
    for (int64_t d = 0; d < k.d; ++d) {
      for (int64_t t = 0; t < k.t; ++t) {
        fn((((n * k.s + s) * k.g + g) * k.d + d) * k.t + t, g * k.d + d);
      }
    }
  }
}

inline double Largest(const std::vector<double>& values) {
  double largest = 0;
  for (double value : values) largest = std::max(largest, std::fabs(value));
  return largest;
}

inline std::vector<double> Rounded(const std::vector<Real>& from) {
  return {from.begin(), from.end()};
}

template <class T>
Reference::Reference(const Inputs<T>& in, const Options& o) {
  const Geometry& k = in.k;
  const int64_t channels = k.channels();
  for (auto* p : {&y, &dx, &moments_dx, &affine_y, &affine_dx, &z, &affine_z}) p->resize(k.size());
  const bool activated = o.activation != Activation::kNone;
  mean.resize(k.units());
  variance.resize(k.units());
  std::vector<double> x_value(k.size()), dy_value(k.size());
  for (int64_t i = 0; i < k.size(); ++i) {
    x_value[i] = Value(in.x[i]);
    dy_value[i] = Value(in.dy[i]);
  }
  std::vector<Real> gamma_sum(channels), beta_sum(channels), scale_sum(k.n * channels),
      shift_sum(k.n * channels);
  std::vector<double> gamma_square(channels), beta_square(channels), scale_square(k.n * channels),
      shift_square(k.n * channels);
  for (int64_t n = 0; n < k.n; ++n) {
    for (int64_t g = 0; g < k.g; ++g) {
      const int64_t unit = n * k.g + g;
      const Real count = k.count();
      const auto x = [&](int64_t i) { return static_cast<Real>(x_value[i]); };
      const auto dy_at = [&](int64_t i, double z) {
        const Real dy = dy_value[i];
        return activated ? dy * Derivative(o.activation, z) : dy;
      };
      const auto weight = [&](int64_t c) { return o.gamma ? Real(in.gamma[c]) : Real(1); };

      Real m = 0, v = 0, mean_g = 0, mean_g_xhat = 0;
      if (o.subtract_mean) {
        const Real first = k.count() > 0 ? x((n * k.s * k.g + g) * k.d * k.t) : 0;
        ForUnit(k, n, g, [&](int64_t i, int64_t) { m += x(i) - first; });
        m = k.count() > 0 ? first + m / count : 0;
      }
      ForUnit(k, n, g, [&](int64_t i, int64_t) { v += (x(i) - m) * (x(i) - m); });
      v = count > 0 ? v / count : 0;
      mean[unit] = m;
      variance[unit] = v;
      const Real rstd = 1 / std::sqrt(v + static_cast<Real>(o.epsilon));
      largest_rstd = std::max(largest_rstd, static_cast<double>(rstd));

      ForUnit(k, n, g, [&](int64_t i, int64_t c) {
        const Real xhat = (x(i) - m) * rstd;
        z[i] = xhat * weight(c) + (o.beta ? in.beta[c] : 0);
        y[i] = Activate(o.activation, z[i]);
        const Real dy = dy_at(i, z[i]), w = weight(c) * dy;
        mean_g += w / count;
        mean_g_xhat += w * xhat / count;
        gamma_sum[c] += dy * xhat;
        gamma_square[c] += dy * xhat * dy * xhat;
        beta_sum[c] += dy;
        beta_square[c] += dy * dy;
        largest_g = std::max(largest_g, static_cast<double>(std::fabs(w)));
      });
      if (!o.subtract_mean) mean_g = 0;
      ForUnit(k, n, g, [&](int64_t i, int64_t c) {
        const Real xhat = (x(i) - m) * rstd;
        dx[i] = rstd * (weight(c) * dy_at(i, z[i]) - mean_g - xhat * mean_g_xhat);
        // The derivatives of the mean and of the variance by x.
        moments_dx[i] = in.dmean[unit] / count + in.dvariance[unit] * 2 * (x(i) - m) / count;

        const int64_t nc = n * channels + c;
        const Real xc = x(i) - (o.center ? Real(in.center[nc]) : 0), scale = in.scale[nc],
                   shift = o.shift ? in.shift[nc] : 0;
        affine_z[i] = xc * scale + shift;
        affine_y[i] = Activate(o.activation, affine_z[i]);
        const Real dy = dy_at(i, affine_z[i]);
        affine_terms =
            std::max(affine_terms, static_cast<double>(std::fabs(xc * scale) + std::fabs(shift)));
        affine_dx[i] = dy * scale;
        largest_scaled_dy =
            std::max(largest_scaled_dy, static_cast<double>(std::fabs(dy_value[i] * scale)));
        scale_sum[nc] += dy * xc;
        scale_square[nc] += dy * xc * dy * xc;
        shift_sum[nc] += dy;
        shift_square[nc] += dy * dy;
      });
    }
  }
  dgamma = Rounded(gamma_sum);
  dbeta = Rounded(beta_sum);
  dscale = Rounded(scale_sum);
  dshift = Rounded(shift_sum);
  dgamma_size = std::sqrt(Largest(gamma_square));
  dbeta_size = std::sqrt(Largest(beta_square));
  dscale_size = std::sqrt(Largest(scale_square));
  dshift_size = std::sqrt(Largest(shift_square));
}

// Expects |got - want| <= tolerance and half an ulp, which the last rounding costs.
template <class Array>
void ExpectNear(const std::string& what, const Array& got, const std::vector<double>& want,
                double tolerance) {
  using T = std::decay_t<decltype(got[0])>;
  const auto close = [&](int64_t i) {
    const double bound = tolerance + Ulp<T>(std::fabs(want[i]) + tolerance) / 2;
    return std::fabs(Value(got[i]) - want[i]) <= bound;
  };
  check::ExpectEach(
      what, got.size(), close, [&](int64_t i) { return want[i]; },
      [&](int64_t i) { return Value(got[i]); });
}

// Of float: the bounds that the core promises. Of double: some thousand roundings.
template <class U>
struct Bounds {
  static constexpr bool kFloat = sizeof(U) == 4;
  static constexpr double kUnit = kFloat ? 0x1p-24 : 0x1p-53;   // of one rounding
  static constexpr double kForward = kFloat ? 4e-6 : 1e-13;     // times the largest |gamma|
  static constexpr double kBackward = kFloat ? 2e-5 : 1e-12;    // of the largest element
  static constexpr double kActivation = kFloat ? 4e-7 : 1e-14;  // of a value, of a derivative
  static constexpr double kVariance = kFloat ? 4e-6 : 1e-13;    // relative
  // A mean near m is only known to this, in units of the standard deviation 1: float keeps the
  // residual of its mean, double does not, and rounds the means that it merges too.
  static double Mean(double m) { return kFloat ? 1e-6 : 1e-14 + 16 * kUnit * std::fabs(m); }
};

// All results of one case. `rounds` tells whether dz is kept as a T between the steps of a gradient
// with an activation.
template <class T, class Results>
void ExpectMatches(const Inputs<T>& in, const Options& o, const Results& got, double x_mean,
                   bool rounds) {
  using U = Parameter<T>;
  using B = Bounds<U>;
  const Reference want(in, o);
  const Geometry& k = in.k;
  double gamma = 1;
  if (o.gamma) {
    gamma = 0;
    for (int64_t c = 0; c < k.channels(); ++c)
      gamma = std::max(gamma, std::fabs(1.0 * in.gamma[c]));
  }
  const double deviation = o.subtract_mean ? 1 : std::fabs(x_mean) + 1;
  const double lost = B::kFloat ? 0 : B::Mean(x_mean);
  const double beta = o.beta ? 1 : 0;
  // Activations: their own error, and their steepest slope times that of z.
  const bool activated = o.activation != Activation::kNone;
  const double own = activated ? B::kActivation : 0, slope = activated ? 1.13 : 1;
  const double step =
      rounds && activated && sizeof(T) == 2 ? std::ldexp(1, -Format<T>::kMantissa) : 0;

  ExpectNear("y", got.y, want.y,
             slope * (B::kForward * std::max(gamma, B::kFloat ? 0 : beta) +
                      lost * gamma * want.largest_rstd) +
                 own * Largest(want.z));
  ExpectNear("mean", got.mean, want.mean, B::kUnit * std::fabs(x_mean) * 1.01 + B::Mean(x_mean));
  for (int64_t i = 0; i < k.units(); ++i) {
    const double v = want.variance[i];
    if (!(std::fabs(got.variance[i] - v) <= B::kVariance * (v + 1e-3 * deviation) + lost)) {
      check::ExpectEach(
          "variance", 1, [](int64_t) { return false; }, [&](int64_t) { return v; },
          [&](int64_t) { return got.variance[i]; });
    }
  }
  std::vector<double> exact_mean(want.mean);
  for (int64_t i = 0; i < k.units(); ++i) exact_mean[i] -= got.residual[i];
  ExpectNear("mean + residual", got.moments_mean, exact_mean, B::Mean(x_mean));
  check::Expect(got.mean.SameBits(got.moments_mean), "Moments and Normalize agree on mean");
  check::Expect(got.variance.SameBits(got.moments_variance),
                "Moments and Normalize agree on variance");

  const double backward = B::kBackward + lost * (activated ? 1 + gamma * want.largest_rstd : 1);
  // Few elements cancel in dx: then the bound is relative to what cancels.
  const double dx_size = k.count() >= 16
                             ? Largest(want.dx)
                             : std::max(Largest(want.dx), want.largest_rstd * want.largest_g / 4);
  ExpectNear("dx", got.dx, want.dx, backward * dx_size + step * want.largest_rstd * want.largest_g);
  if (o.dgamma) {
    ExpectNear("dgamma", got.dgamma, want.dgamma,
               (backward + 2 * step) * std::max(Largest(want.dgamma), want.dgamma_size));
  }
  if (o.dbeta) {
    ExpectNear("dbeta", got.dbeta, want.dbeta,
               ((activated ? backward : B::kBackward) + 2 * step) *
                   std::max(Largest(want.dbeta), want.dbeta_size));
  }
  ExpectNear("moments dx", got.moments_dx, want.moments_dx,
             (16 * B::kUnit + 2 * B::Mean(0)) * Largest(want.moments_dx) +
                 4 * lost / std::max<int64_t>(1, k.count()));

  // Two roundings of the product's factors and itself, one of the sum.
  const double affine = 4 * B::kUnit * want.affine_terms;
  ExpectNear("ScaleShift y", got.affine_y, want.affine_y,
             slope * affine + own * Largest(want.affine_z));
  ExpectNear("ScaleShift dx", got.affine_dx, want.affine_dx,
             2 * B::kUnit * Largest(want.affine_dx) +
                 (activated ? own + affine + step : 0) * want.largest_scaled_dy);
  const double sums = B::kBackward + 2 * step + (activated ? affine : 0);
  ExpectNear("dscale", got.dscale, want.dscale,
             sums * std::max(Largest(want.dscale), want.dscale_size));
  ExpectNear("dshift", got.dshift, want.dshift,
             sums * std::max(Largest(want.dshift), want.dshift_size));
}

// At the kink of relu the last rounding of z decides on the whole of dy: let none be there.
template <class T>
void AvoidKinks(const Options& o, Inputs<T>* in) {
  if (o.activation != Activation::kRelu) return;
  const Reference at(*in, o);
  for (int64_t i = 0; i < in->k.size(); ++i) {
    if (std::min(std::fabs(at.z[i]), std::fabs(at.affine_z[i])) < 1e-3) in->dy[i] = T{};
  }
}

// The options of the i-th case, so that neighbouring cases differ in all of them.
inline Options Vary(uint64_t i) {
  const uint64_t bits = Random(i).Bits();
  Options o;
  o.gamma = bits & 3;
  o.beta = bits >> 2 & 3;
  o.dgamma = bits >> 4 & 3;
  o.dbeta = bits >> 6 & 3;
  o.center = bits >> 8 & 3;
  o.shift = bits >> 10 & 3;
  o.in_place = bits >> 12 & 1;
  o.epsilon = bits >> 13 & 1 ? 1e-3 : 1e-5;
  o.subtract_mean = bits >> 14 & 3;
  return o;
}

}  // namespace keras_norms

#endif  // KERAS_NORMS_TESTS_CPP_REFERENCE_H_
