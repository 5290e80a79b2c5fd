// Every function of the core against reference.h.
#include <cfloat>
#include <map>

#include "tests/cpp/reference.h"

namespace keras_norms {
namespace {

template <class T>
void Run(const Geometry& k, const Options& o, double mean, uint64_t seed) {
  check::Context() = std::string(Format<T>::kName) + " " + Name(k) + " " + Schedule(k) + ", mean " +
                     std::to_string(mean) + Name(o);
  Inputs<T> in(k, mean, seed);
  AvoidKinks(o, &in);
  const Outputs<T> got(Pool(), in, o);
  ExpectMatches(in, o, got, mean, true);
}

// All geometries with all means, three in four with the mean subtracted.
template <class T>
void RunAll(const std::vector<Geometry>& geometries, const std::vector<double>& means) {
  uint64_t seed = 0;
  for (const Geometry& k : geometries) {
    for (double mean : means) {
      Run<T>(k, Vary(seed), mean, seed);
      ++seed;
    }
  }
}

std::vector<Geometry> AllGeometries() {
  std::vector<Geometry> all = SmallGeometries();
  const std::vector<Geometry> cut = CutGeometries();
  all.insert(all.end(), cut.begin(), cut.end());
  return all;
}

TEST(EveryScheduleIsReached) {
  std::map<std::string, int> cases;
  for (const Geometry& k : SmallGeometries()) ++cases[Schedule(k)];
  for (const Geometry& k : CutGeometries()) ++cases[Schedule(k)];
  for (const char* schedule :
       {"short rows", "rows, whole, whole", "rows, whole, cut", "rows, cut, cut",
        "lanes, whole, whole", "lanes, cut, cut", "runs, whole, whole", "runs, cut, cut",
        "spread, short rows", "spread, rows, whole, whole", "spread, rows, cut, cut",
        "spread, lanes, whole, whole", "spread, lanes, cut, cut"}) {
    check::Expect(cases[schedule] > 0, std::string("a case of ") + schedule);
  }
}

TEST(Float32) { RunAll<float>(SmallGeometries(), {0, 0, 1e2, 1e2, 1e4, 1e4, 1e6, 1e6}); }
TEST(Float32Cut) { RunAll<float>(CutGeometries(), {0, 1e6}); }
TEST(Float64) { RunAll<double>(SmallGeometries(), {0, 1e6}); }
TEST(Float64Cut) { RunAll<double>(CutGeometries(), {1e4}); }
TEST(Bfloat16) { RunAll<bfloat16>(SmallGeometries(), {0, 1e2}); }
TEST(Bfloat16Cut) { RunAll<bfloat16>(CutGeometries(), {3}); }
TEST(Float16) { RunAll<float16>(SmallGeometries(), {0, 1e2}); }
TEST(Float16Cut) { RunAll<float16>(CutGeometries(), {1e2}); }

constexpr Activation kActivations[] = {Activation::kRelu, Activation::kSilu, Activation::kGelu};

// Of the geometries, `each` of three activations a turn; the means take turns too.
template <class T>
void RunActivations(const std::vector<Geometry>& geometries, const std::vector<double>& means,
                    int each) {
  uint64_t seed = 300;
  for (const Geometry& k : geometries) {
    for (int i = 0; i < each; ++i) {
      Options o = Vary(++seed);
      o.activation = kActivations[seed % 3];
      Run<T>(k, o, means[seed / 3 % means.size()], seed);
    }
  }
}

TEST(ActivationsFloat32) { RunActivations<float>(SmallGeometries(), {0, 1e2, 1e6, 3}, 6); }
TEST(ActivationsFloat32Cut) { RunActivations<float>(CutGeometries(), {0, 1e6}, 1); }
TEST(ActivationsFloat64) { RunActivations<double>(SmallGeometries(), {0, 1e6}, 3); }
TEST(ActivationsBfloat16) { RunActivations<bfloat16>(SmallGeometries(), {0, 1e2}, 3); }
TEST(ActivationsFloat16) { RunActivations<float16>(SmallGeometries(), {0, 1e2}, 3); }

// The activations alone: ScaleShift of nothing, and its gradient of dy = 1.
template <class T>
void RunActivationValues(const std::vector<double>& values, double tolerance) {
  using U = Parameter<T>;
  const Geometry k = {1, static_cast<int64_t>(values.size()), 1, 1, 1};
  Input<T> x(k.size()), dy(k.size());
  Input<U> scale(1);
  scale[0] = 1;
  for (int64_t i = 0; i < k.size(); ++i) {
    x[i] = Nearest<T>(values[i]);
    dy[i] = Nearest<T>(1);
  }
  for (Activation activation : kActivations) {
    check::Context() = std::string(Format<T>::kName) + " values of activation " +
                       std::to_string(static_cast<int>(activation));
    Output<T> y(k.size()), dx(k.size());
    Output<U> dscale(1), dshift(1);
    Output<char> scratch(ScratchBytes(k), true);
    ScaleShift<T>(Pool(), k, x.data(), nullptr, scale.data(), nullptr, activation, y.data());
    ScaleShiftGrad<T>(Pool(), k, dy.data(), x.data(), nullptr, scale.data(), nullptr, activation,
                      dx.data(), dscale.data(), dshift.data(), scratch.data());
    const auto value = [&](int64_t i) {
      const double z = Value(x[i]);
      return std::isinf(z) ? std::max(z, 0.0) : Activate(activation, z);
    };
    const auto derivative = [&](int64_t i) {
      const double z = Value(x[i]);
      return std::fabs(z) > 800 ? static_cast<double>(z > 0) : Derivative(activation, z);
    };
    const auto close = [&](const auto& want, const auto& got) {
      return [&](int64_t i) {
        const double w = want(i), g = Value(got[i]);
        if (std::isnan(w) || std::isinf(w)) return std::isnan(w) ? std::isnan(g) : g == w;
        const double size = std::max(1.0, std::fabs(w));
        return std::fabs(g - w) <= tolerance * size + Ulp<T>(std::fabs(w) + tolerance * size) / 2;
      };
    };
    check::ExpectEach("y", k.size(), close(value, y), value,
                      [&](int64_t i) { return Value(y[i]); });
    const auto undefined = [&](int64_t i) { return std::isnan(Value(x[i])); };
    const auto close_dx = close(derivative, dx);
    check::ExpectEach(
        "dx", k.size(), [&](int64_t i) { return undefined(i) || close_dx(i); }, derivative,
        [&](int64_t i) { return Value(dx[i]); });
  }
}

TEST(ActivationValues) {
  std::vector<double> values = {0.0, -0.0, NAN, INFINITY, -INFINITY, 6e4, -6e4};
  for (int i = -20000; i <= 20000; ++i) values.push_back(i * 1.1e-3);
  RunActivationValues<bfloat16>(values, 4e-7);
  RunActivationValues<float16>(values, 4e-7);
  for (double large : {88.0, 104.0, 150.0, 1e4, 1e20, 3e38}) {
    for (double sign : {-1, 1}) values.push_back(sign * large);
  }
  RunActivationValues<float>(values, 4e-7);
  RunActivationValues<double>(values, 4e-15);
}

// Only the rounding differs from smaller cases, so not where each access is checked.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(FourMillionElements) {
  uint64_t seed = 100;
  for (const Geometry& k : LargeGeometries()) Run<float>(k, Options(), 1e6, ++seed);
  Run<float>(LargeGeometries()[0], Options(), 0, ++seed);
}
#endif

TEST(WideRowsFlushed) { Run<float>({67, 1, 1, 32771, 1}, Options(), 1e2, 7); }

TEST(EveryNullPointer) {
  for (const Geometry& k : {Geometry{5, 1, 3, 11, 1},
                            {5, 1, 3, 67, 1},
                            {3, 1, 1, 32771, 1},
                            {3, 17, 2, 11, 1},
                            {2, 3001, 2, 11, 1},
                            {2, 3, 2, 5, 7},
                            {2, 3, 2, 5, 67},
                            {1, 33, 2, 2, 1031}}) {
    for (int bits = 0; bits < 64; ++bits) {
      if (k.size() > 1000 && bits % 5 != 0) continue;
      Options o;
      o.gamma = bits & 1;
      o.beta = bits & 2;
      o.dgamma = bits & 4;
      o.dbeta = bits & 8;
      o.center = o.subtract_mean = bits & 16;
      o.shift = o.in_place = bits & 32;
      Run<float>(k, o, 10, bits);
    }
  }
}

TEST(EpsilonZero) {
  uint64_t seed = 200;
  for (const Geometry& k : SmallGeometries()) {
    Options o;
    o.epsilon = 0;
    if (k.count() >= 16) Run<float>(k, o, 1e2, ++seed);
  }
}

// Of data with few values, like pictures' or masks', roundings do not cancel: the same square is
// rounded the same way each time.
TEST(FewValues) {
  for (const Geometry& k : AllGeometries()) {
    if (k.count() < 16 || k.size() > 400000) continue;
    for (int values : {2, 256}) {
      check::Context() =
          "float32 of " + std::to_string(values) + " values " + Name(k) + " " + Schedule(k);
      Inputs<float> in(k, 0, values);
      Random random(5);
      for (int64_t i = 0; i < k.size(); ++i)
        in.x[i] = random.Bits() % values * (values > 100 ? 0x1p-6f : 1);
      Options o;
      o.center = false;
      const Outputs<float> got(Pool(), in, o);
      ExpectMatches(in, o, got, 2, true);
    }
  }
}

// Where the variance overflows, the mean does not: y is 0, as of the portable path. Where few
// enough elements are squared in float32, it is right.
TEST(Huge) {
  for (const Geometry& k : AllGeometries()) {
    if (k.count() < 16 || k.size() > 400000) continue;
    const int64_t sample = k.s * k.channels() * k.t;
    for (bool all : {true, false}) {
      check::Context() =
          std::string(all ? "huge " : "lowest number first ") + Name(k) + " " + Schedule(k);
      Inputs<float> in(k, 0);
      for (int64_t i = 0; i < k.size(); ++i) {
        const bool first = i % sample % (k.d * k.t) == 0 && i % sample < k.channels() * k.t;
        in.x[i] = all ? in.x[i] * 1e34f : first ? -FLT_MAX : in.x[i];
      }
      Options o;
      o.gamma = o.beta = o.center = false;
      const Outputs<float> got(Pool(), in, o);
      const Reference want(in, o);
      ExpectNear("mean", got.mean, want.mean, all ? 1e29 : 1e-5 * Largest(want.mean));
      check::ExpectEach(
          "y", got.y.size(),
          [&](int64_t i) {
            return got.y[i] == 0 || std::fabs(got.y[i] - want.y[i]) < 1e-5 * Largest(want.y);
          },
          [&](int64_t i) { return want.y[i]; }, [&](int64_t i) { return Value(got.y[i]); });
    }
  }
}

// Elements that are far from the others where a first guess at their mean comes from: evenly spaced
// ones, and all of the second half.
TEST(Outliers) {
  for (const Geometry& k : AllGeometries()) {
    if (k.count() < 16 || k.size() > 400000) continue;
    const int64_t sample = k.s * k.channels() * k.t;
    for (int64_t tile : {k.d * k.t, k.s, int64_t{64}, int64_t{0}}) {
      check::Context() =
          "outliers each " + std::to_string(tile) + " " + Name(k) + " " + Schedule(k);
      Inputs<float> in(k, 0, 3);
      for (int64_t i = 0; i < k.size(); ++i) {
        const int64_t along = k.s > 1 ? i % sample / (k.channels() * k.t) : i % (k.d * k.t);
        const int64_t step = std::max<int64_t>(1, (tile - 1) / 3), eighth = tile / 8;
        const bool sampled = tile > 0 && ((along % tile) % step == 0 ||
                                          (eighth > 0 && (along % tile) % eighth == 0));
        if (tile > 0 ? sampled : i % sample > sample / 2) in.x[i] += 1e4;
      }
      Options o;
      o.gamma = o.beta = o.center = false;
      const Outputs<float> got(Pool(), in, o);
      const Reference want(in, o);
      ExpectNear("y", got.y, want.y, 4e-6 * Largest(want.y));
      ExpectNear("dx", got.dx, want.dx, 2e-5 * Largest(want.dx));
      ExpectNear("variance", got.variance, want.variance, 4e-6 * Largest(want.variance));
      ExpectNear("dgamma", got.dgamma, want.dgamma, 2e-5 * want.dgamma_size);
    }
  }
}

// Large float16 values: their sums and squares are far beyond its range.
TEST(Float16Large) {
  for (const Geometry& k : {Geometry{2, 1, 1, 1031, 1}, {2, 2003, 1, 65, 1}, {1, 5, 3, 1, 17011}}) {
    check::Context() = "float16 of 65504 " + Name(k);
    Inputs<float16> in(k, 0);
    for (int64_t i = 0; i < k.size(); ++i) {
      in.x[i] = Nearest<float16>(Value(in.x[i]) > 0 ? 65504 : -65504);
    }
    Options o;
    o.center = false;
    const Outputs<float16> got(Pool(), in, o);
    const Reference want(in, o);
    ExpectNear("y", got.y, want.y, 4e-6 * 5);  // |gamma| < 5
    ExpectNear("variance", got.variance, want.variance, 2e-6 * 65504.0 * 65504.0);
    ExpectNear("dgamma", got.dgamma, want.dgamma, 2e-5 * want.dgamma_size);
  }
}

template <class T>
void RunConstant(const Geometry& k, double value) {
  check::Context() = std::string(Format<T>::kName) + " constant " + std::to_string(value) + " " +
                     Name(k) + " " + Schedule(k);
  Inputs<T> in(k, 0);
  const T x = Nearest<T>(value);
  for (int64_t i = 0; i < k.size(); ++i) in.x[i] = x;
  for (bool beta : {true, false}) {
    Options o;
    o.beta = beta;
    const Outputs<T> got(Pool(), in, o);
    std::vector<double> want(k.size());
    for (int64_t i = 0; i < k.size(); ++i) {
      const int64_t c = i / k.t % k.channels();
      want[i] = beta ? Value(Nearest<T>(in.beta[c])) : 0;
    }
    check::ExpectEach(
        "y", k.size(), [&](int64_t i) { return Value(got.y[i]) == want[i]; },
        [&](int64_t i) { return want[i]; }, [&](int64_t i) { return Value(got.y[i]); });
    for (int64_t i = 0; i < k.units(); ++i) {
      check::Expect(got.mean[i] == Value(x), "the mean is the constant");
      check::Expect(got.residual[i] == 0, "nothing is left of the mean");
      check::Expect(got.variance[i] == 0, "variance 0");
    }
    if (k.count() == 1) {
      check::ExpectEach(
          "dx", k.size(), [&](int64_t i) { return Value(got.dx[i]) == 0; },
          [](int64_t) { return 0; }, [&](int64_t i) { return Value(got.dx[i]); });
      for (int64_t c = 0; c < k.channels(); ++c) {
        check::Expect(got.dgamma[c] == 0, "dgamma 0 of one element per mean");
      }
    }
  }
}

TEST(ConstantInput) {
  for (const Geometry& k : AllGeometries()) {
    RunConstant<float>(k, k.d % 2 ? 1e6 + 0.1 : -0.1);
    if (k.size() > 20000) continue;
    RunConstant<double>(k, 1e6 + 0.1);
    RunConstant<bfloat16>(k, 3.14159);
    RunConstant<float16>(k, -1e3);
  }
}

TEST(OneElementPerMean) {
  for (const Geometry& k : {Geometry{1, 1, 1, 1, 1},
                            {7, 1, 1, 1, 1},
                            {1, 1, 5, 1, 1},
                            {300, 1, 22, 1, 1},
                            {2, 1, 65, 1, 1},
                            {1, 1, 70001, 1, 1}}) {
    for (double mean : {0.0, 1e2, 1e6}) {
      check::Context() = "one element per mean " + Name(k);
      const auto run = [&](auto type) {
        using T = decltype(type);
        const Inputs<T> in(k, sizeof(T) == 2 ? std::min(mean, 1e2) : mean);
        const Outputs<T> got(Pool(), in, Options());
        for (int64_t i = 0; i < k.size(); ++i) {
          const int64_t c = i % k.channels();
          check::Expect(Value(got.y[i]) == Value(Nearest<T>(in.beta[c])), "y is beta");
          check::Expect(Value(got.dx[i]) == 0, "dx is 0");
          check::Expect(got.mean[i] == Value(in.x[i]) && got.variance[i] == 0, "the mean is x");
        }
      };
      run(float());
      run(double());
      run(bfloat16());
      run(float16());
    }
  }
}

template <class T>
void RunEmpty(const Geometry& k) {
  check::Context() = std::string(Format<T>::kName) + " empty " + Name(k);
  check::Expect(ScratchBytes(k) >= 0, "a size of scratch");
  const Inputs<T> in(k, 0);
  for (bool subtract_mean : {true, false}) {
    Options o;
    o.subtract_mean = subtract_mean;
    const Outputs<T> got(Pool(), in, o);
    for (int64_t i = 0; i < k.units(); ++i) {
      check::Expect(got.mean[i] == 0 && got.variance[i] == 0, "mean 0 and variance 0");
      check::Expect(
          got.moments_mean[i] == 0 && got.residual[i] == 0 && got.moments_variance[i] == 0,
          "moments 0");
    }
    for (int64_t c = 0; c < k.channels(); ++c) {
      check::Expect(got.dgamma[c] == 0 && got.dbeta[c] == 0, "dgamma 0 and dbeta 0");
    }
    for (int64_t i = 0; i < k.n * k.channels(); ++i) {
      check::Expect(got.dscale[i] == 0 && got.dshift[i] == 0, "dscale 0 and dshift 0");
    }
  }
}

TEST(Empty) {
  for (const Geometry& k : {Geometry{0, 1, 1, 33, 1},
                            {0, 7, 3, 2, 1},
                            {0, 3, 2, 5, 7},
                            {0, 1, 5, 1, 1},
                            {3, 0, 1, 33, 1},
                            {2, 0, 3, 1, 1},
                            {3, 0, 2, 5, 7},
                            {1, 0, 64, 1, 1},
                            {3, 2, 2, 5, 0},
                            {0, 0, 3, 2, 1},
                            {2, 3, 0, 1, 1},
                            {2, 3, 2, 0, 1},
                            {2, 1, 1, 0, 1}}) {
    RunEmpty<float>(k);
    RunEmpty<double>(k);
    RunEmpty<bfloat16>(k);
    RunEmpty<float16>(k);
  }
}

// A NaN or infinity in one element touches what shares its statistics, and nothing else.
template <class T>
void RunNotFinite(const Geometry& k, double bad, int64_t at) {
  check::Context() = std::string(Format<T>::kName) + " " + std::to_string(bad) + " at " +
                     std::to_string(at) + " of " + Name(k) + " " + Schedule(k);
  Inputs<T> in(k, 5);
  const Options o;
  const Outputs<T> clean(Pool(), in, o);
  const T before = in.x[at];
  const int64_t channels = k.channels(), bad_n = at / k.t / channels / k.s,
                bad_c = at / k.t % channels, bad_g = bad_c / k.d;
  const auto shares = [&](int64_t i) {
    return i / k.t / channels / k.s == bad_n && i / k.t % channels / k.d == bad_g;
  };
  const auto expect_as_clean = [&](const std::string& what, const auto& got, const auto& want,
                                   const auto& touched) {
    check::ExpectEach(
        what, got.size(),
        [&](int64_t i) {
          const double v = Value(got[i]);
          if (!touched(i)) return v == Value(want[i]);
          return std::isnan(v) || (what == "mean" && std::isinf(bad) && v == bad);
        },
        [&](int64_t i) { return touched(i) ? NAN : Value(want[i]); },
        [&](int64_t i) { return Value(got[i]); });
  };
  const auto untouched = [](int64_t) { return false; };
  const auto here = [&](int64_t i) { return i == at; };
  const auto unit = [&](int64_t i) { return i == bad_n * k.g + bad_g; };
  {
    in.x[at] = Nearest<T>(bad);
    const Outputs<T> got(Pool(), in, o);
    expect_as_clean("y", got.y, clean.y, shares);
    expect_as_clean("dx", got.dx, clean.dx, shares);
    expect_as_clean("moments dx", got.moments_dx, clean.moments_dx, shares);
    expect_as_clean("mean", got.mean, clean.mean, unit);
    expect_as_clean("variance", got.variance, clean.variance, unit);
    expect_as_clean("dgamma", got.dgamma, clean.dgamma,
                    [&](int64_t c) { return c / k.d == bad_g; });
    expect_as_clean("dbeta", got.dbeta, clean.dbeta, untouched);
    if (std::isnan(bad)) expect_as_clean("ScaleShift y", got.affine_y, clean.affine_y, here);
    expect_as_clean("ScaleShift dx", got.affine_dx, clean.affine_dx, untouched);
    expect_as_clean("dshift", got.dshift, clean.dshift, untouched);
    if (std::isnan(bad)) {
      expect_as_clean("dscale", got.dscale, clean.dscale,
                      [&](int64_t i) { return i == bad_n * channels + bad_c; });
    }
  }
  in.x[at] = before;
  in.dy[at] = Nearest<T>(NAN);
  const Outputs<T> got(Pool(), in, o);
  expect_as_clean("y (dy)", got.y, clean.y, untouched);
  expect_as_clean("dx (dy)", got.dx, clean.dx, shares);
  expect_as_clean("dgamma (dy)", got.dgamma, clean.dgamma, [&](int64_t c) { return c == bad_c; });
  expect_as_clean("dbeta (dy)", got.dbeta, clean.dbeta, [&](int64_t c) { return c == bad_c; });
}

TEST(NotFinite) {
  for (const Geometry& k : AllGeometries()) {
    const int64_t size = k.size();
    if (size > 400000) continue;
    RunNotFinite<float>(k, NAN, k.d % 2 ? size - 1 : size / 2);
    if (size > 20000) continue;
    RunNotFinite<float>(k, NAN, 0);
    RunNotFinite<float>(k, INFINITY, size / 3);
    RunNotFinite<float>(k, -INFINITY, size - 1);
    RunNotFinite<bfloat16>(k, NAN, size / 2);
    RunNotFinite<float16>(k, INFINITY, size / 2);
    RunNotFinite<double>(k, NAN, size - 1);
  }
}

}  // namespace
}  // namespace keras_norms

#if defined(__SANITIZE_THREAD__)
int main() { std::printf("this test has one thread, parallel_test has the others\n0 failed\n"); }
#else
int main(int argc, char** argv) { return check::Main(argc, argv); }
#endif
