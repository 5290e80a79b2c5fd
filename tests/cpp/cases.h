// A case: a geometry, the arrays given to every function of the core, and what they gave back.
#ifndef KERAS_NORMS_TESTS_CPP_CASES_H_
#define KERAS_NORMS_TESTS_CPP_CASES_H_

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "custom_ops/core/lanes.h"
#include "custom_ops/core/normalize.h"
#include "custom_ops/core/rows.h"
#include "custom_ops/core/runs.h"
#include "tests/cpp/arrays.h"

namespace keras_norms {

struct Options {
  bool subtract_mean = true;
  bool gamma = true, beta = true, dgamma = true, dbeta = true;  // false: null
  bool center = true, shift = true;                             // false: null
  bool in_place = false;                                        // outputs over inputs
  double epsilon = 1e-3;
  Activation activation = Activation::kNone;
};

inline std::string Name(const Geometry& k) {
  std::string name = "(";
  for (int64_t size : {k.n, k.s, k.g, k.d, k.t}) name += std::to_string(size) + " ";
  name.back() = ')';
  return name;
}

inline std::string Name(const Options& o) {
  std::string name = o.subtract_mean ? "" : " without mean";
  for (const auto& [given, word] : {std::pair(o.gamma, " gamma"),
                                    {o.beta, " beta"},
                                    {o.dgamma, " dgamma"},
                                    {o.dbeta, " dbeta"},
                                    {o.center, " center"},
                                    {o.shift, " shift"}}) {
    if (!given) name += std::string(" no") + word;
  }
  const char* activations[] = {"", " relu", " silu", " gelu"};
  name += activations[static_cast<int>(o.activation)];
  return name + (o.in_place ? " in place" : "");
}

// As Spreads in custom_ops/core/normalize.cc: short runs are taken as channels.
inline bool IsSpread(const Geometry& k) {
  return k.t > 1 && (k.t < 8 || (k.t < 64 && k.channels() * k.t <= 16384));
}

// Which walk a geometry takes, and whether forward and backward cut it.
inline std::string Schedule(const Geometry& k) {
  const auto name = [](const char* walk, bool forward, bool backward) {
    return std::string(walk) + (forward ? ", cut" : ", whole") + (backward ? ", cut" : ", whole");
  };
  if (IsSpread(k)) return "spread, " + Schedule({k.n, k.s, k.g, k.d * k.t, 1});
  if (k.t > 1) return name("runs", CutRuns(k), CutRuns(k));
  if (k.s > 1 || k.d == 1) return name("lanes", CutLanes(k), CutLanes(k));
  if (k.d <= kShortRow) return "short rows";
  return name("rows", CutRows(k, kRowInCache), CutRows(k, kWideRow));
}

// Every walk and schedule, the larger ones just above its thresholds.
inline std::vector<Geometry> SmallGeometries() {
  return {
      // short rows
      {1, 1, 1, 2, 1},
      {7, 1, 1, 3, 1},
      {3, 1, 1, 5, 1},
      {1, 1, 1, 22, 1},
      {5, 1, 1, 33, 1},
      {17, 1, 1, 63, 1},
      {13, 1, 1, 64, 1},
      {5, 1, 3, 11, 1},
      {67, 1, 2, 7, 1},
      {300, 1, 3, 22, 1},
      {2053, 1, 5, 7, 1},
      {2053, 1, 1, 22, 1},
      // rows
      {2, 1, 1, 65, 1},
      {11, 1, 1, 1031, 1},
      {5, 1, 3, 67, 1},
      {131, 1, 2, 65, 1},
      {1031, 1, 1, 65, 1},
      {3, 1, 1, 8209, 1},
      // lanes
      {1, 1, 1, 1, 1},
      {5, 1, 33, 1, 1},
      {300, 1, 3, 1, 1},
      {1, 7, 1, 1, 1},
      {2, 101, 1, 1, 1},
      {3, 37, 2, 1, 1},
      {2, 67, 1, 2, 1},
      {2, 131, 3, 1, 1},
      {1, 35, 5, 1, 1},
      {3, 259, 1, 5, 1},
      {2, 35, 2, 11, 1},
      {2, 3, 22, 1, 1},
      {3, 77, 11, 2, 1},
      {2, 91, 3, 11, 1},
      {2, 129, 33, 1, 1},
      {1, 63, 64, 1, 1},
      {2, 65, 8, 8, 1},
      {3, 17, 1, 65, 1},
      {2, 71, 65, 1, 1},
      {2, 29, 13, 5, 1},
      {2, 3, 2, 521, 1},
      {17, 211, 7, 3, 1},
      {9, 257, 5, 13, 1},
      // runs, spread to short rows, rows and lanes
      {1, 1, 1, 1, 2},
      {2, 1, 3, 1, 7},
      {3, 1, 2, 5, 13},
      {5, 1, 5, 1, 33},
      {301, 1, 2, 3, 5},
      {1, 1, 3, 22, 5},
      {19, 1, 4, 8, 31},
      {2, 1, 1, 1031, 7},
      {1, 5, 3, 1, 7},
      {1, 13, 22, 1, 11},
      {2, 3, 2, 2, 5},
      {3, 7, 1, 3, 17},
      {2, 5, 65, 1, 3},
      // runs
      {1, 1, 1, 22, 64},
      {2, 1, 2, 1, 65},
      {5, 1, 3, 1, 127},
      {2, 3, 2, 2, 67},
      {3, 7, 1, 3, 71},
      {1, 13, 22, 1, 65},
      {17, 2, 3, 5, 67},
      {1, 1, 521, 1, 33},
      {2, 1, 1, 3, 4099},
  };
}

inline std::vector<Geometry> CutGeometries() {
  return {
      // rows
      {3, 1, 1, 32771, 1},   // few and wide
      {1, 1, 2, 40009, 1},   // in groups
      {9, 1, 1, 32771, 1},   // cut backward only
      {8, 1, 1, 131101, 1},  // wide enough to be cut among many
      // lanes
      {1, 70001, 1, 1, 1},
      {1, 35023, 1, 2, 1},
      {2, 22003, 3, 1, 1},
      {1, 13127, 5, 1, 1},
      {2, 3001, 2, 11, 1},
      {1, 2053, 11, 3, 1},
      {1, 1031, 64, 1, 1},
      {7, 1013, 13, 5, 1},
      {2, 67, 1, 1031, 1},
      {2, 129, 521, 2, 1},
      {1, 2, 1, 70001, 1},  // more channels than a piece has elements
      {1, 1, 70001, 1, 1},
      {8, 1009, 65, 1, 1},  // many samples: whole, in several tasks
      // runs, spread to rows and lanes
      {2, 1, 1, 8209, 7},
      {2, 2003, 1, 5, 7},
      // runs
      {1, 1, 1, 1, 70001},
      {2, 1, 2, 3, 22003},
      {1, 5, 3, 1, 17011},  // several tiles in a run
      {3, 1031, 1, 2, 65},
      {1, 33, 2, 2, 1031},
      {1, 5, 1, 521, 33},
      {8, 1, 2, 2, 17011},  // many means: whole, in several tasks
  };
}

// 4e6 elements behind each mean.
inline std::vector<Geometry> LargeGeometries() {
  return {
      {1, 1, 1, 4000037, 1},                         // rows
      {1, 4000037, 1, 1, 1},                         // lanes
      {1, 62501, 1, 64, 1},  {1, 1, 1, 1, 4000037},  // runs
      {1, 611, 1, 1, 6547},
  };
}

template <class T>
struct Inputs {
  using U = Parameter<T>;
  Geometry k;
  Input<T> x, dy;
  Input<U> gamma, beta;           // [g, d]
  Input<U> center, scale, shift;  // [n, g, d]
  Input<U> dmean, dvariance;      // [n, g]

  // x has this mean and standard deviation 1.
  Inputs(const Geometry& geometry, double mean, uint64_t seed = 1)
      : k(geometry),
        x(k.size()),
        dy(k.size()),
        gamma(k.channels()),
        beta(k.channels()),
        center(k.n * k.channels()),
        scale(k.n * k.channels()),
        shift(k.n * k.channels()),
        dmean(k.units()),
        dvariance(k.units()) {
    Random random(seed);
    random.Fill(&x, mean, 1);
    random.Fill(&dy, 0, 1);
    for (Input<U>* p : {&gamma, &beta, &scale, &shift, &dmean, &dvariance}) random.Fill(p, 0, 1);
    random.Fill(&center, mean, 1);
  }
};

// Outputs of all functions for one case.
template <class T>
struct Outputs {
  using U = Parameter<T>;
  Output<T> y, dx, moments_dx, affine_y, affine_dx;
  Output<U> mean, variance;                            // of Normalize
  Output<U> moments_mean, residual, moments_variance;  // of Moments
  Output<U> dgamma, dbeta, dscale, dshift;

  Outputs(const Pool& pool, const Inputs<T>& in, const Options& o)
      : y(in.x.size()),
        dx(in.x.size()),
        moments_dx(in.x.size()),
        affine_y(in.x.size()),
        affine_dx(in.x.size()),
        mean(in.k.units()),
        variance(in.k.units()),
        moments_mean(in.k.units()),
        residual(in.k.units()),
        moments_variance(in.k.units()),
        dgamma(in.k.channels()),
        dbeta(in.k.channels()),
        dscale(in.center.size()),
        dshift(in.center.size()) {
    const auto given = [](bool yes, const auto* p) { return yes ? p : nullptr; };
    const Geometry& k = in.k;
    const U *gamma = given(o.gamma, in.gamma.data()), *center = given(o.center, in.center.data());
    const U *beta = given(o.beta, in.beta.data()), *shift = given(o.shift, in.shift.data());
    // Without an activation the gradients must not read these.
    const bool activated = o.activation != Activation::kNone;
    const U *grad_beta = given(activated, beta), *grad_shift = given(activated, shift);
    const T *dy = in.dy.data(), *affine_dy = dy;
    if (o.in_place) {
      std::copy_n(in.dy.data(), in.dy.size(), dx.data());
      std::copy_n(in.dy.data(), in.dy.size(), affine_dx.data());
      dy = dx.data();
      affine_dy = affine_dx.data();
    }
    // Each function gets scratch of its own, so that none finds what another left.
    const auto scratch = [&k] { return std::make_unique<Output<char>>(ScratchBytes(k), true); };
    Normalize<T>(pool, k, in.x.data(), gamma, beta, o.epsilon, o.subtract_mean, o.activation,
                 y.data(), mean.data(), variance.data(), scratch()->data());
    NormalizeGrad<T>(pool, k, dy, in.x.data(), gamma, grad_beta, mean.data(), variance.data(),
                     o.epsilon, o.subtract_mean, o.activation, dx.data(),
                     o.dgamma ? dgamma.data() : nullptr, o.dbeta ? dbeta.data() : nullptr,
                     scratch()->data());
    Moments<T>(pool, k, in.x.data(), o.subtract_mean, moments_mean.data(), residual.data(),
               moments_variance.data(), scratch()->data());
    MomentsGrad<T>(pool, k, in.x.data(), moments_mean.data(), residual.data(), in.dmean.data(),
                   in.dvariance.data(), moments_dx.data(), scratch()->data());
    ScaleShift<T>(pool, k, in.x.data(), center, in.scale.data(), shift, o.activation,
                  affine_y.data());
    ScaleShiftGrad<T>(pool, k, affine_dy, in.x.data(), center, in.scale.data(), grad_shift,
                      o.activation, affine_dx.data(), dscale.data(), dshift.data(),
                      scratch()->data());
  }

  bool SameBits(const Outputs& other) const {
    return y.SameBits(other.y) && dx.SameBits(other.dx) && moments_dx.SameBits(other.moments_dx) &&
           affine_y.SameBits(other.affine_y) && affine_dx.SameBits(other.affine_dx) &&
           mean.SameBits(other.mean) && variance.SameBits(other.variance) &&
           moments_mean.SameBits(other.moments_mean) && residual.SameBits(other.residual) &&
           moments_variance.SameBits(other.moments_variance) && dgamma.SameBits(other.dgamma) &&
           dbeta.SameBits(other.dbeta) && dscale.SameBits(other.dscale) &&
           dshift.SameBits(other.dshift);
  }
};

}  // namespace keras_norms

#endif  // KERAS_NORMS_TESTS_CPP_CASES_H_
