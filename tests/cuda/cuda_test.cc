// The CUDA kernels, run on the CPU by shim.h, against tests/cpp/reference.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "custom_ops/cuda/plan.h"
#include "tests/cpp/arrays.h"
#include "tests/cpp/reference.h"
#include "tests/cuda/kernels.h"
#include "tests/cuda/shim.h"

namespace keras_norms {

// check.h prints this beside each test.
const char* SimdTarget() { return "cuda"; }

namespace {

std::map<std::string, int>& Launches() {
  static std::map<std::string, int> launches;
  return launches;
}

constexpr unsigned kCooperative = 0, kReservedBytes = 1024;

// The sizes of clusters that were launched, by kernel, or kCooperative.
std::map<std::string, std::set<unsigned>>& Clusters() {
  static std::map<std::string, std::set<unsigned>> clusters;
  return clusters;
}

// Of the device that the tests run on: at first what every device has.
gpu::Capability& TheCapability() {
  static gpu::Capability capability;
  return capability;
}

class ShimLauncher : public gpu::Launcher {
 public:
  explicit ShimLauncher(uint64_t seed) : seed_(seed) {}
  gpu::Capability capability() override { return TheCapability(); }
  bool Launch(const char* name, const gpu::Shape& shape, void** arguments) override {
    const gpu::Dim3 &grid = shape.grid, &block = shape.block;
    const unsigned most = std::max(1u, TheCapability().cluster);
    const auto kernel = gpu::Kernels().find(name);
    if (kernel == gpu::Kernels().end()) {
      check::Fail(std::string("there is no kernel ") + name);
      return false;
    }
    ++Launches()[name];
    if (shape.cooperative) ++Launches()["cooperative"];
    check::Expect(grid.x > 0 && grid.y > 0 && grid.z == 1 && block.x > 0, "a grid and a block");
    check::Expect(block.x <= kernel->second.most_threads, "threads within __launch_bounds__");
    const bool slices = std::string(name).find("slices_") == 0;
    check::Expect(shape.shared_bytes <= (slices ? TheCapability().shared_bytes : 48 << 10),
                  "as much shared memory as the device has");
    check::Expect(shape.cluster <= (slices ? most : 1), "clusters as the device can run them");
    if (shape.cooperative) {
      const bool small = shape.shared_bytes <= TheCapability().shared_bytes / 2 - kReservedBytes;
      check::Expect(slices && grid.x * (small ? 1 : 2) <= TheCapability().together,
                    "blocks that run at the same time");
    }
    Clusters()[name].insert(shape.cooperative ? kCooperative : shape.cluster);
    shim::Run([&] { kernel->second.run(arguments); }, {grid.x, grid.y, grid.z},
              {block.x, block.y, block.z}, shape.shared_bytes, shape.cluster, shape.cooperative,
              seed_++);
    return true;
  }

 private:
  uint64_t seed_;
};

// Memory of the device: poisoned with NaN, between guards, and aligned to 16 bytes or misaligned by
// an element.
template <class T>
class Array {
 public:
  Array(int64_t size, bool aligned) : out_(size + 64, true), size_(size), shift_(aligned ? 0 : 1) {
    std::memset(out_.data(), 0x5a, kFront * sizeof(T));
    std::memset(data() + size, 0x5a, (out_.size() - kFront - shift_ - size) * sizeof(T));
    if (!aligned) std::memset(out_.data() + kFront, 0x5a, sizeof(T));
  }
  Array(const Array&) = delete;
  ~Array() {
    const char* const begin = reinterpret_cast<const char*>(out_.data());
    const char* const own = reinterpret_cast<const char*>(data());
    for (const char* p = begin; p < begin + out_.size() * sizeof(T); ++p) {
      if (p >= own && p < own + size_ * static_cast<int64_t>(sizeof(T))) continue;
      if (*p == 0x5a) continue;
      check::Fail("something wrote outside of its array");
      break;
    }
  }
  int64_t size() const { return size_; }
  T* data() { return out_.data() + kFront + shift_; }
  const T* data() const { return out_.data() + kFront + shift_; }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }
  bool SameBits(const Array& other) const {
    return std::memcmp(data(), other.data(), size_ * sizeof(T)) == 0;
  }

 private:
  static constexpr int64_t kFront = 32;
  Output<T> out_;
  int64_t size_, shift_;
};

template <class T>
std::unique_ptr<Array<T>> Copied(const Input<T>& from, bool aligned) {
  auto to = std::make_unique<Array<T>>(from.size(), aligned);
  std::copy_n(from.data(), from.size(), to->data());
  return to;
}

// Outputs of all functions for one case.
template <class T>
struct Results {
  Array<T> y, dx, moments_dx, affine_y, affine_dx;
  Array<float> mean, variance, moments_mean, residual, moments_variance;
  Array<float> dgamma, dbeta, dscale, dshift;

  Results(const Inputs<T>& in, const Options& o, bool aligned, uint64_t seed)
      : y(in.x.size(), aligned),
        dx(in.x.size(), aligned),
        moments_dx(in.x.size(), aligned),
        affine_y(in.x.size(), aligned),
        affine_dx(in.x.size(), aligned),
        mean(in.k.units(), aligned),
        variance(in.k.units(), aligned),
        moments_mean(in.k.units(), aligned),
        residual(in.k.units(), aligned),
        moments_variance(in.k.units(), aligned),
        dgamma(in.k.channels(), aligned),
        dbeta(in.k.channels(), aligned),
        dscale(in.center.size(), aligned),
        dshift(in.center.size(), aligned) {
    const Geometry& k = in.k;
    const auto x = Copied(in.x, aligned), dy = Copied(in.dy, aligned);
    const auto gamma = Copied(in.gamma, aligned), beta = Copied(in.beta, aligned);
    const auto given = [](bool yes, const auto& p) { return yes ? p->data() : nullptr; };
    const float *g = given(o.gamma, gamma), *b = given(o.beta, beta);
    const float *center = o.center ? in.center.data() : nullptr,
                *shift = o.shift ? in.shift.data() : nullptr;
    // Without an activation the gradients must not need these.
    const bool activated = o.activation != Activation::kNone;
    const float *grad_b = activated ? b : nullptr, *grad_shift = activated ? shift : nullptr;
    const T *x_at = x->data(), *affine_x = x_at, *moments_x = x_at;
    const T *dy_at = dy->data(), *affine_dy = dy_at;
    if (o.in_place) {
      for (Array<T>* to : {&y, &affine_y, &moments_dx}) std::copy_n(x_at, k.size(), to->data());
      x_at = y.data();
      affine_x = affine_y.data();
      moments_x = moments_dx.data();
      std::copy_n(in.dy.data(), in.dy.size(), dx.data());
      std::copy_n(in.dy.data(), in.dy.size(), affine_dx.data());
      dy_at = dx.data();
      affine_dy = affine_dx.data();
    }
    ShimLauncher launcher(seed);
    // Each function gets a workspace of its own, so that none finds what another left.
    const auto workspace = [&k] {
      return std::make_unique<Output<char>>(gpu::WorkspaceBytes<T>(k), true);
    };
    const bool launched[] = {
        gpu::Normalize<T>(&launcher, k, x_at, g, b, o.epsilon, o.subtract_mean, o.activation,
                          y.data(), mean.data(), variance.data(), workspace()->data()),
        gpu::NormalizeGrad<T>(&launcher, k, dy_at, x->data(), g, grad_b, mean.data(),
                              variance.data(), o.epsilon, o.subtract_mean, o.activation, dx.data(),
                              o.dgamma ? dgamma.data() : nullptr, o.dbeta ? dbeta.data() : nullptr,
                              workspace()->data()),
        gpu::Moments<T>(&launcher, k, x->data(), o.subtract_mean, moments_mean.data(),
                        residual.data(), moments_variance.data(), workspace()->data()),
        gpu::MomentsGrad<T>(&launcher, k, moments_x, moments_mean.data(), residual.data(),
                            in.dmean.data(), in.dvariance.data(), moments_dx.data(),
                            workspace()->data()),
        gpu::ScaleShift<T>(&launcher, k, affine_x, center, in.scale.data(), shift, o.activation,
                           affine_y.data()),
        gpu::ScaleShiftGrad<T>(&launcher, k, affine_dy, x->data(), center, in.scale.data(),
                               grad_shift, o.activation, affine_dx.data(), dscale.data(),
                               dshift.data(), workspace()->data())};
    for (bool ok : launched) check::Expect(ok, "all launches succeed");
    check::Expect(std::memcmp(x->data(), in.x.data(), k.size() * sizeof(T)) == 0, "x is only read");
  }

  bool SameBits(const Results& o) const {
    return y.SameBits(o.y) && dx.SameBits(o.dx) && moments_dx.SameBits(o.moments_dx) &&
           affine_y.SameBits(o.affine_y) && affine_dx.SameBits(o.affine_dx) &&
           mean.SameBits(o.mean) && variance.SameBits(o.variance) &&
           moments_mean.SameBits(o.moments_mean) && residual.SameBits(o.residual) &&
           moments_variance.SameBits(o.moments_variance) && dgamma.SameBits(o.dgamma) &&
           dbeta.SameBits(o.dbeta) && dscale.SameBits(o.dscale) && dshift.SameBits(o.dshift);
  }
};

// Twice, in different orders of the threads.
template <class T>
void Run(const Geometry& k, const Options& o, double mean, uint64_t seed, bool aligned) {
  check::Context() = std::string(Format<T>::kName) + " " + Name(k) + ", mean " +
                     std::to_string(mean) + Name(o) + (aligned ? ", aligned" : "");
  Inputs<T> in(k, mean, seed);
  AvoidKinks(o, &in);
  const Results<T> got(in, o, aligned, 2 * seed), again(in, o, aligned, 2 * seed + 1);
  ExpectMatches(in, o, got, mean, false);
  check::Expect(got.SameBits(again), "the order of threads does not show");
}

// Vary, with all activations.
Options VaryAll(uint64_t i) {
  Options o = Vary(i);
  o.activation = static_cast<Activation>(Random(i).Bits() >> 16 & 3);
  return o;
}

// Sizes that vectors fit and sizes that they do not, in all walks; the largest are cut.
std::vector<Geometry> Geometries() {
  return {
      // rows
      {1, 1, 1, 2, 1},
      {7, 1, 1, 3, 1},
      {67, 1, 1, 22, 1},
      {13, 1, 2, 64, 1},
      {5, 1, 3, 67, 1},
      {300, 1, 1, 24, 1},
      {3, 1, 1, 1031, 1},
      {11, 1, 1, 1024, 1},
      {2, 1, 2, 4104, 1},
      // lanes
      {1, 1, 1, 1, 1},
      {5, 1, 33, 1, 1},
      {1, 7, 1, 1, 1},
      {2, 101, 1, 1, 1},
      {2, 67, 1, 2, 1},
      {3, 37, 2, 4, 1},
      {2, 131, 3, 1, 1},
      {3, 77, 11, 2, 1},
      {2, 65, 8, 8, 1},
      {1, 259, 1, 40, 1},
      {2, 29, 13, 5, 1},
      {1, 3, 2, 521, 1},
      // runs
      {1, 1, 1, 1, 2},
      {2, 1, 3, 1, 7},
      {3, 1, 2, 5, 13},
      {2, 5, 3, 2, 8},
      {19, 1, 4, 8, 31},
      {2, 3, 2, 2, 67},
      {3, 7, 1, 3, 72},
      {2, 1, 1, 22, 49},
      {2, 1, 2, 1, 4099},
  };
}

// In pieces, and in several parts of each.
std::vector<Geometry> LargeGeometries() {
  return {
      {2, 1, 1, 16411, 1},  // rows beyond registers
      {3, 1, 2, 8200, 1},   // backward only
      {1, 20011, 1, 1, 1},  // lanes
      {1, 1031, 4, 8, 1},   //
      {2, 2053, 1, 5, 1},   //
      {1, 1, 1, 1, 20011},  // runs
      {1, 33, 2, 2, 1032},  //
      {1, 3, 1, 1, 17011},  //
  };
}

// All geometries with all means, aligned and not by turns, or aligned.
template <class T>
void RunAll(const std::vector<Geometry>& geometries, const std::vector<double>& means,
            bool aligned = false) {
  uint64_t seed = 0;
  for (const Geometry& k : geometries) {
    for (double mean : means) {
      Run<T>(k, VaryAll(seed), mean, seed, aligned || seed % 3 > 0);
      ++seed;
    }
  }
}

TEST(Float32) { RunAll<float>(Geometries(), {0, 1e4, 1e6, 3, 0}); }
TEST(Float32Large) { RunAll<float>(LargeGeometries(), {1e6, 0}); }
TEST(Bfloat16) { RunAll<bfloat16>(Geometries(), {0, 1e2}); }
TEST(Bfloat16Large) { RunAll<bfloat16>(LargeGeometries(), {3}); }
TEST(Float16) { RunAll<float16>(Geometries(), {1e2, 0}); }
TEST(Float16Large) { RunAll<float16>(LargeGeometries(), {0}); }

// Aligned so that vectors are used.
void RunEveryActivation(const std::vector<Geometry>& geometries) {
  uint64_t seed = 100;
  for (const Geometry& k : geometries) {
    for (Activation activation : {Activation::kRelu, Activation::kSilu, Activation::kGelu}) {
      for (double mean : {0.0, 1e6}) {
        Options o;
        o.activation = activation;
        Run<float>(k, o, mean, ++seed, true);
        Run<bfloat16>(k, o, std::min(mean, 1e2), ++seed, true);
      }
    }
  }
}
TEST(EveryActivation) {
  RunEveryActivation({{11, 1, 1, 72, 1}, {2, 37, 2, 4, 1}, {2, 3, 2, 2, 72}});
}

void RunEveryNullPointer(const std::vector<Geometry>& geometries) {
  for (const Geometry& k : geometries) {
    for (int bits = 0; bits < 64; bits += 3) {
      Options o;
      o.gamma = bits & 1;
      o.beta = bits & 2;
      o.dgamma = bits & 4;
      o.dbeta = bits & 8;
      o.center = o.subtract_mean = bits & 16;
      o.shift = o.in_place = bits & 32;
      Run<float>(k, o, 10, bits, bits % 2);
    }
  }
}
TEST(EveryNullPointer) {
  RunEveryNullPointer({{5, 1, 3, 12, 1}, {3, 17, 2, 11, 1}, {2, 3, 2, 5, 8}});
}

// The activations alone: ScaleShift of nothing, and its gradient of dy = 1.
template <class T>
void RunActivationValues(const std::vector<double>& values) {
  const Geometry k = {1, static_cast<int64_t>(values.size()), 1, 1, 1};
  Inputs<T> in(k, 0);
  in.scale[0] = 1;
  for (int64_t i = 0; i < k.size(); ++i) {
    in.x[i] = Nearest<T>(values[i]);
    in.dy[i] = Nearest<T>(1);
  }
  Options o;
  o.center = o.shift = false;
  for (Activation activation : {Activation::kRelu, Activation::kSilu, Activation::kGelu}) {
    o.activation = activation;
    check::Context() = std::string(Format<T>::kName) + " values" + Name(o);
    Array<T> y(k.size(), false), dx(k.size(), false);
    Array<float> dscale(1, true), dshift(1, true);
    Output<char> workspace(gpu::WorkspaceBytes<T>(k), true);
    ShimLauncher launcher(0);
    gpu::ScaleShift<T>(&launcher, k, in.x.data(), nullptr, in.scale.data(), nullptr, activation,
                       y.data());
    gpu::ScaleShiftGrad<T>(&launcher, k, in.dy.data(), in.x.data(), nullptr, in.scale.data(),
                           nullptr, activation, dx.data(), dscale.data(), dshift.data(),
                           workspace.data());
    const auto value = [&](int64_t i) {
      const double z = Value(in.x[i]);
      return std::isinf(z) ? std::max(z, 0.0) : Activate(activation, z);
    };
    const auto derivative = [&](int64_t i) {
      const double z = Value(in.x[i]);
      return std::fabs(z) > 800 ? static_cast<double>(z > 0) : Derivative(activation, z);
    };
    const auto close = [&](double want, double got) {
      if (std::isnan(want) || std::isinf(want)) return std::isnan(want) ? got != got : got == want;
      const double size = std::max(1.0, std::fabs(want)) * Bounds<float>::kActivation;
      return std::fabs(got - want) <= size + Ulp<T>(std::fabs(want) + size) / 2;
    };
    check::ExpectEach(
        "y", k.size(), [&](int64_t i) { return close(value(i), Value(y[i])); }, value,
        [&](int64_t i) { return Value(y[i]); });
    check::ExpectEach(
        "dx", k.size(),
        [&](int64_t i) { return std::isnan(Value(in.x[i])) || close(derivative(i), Value(dx[i])); },
        derivative, [&](int64_t i) { return Value(dx[i]); });
  }
}

TEST(ActivationValues) {
  std::vector<double> values = {0.0, -0.0, NAN, INFINITY, -INFINITY, 6e4, -6e4};
  for (int i = -1000; i <= 1000; ++i) values.push_back(i * 2.2e-2);
  RunActivationValues<bfloat16>(values);
  RunActivationValues<float16>(values);
  for (double large : {88.0, 104.0, 150.0, 1e4, 1e20, 3e38}) {
    for (double sign : {-1, 1}) values.push_back(sign * large);
  }
  RunActivationValues<float>(values);
}

// Each of the 65536 numbers of a 16-bit format, and what lies halfway between two of them.
template <class T>
void RunConversions() {
  check::Context() = std::string("conversions of ") + Format<T>::kName;
  const Geometry k = {1, 1, 65536, 1, 1};
  Input<T> x(k.size());
  Input<float> half(k.size());
  for (int64_t i = 0; i < k.size(); ++i) x[i] = {static_cast<uint16_t>(i)};
  for (int64_t i = 0; i < k.size(); ++i) {
    // The next number, but beyond the largest finite one, and of NaN, nothing.
    const double next = Value(T{static_cast<uint16_t>(i + 1)});
    const bool between = std::isfinite(Value(x[i])) && std::isfinite(next) && (i & 0x7fff) < 0x7fff;
    half[i] = between ? static_cast<float>((next - Value(x[i])) / 2) : 0;
  }
  Input<float> one(k.size());
  for (int64_t i = 0; i < k.size(); ++i) one[i] = 1;
  for (bool aligned : {false, true}) {
    const auto from = Copied(x, aligned);
    Array<T> y(k.size(), aligned);
    ShimLauncher launcher(0);
    gpu::ScaleShift<T>(&launcher, k, from->data(), nullptr, one.data(), half.data(),
                       Activation::kNone, y.data());
    const auto want = [&](int64_t i) {
      return Value(Nearest<T>(static_cast<double>(static_cast<float>(Value(x[i]) + half[i]))));
    };
    check::ExpectEach(
        "y", k.size(),
        [&](int64_t i) {
          return std::isnan(want(i)) ? std::isnan(Value(y[i])) : Value(y[i]) == want(i);
        },
        want, [&](int64_t i) { return Value(y[i]); });
  }
}
TEST(Conversions) {
  RunConversions<bfloat16>();
  RunConversions<float16>();
}

void RunConstantInput(const std::vector<Geometry>& geometries) {
  for (const Geometry& k : geometries) {
    for (double value : {1e6 + 0.1, -0.1}) {
      check::Context() = "constant " + std::to_string(value) + " " + Name(k);
      Inputs<float> in(k, 0);
      for (int64_t i = 0; i < k.size(); ++i) in.x[i] = static_cast<float>(value);
      const Results<float> got(in, Options(), value > 0, 0);
      check::ExpectEach(
          "y", k.size(), [&](int64_t i) { return got.y[i] == in.beta[i / k.t % k.channels()]; },
          [&](int64_t i) { return in.beta[i / k.t % k.channels()]; },
          [&](int64_t i) { return got.y[i]; });
      for (int64_t i = 0; i < k.units(); ++i) {
        check::Expect(got.mean[i] == in.x[0] && got.residual[i] == 0 && got.variance[i] == 0,
                      "the mean is the constant, the variance 0");
      }
      for (int64_t i = 0; k.count() == 1 && i < k.size(); ++i) {
        check::Expect(got.dx[i] == 0, "dx is 0 of one element per mean");
      }
    }
  }
}
TEST(ConstantInput) { RunConstantInput(Geometries()); }

// Of data with few values roundings do not cancel: the same square is rounded the same way each
// time.
void RunFewValues(const std::vector<Geometry>& geometries) {
  for (const Geometry& k : geometries) {
    for (int values : {2, 256}) {
      check::Context() = "float32 of " + std::to_string(values) + " values " + Name(k);
      Inputs<float> in(k, 0, values);
      Random random(5);
      for (int64_t i = 0; i < k.size(); ++i) {
        in.x[i] = random.Bits() % values * (values > 100 ? 0x1p-6f : 1);
      }
      Options o;
      o.center = false;
      ExpectMatches(in, o, Results<float>(in, o, true, 0), 2, false);
    }
  }
}
TEST(FewValues) { RunFewValues(LargeGeometries()); }

// The first element, from which distances are measured, far from all others.
TEST(Outlier) {
  for (const Geometry& k : {Geometry{2, 1, 1, 1024, 1}, {1, 259, 1, 4, 1}, {2, 3, 1, 3, 72}}) {
    check::Context() = "an outlier " + Name(k);
    Inputs<float> in(k, 0);
    in.x[0] = 1e6;
    const Results<float> got(in, Options(), true, 0);
    const Reference want(in, Options());
    ExpectNear("y", got.y, want.y, Bounds<float>::kForward * 5);  // |gamma| < 5
    ExpectNear("mean", got.mean, want.mean, Bounds<float>::Mean(0) * std::sqrt(want.variance[0]));
  }
}

template <class T>
void RunEmpty(const Geometry& k) {
  check::Context() = std::string(Format<T>::kName) + " empty " + Name(k);
  const Inputs<T> in(k, 0);
  const Results<T> got(in, Options(), true, 0);
  for (int64_t i = 0; i < k.units(); ++i) {
    check::Expect(got.mean[i] == 0 && got.variance[i] == 0 && got.moments_mean[i] == 0 &&
                      got.residual[i] == 0 && got.moments_variance[i] == 0,
                  "moments 0");
  }
  for (int64_t c = 0; c < k.channels(); ++c) {
    check::Expect(got.dgamma[c] == 0 && got.dbeta[c] == 0, "dgamma 0 and dbeta 0");
  }
  for (int64_t i = 0; i < k.n * k.channels(); ++i) {
    check::Expect(got.dscale[i] == 0 && got.dshift[i] == 0, "dscale 0 and dshift 0");
  }
}

TEST(Empty) {
  for (const Geometry& k : {Geometry{0, 1, 1, 33, 1},
                            {0, 7, 3, 2, 1},
                            {0, 3, 2, 5, 7},
                            {3, 0, 1, 33, 1},
                            {2, 0, 3, 1, 1},
                            {3, 0, 2, 5, 7},
                            {3, 2, 2, 5, 0},
                            {2, 3, 0, 1, 1},
                            {2, 3, 2, 0, 1},
                            {2, 1, 1, 0, 1}}) {
    RunEmpty<float>(k);
    RunEmpty<bfloat16>(k);
  }
}

// A NaN or infinity in one element touches what shares its statistics, and nothing else.
void RunNotFinite(const std::vector<Geometry>& geometries) {
  for (const Geometry& k : geometries) {
    for (float bad : {NAN, INFINITY}) {
      const int64_t at = k.size() / 2, channels = k.channels();
      check::Context() = std::to_string(bad) + " at " + std::to_string(at) + " of " + Name(k);
      Inputs<float> in(k, 5);
      const Results<float> clean(in, Options(), true, 0);
      in.x[at] = bad;
      const Results<float> got(in, Options(), true, 0);
      const int64_t bad_n = at / k.t / channels / k.s, bad_g = at / k.t % channels / k.d;
      const auto shares = [&](int64_t i) {
        return i / k.t / channels / k.s == bad_n && i / k.t % channels / k.d == bad_g;
      };
      const auto expect = [&](const char* what, const auto& a, const auto& b, const auto& touched) {
        check::ExpectEach(
            what, a.size(), [&](int64_t i) { return touched(i) ? std::isnan(a[i]) : a[i] == b[i]; },
            [&](int64_t i) { return touched(i) ? NAN : b[i]; }, [&](int64_t i) { return a[i]; });
      };
      const auto unit = [&](int64_t i) { return i == bad_n * k.g + bad_g; };
      const auto untouched = [](int64_t) { return false; };
      expect("y", got.y, clean.y, shares);
      expect("dx", got.dx, clean.dx, shares);
      expect("moments dx", got.moments_dx, clean.moments_dx, shares);
      expect("mean", got.mean, clean.mean, unit);
      expect("variance", got.variance, clean.variance, unit);
      expect("dgamma", got.dgamma, clean.dgamma, [&](int64_t c) { return c / k.d == bad_g; });
      expect("dbeta", got.dbeta, clean.dbeta, untouched);
      expect("ScaleShift dx", got.affine_dx, clean.affine_dx, untouched);
      expect("dshift", got.dshift, clean.dshift, untouched);
    }
  }
}
TEST(NotFinite) { RunNotFinite(Geometries()); }

// On devices with clusters of blocks, but so little shared memory that small slices need them.
class WithClusters {
 public:
  explicit WithClusters(unsigned cluster, unsigned shared_bytes = 10 << 10, unsigned together = 0) {
    TheCapability() = {cluster, shared_bytes, together};
  }
  ~WithClusters() { TheCapability() = {}; }
};

// What is beyond a cluster, but not beyond all blocks that run at the same time: first batch norm.
std::vector<Geometry> TogetherGeometries() {
  return {
      {1, 1031, 8, 1, 1},   // lanes: as many blocks as these are worth
      {1, 517, 40, 1, 1},   // several slices, several blocks of each
      {1, 613, 16, 1, 1},   //
      {1, 259, 2, 64, 1},   // layer norm of a sample
      {1, 13, 3, 1, 264},   // runs: of a channel
      {1, 3, 2, 1, 2056},   //
      {1, 14, 1, 1, 1032},  // one channel
      {1, 8200, 1, 1, 1},   //
      {1, 1, 2, 5, 1032},   // groups
      {1, 1, 2, 16424, 1},  // rows
      {1, 1031, 5, 1, 1},   // not whole vectors, so read twice
      {1, 101, 3, 1, 49},   //
  };
}

TEST(SlicesTogetherFloat32) {
  const WithClusters device(1, 12 << 10, 264);
  const int before = Launches()["cooperative"];
  RunAll<float>(TogetherGeometries(), {1e6, 0}, true);
  // Of all but the last two geometries, with two means, twice: Normalize, its gradient and Moments.
  check::Context() = "launches";
  const int launches = Launches()["cooperative"] - before;
  check::Expect(launches == 10 * 2 * 2 * 3,
                "120 cooperative ones. Received: " + std::to_string(launches));
}
TEST(SlicesTogetherBfloat16) {
  const WithClusters device(2, 7 << 10, 264);
  RunAll<bfloat16>(TogetherGeometries(), {1e2}, true);
  RunAll<bfloat16>({{3, 515, 8, 1, 1}, {1, 8111, 8, 1, 1}}, {3}, true);
}
TEST(SlicesTogetherFloat16) {
  const WithClusters device(1, 7 << 10, 256);
  RunAll<float16>(TogetherGeometries(), {0}, true);
}
TEST(SlicesTogetherEveryActivation) {
  const WithClusters device(1, 10 << 10, 264);
  RunEveryActivation({{1, 1031, 8, 1, 1}, {1, 13, 3, 1, 264}});
}
TEST(SlicesTogetherEveryNullPointer) {
  const WithClusters device(1, 7 << 10, 264);
  RunEveryNullPointer({{1, 517, 8, 1, 1}, {1, 9, 2, 1, 264}, {1, 1, 2, 3, 1032}});
}
TEST(SlicesTogetherConstantInput) {
  const WithClusters device(1, 10 << 10, 264);
  RunConstantInput({{1, 517, 40, 1, 1}, {1, 3, 2, 1, 2056}, {1, 259, 2, 64, 1}});
}
TEST(SlicesTogetherFewValues) {
  const WithClusters device(1, 10 << 10, 264);
  RunFewValues({{1, 2053, 8, 1, 1}, {1, 5, 2, 1, 2056}});
}
TEST(SlicesTogetherNotFinite) {
  const WithClusters device(1, 10 << 10, 264);
  RunNotFinite({{1, 517, 40, 1, 1}, {1, 13, 3, 1, 264}});
}

// Means that differ from block to block by far more than the elements of a block.
TEST(SlicesTogetherTrend) {
  const WithClusters device(1, 10 << 10, 264);
  for (const Geometry& k : {Geometry{1, 1031, 8, 1, 1}, {1, 14, 1, 1, 1032}}) {
    check::Context() = "a trend " + Name(k);
    Inputs<float> in(k, 0);
    for (int64_t i = 0; i < k.size(); ++i) in.x[i] += static_cast<float>(1000 * i / k.size());
    const Results<float> got(in, Options(), true, 0);
    const Reference want(in, Options());
    const double deviation = std::sqrt(want.variance[0]);
    ExpectNear("y", got.y, want.y, Bounds<float>::kForward * 5);  // |gamma| < 5
    ExpectNear("mean", got.mean, want.mean, Bounds<float>::Mean(0) * deviation);
    ExpectNear("variance", got.variance, want.variance, Bounds<float>::kForward * want.variance[0]);
  }
}

// As much as 128 blocks hold: of 4 KB each, of which 880 bytes are for sums and figures, 6 rows of
// 32 vectors.
TEST(SlicesTogetherFull) {
  const WithClusters device(1, 4 << 10, 256);
  constexpr int64_t kMost = 128 * 6 * 32 * 4;
  int& launched = Launches()["apply_float32x4"];
  for (const Geometry& k : {Geometry{1, 128, 1, 1, kMost / 128}, {1, 1, 1, 1, kMost + 4}}) {
    const bool fits = k.size() <= kMost;
    check::Context() = "as much as fits " + Name(k);
    Inputs<float> in(k, 0);
    Array<float> y(k.size(), true), mean(1, true), variance(1, true);
    const auto x = Copied(in.x, true);
    const auto gamma = Copied(in.gamma, true);
    Output<char> workspace(gpu::WorkspaceBytes<float>(k), true);
    ShimLauncher launcher(0);
    const int before = launched;
    check::Expect(gpu::Normalize<float>(&launcher, k, x->data(), gamma->data(), nullptr,
                                        Options().epsilon, true, Activation::kNone, y.data(),
                                        mean.data(), variance.data(), workspace.data()),
                  "all launches succeed");
    check::Expect(launched == before + !fits, "what fits is read once, a vector more is not");
    Options o;
    o.beta = false;
    ExpectNear("y", y, Reference(in, o).y, Bounds<float>::kForward * 5);  // |gamma| < 5
  }
}

// What clusters of 1, 2, 4, 8 and 16 hold; the last of each walk does not fit.
std::vector<Geometry> SliceGeometries() {
  return {
      // lanes: groups of a channel, of parts of vectors, of several, of all channels
      {2, 37, 8, 1, 1},
      {3, 67, 32, 1, 1},
      {2, 259, 40, 1, 1},
      {1, 131, 4, 10, 1},
      {2, 65, 3, 24, 1},
      {2, 101, 1, 40, 1},
      {1, 259, 2, 64, 1},
      {1, 1031, 1, 24, 1},
      {1, 2053, 8, 1, 1},
      // rows
      {1, 1, 1, 2056, 1},
      {3, 1, 2, 8200, 1},
      {1, 1, 2, 16424, 1},
      // runs
      {2, 1, 3, 1, 1000},
      {1, 1, 2, 5, 264},
      {2, 1, 1, 3, 2056},
      {1, 1, 1, 4, 4104},
      {1, 1, 1, 1, 16424},
  };
}

TEST(SlicesFloat32) {
  const WithClusters device(8);
  RunAll<float>(SliceGeometries(), {1e6, 0}, true);
}
TEST(SlicesBfloat16) {
  const WithClusters device(16);
  RunAll<bfloat16>(SliceGeometries(), {1e2}, true);
  RunAll<bfloat16>({{1, 1, 1, 33000, 1}}, {3}, true);
}
TEST(SlicesFloat16) {
  const WithClusters device(4, 20 << 10);
  RunAll<float16>(SliceGeometries(), {0}, true);
}

// With as much shared memory as there is, so in one block.
TEST(SlicesOfABlock) {
  const WithClusters device(16, 227 << 10);
  RunAll<float>(Geometries(), {1e4}, true);
  RunAll<bfloat16>(Geometries(), {3}, true);
}
// So many rows that a cluster takes several.
TEST(SlicesManyRows) {
  const WithClusters device(8, 16 << 10);
  RunAll<float>({{41, 1, 1, 6152, 1}}, {1e6}, true);
  RunAll<bfloat16>({{41, 1, 1, 6152, 1}}, {3}, true);
}
TEST(SlicesEveryActivation) {
  const WithClusters device(8);
  RunEveryActivation({{2, 129, 16, 4, 1}, {1, 1, 2, 5, 264}});
}
TEST(SlicesEveryNullPointer) {
  const WithClusters device(8);
  RunEveryNullPointer({{1, 67, 4, 12, 1}, {2, 1, 1, 3, 520}});
}
TEST(SlicesConstantInput) {
  const WithClusters device(8);
  RunConstantInput({{1, 1, 2, 8200, 1}, {2, 259, 40, 1, 1}, {2, 65, 3, 24, 1}, {1, 1, 2, 5, 264}});
}
TEST(SlicesFewValues) {
  const WithClusters device(16, 16 << 10);
  RunFewValues({{1, 1, 1, 33000, 1}, {1, 2053, 8, 1, 1}, {1, 1, 1, 1, 20012}});
}
TEST(SlicesNotFinite) {
  const WithClusters device(8);
  RunNotFinite({{3, 1, 2, 8200, 1}, {2, 259, 40, 1, 1}, {2, 65, 3, 24, 1}, {2, 1, 2, 3, 1032}});
}

// Which kernels a geometry takes on a device, first to last, with the clusters they run in, or with
// all blocks where these run at the same time.
template <class T>
std::string Launched(const Geometry& k, const gpu::Capability& capability) {
  struct Recorder : gpu::Launcher {
    gpu::Capability has;
    std::string all;
    gpu::Capability capability() override { return has; }
    bool Launch(const char* name, const gpu::Shape& shape, void**) override {
      all += std::string(name, std::strchr(name, '_'));
      all += shape.cooperative ? "=" + std::to_string(shape.grid.x) : std::to_string(shape.cluster);
      all += " ";
      check::Expect(shape.shared_bytes <= std::max(48u << 10, has.shared_bytes), "what there is");
      return true;
    }
  } recorder;
  recorder.has = capability;
  alignas(16) static float somewhere[4];  // nothing is read
  float* const p = somewhere;
  T* const x = reinterpret_cast<T*>(p);
  gpu::Normalize<T>(&recorder, k, x, p, p, 1, true, Activation::kNone, x, p, p, p);
  recorder.all += "| ";
  gpu::NormalizeGrad<T>(&recorder, k, x, x, p, p, p, p, 1, true, Activation::kNone, x, p, p, p);
  return recorder.all;
}

TEST(WhatIsReadOnce) {
  const gpu::Capability none = {}, hopper = {16, 227 << 10, 2 * 132}, small = {8, 99 << 10, 0};
  const auto expect = [](const Geometry& k, const gpu::Capability& on, const std::string& want) {
    const std::string got = Launched<bfloat16>(k, on);
    check::Context() = Name(k) + ": " + got;
    check::Expect(got == want, want);
  };
  const std::string lanes = "lanes1 merge1 apply1 | lanes1 sum1 merge1 gradient1 sum1 ";
  const std::string runs = "segment1 merge1 apply1 | segment1 merge1 gradient1 sum1 ";
  const Geometry instance = {32, 3136, 256, 1, 1}, layer = {32, 3136, 1, 256, 1};
  expect(instance, none, lanes);
  expect(instance, hopper, "slices4 | slices4 sum1 ");
  expect(instance, small, "slices8 | slices8 sum1 ");
  expect(layer, hopper, "slices8 | slices16 sum1 ");
  expect(layer, small, lanes);
  expect({8, 16384, 32, 16, 1}, hopper, "slices8 | slices16 sum1 ");
  expect({1, 100352, 256, 1, 1}, hopper, lanes);  // of a batch, too large
  expect({2048, 1, 1, 65536, 1}, hopper, "slices2 | slices8 sum1 ");
  expect({8192, 1, 1, 4096, 1}, hopper, "rows1 | rows1 sum1 ");
  expect({32, 1, 256, 1, 3136}, none, runs);
  expect({32, 1, 256, 1, 3136}, hopper, "slices1 | slices1 sum1 ");
  // Batch norm, channels first and last: by clusters, and by all blocks, of as many as there are.
  expect({1, 32, 256, 1, 3136}, hopper, "slices4 | slices4 ");
  expect({1, 12544, 256, 1, 1}, hopper, "slices4 | slices8 ");
  const std::string together = "sum1 slices=128 ";
  const Geometry batch = {1, 100352, 64, 1, 1};
  expect(batch, hopper, together + "| " + together);
  expect(batch, {16, 227 << 10, 0}, lanes);
  // Two of 90000 rows fit on a multiprocessor, forward.
  expect(batch, {16, 227 << 10, 2 * 114}, lanes);
  const std::string lanes_backward = "lanes1 sum1 merge1 gradient1 sum1 ";
  expect({1, 90000, 64, 1, 1}, {16, 227 << 10, 2 * 114}, together + "| " + lanes_backward);
  expect({1, 90000, 64, 1, 1}, {16, 227 << 10, 127}, lanes);
  expect({1, 100352, 96, 1, 1}, hopper, "sum1 slices=126 | " + lanes_backward);
  expect({1, 100352, 128, 1, 1}, hopper, together + "| " + lanes_backward);
  expect({1, 100352, 160, 1, 1}, hopper, lanes);
  expect({1, 100352, 44, 1, 1}, hopper, lanes);  // not whole vectors
  expect({1, 64, 3, 1, 50176}, hopper, "sum1 slices=126 | segment1 sum1 merge1 gradient1 sum1 ");
  expect({1, 3211264, 1, 1, 1}, hopper, together + "| " + together);
  expect({8, 1, 32, 16, 16384}, hopper, "slices8 | slices8 sum1 ");
  expect({32, 1, 256, 1, 49}, hopper, runs);  // not whole vectors
}

// Last: what the tests before it launched.
TEST(EveryKernelRan) {
  for (const auto& [name, kernel] : gpu::Kernels()) {
    check::Expect(Launches()[name] > 0, "a launch of " + name);
    const bool slices = name.find("slices_") == 0;
    for (unsigned cluster : {kCooperative, 1u, 2u, 4u}) {
      check::Expect((slices || cluster == 1) == (Clusters()[name].count(cluster) > 0),
                    "clusters of " + std::to_string(cluster) + " of " + name);
    }
  }
  for (unsigned cluster : {8, 16}) {
    for (const char* name : {"slices_forward_bfloat16x8", "slices_backward_bfloat16x8"}) {
      check::Expect(Clusters()[name].count(cluster) > 0,
                    "clusters of " + std::to_string(cluster) + " of " + name);
    }
  }
}

}  // namespace
}  // namespace keras_norms

int main(int argc, char** argv) {
  const check::Result result = check::RunTests(argc > 1 ? argv[1] : "");
  std::printf("%d passed, %d failed\n", result.passed, result.failed);
  return result.passed > 0 && result.failed == 0 ? 0 : 1;
}
