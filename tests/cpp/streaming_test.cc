// Stores past the caches give the same bits as others, to aligned and to other addresses.
#include <memory>

#include "custom_ops/core/dispatch.h"
#include "custom_ops/core/parallel.h"
#include "custom_ops/core/schedule.h"
#include "tests/cpp/arrays.h"

namespace keras_norms {
namespace {

// Calls run(stream, out) both ways, into aligned memory and into memory aligned to one element.
template <class T, class Run>
void ExpectSameBits(const std::string& what, int64_t size, const Run& run) {
  Output<T> cached(size, true), streamed(size, true), elsewhere(size, false);
  run(false, cached.data());
  run(true, streamed.data());
  run(true, elsewhere.data());
  StoreFence();
  check::Expect(streamed.SameBits(cached), what + " past the caches");
  check::Expect(std::memcmp(elsewhere.data(), cached.data(), size * sizeof(T)) == 0,
                what + " past the caches, unaligned");
}

template <class T>
void RunAll() {
  using U = Parameter<T>;
  const Kernels<T>& kernels = KernelsOf<T>();
  Random random(1);
  for (int64_t size : {1, 5, 16, 64, 67, 128, 192, 1031, 4096}) {
    constexpr int64_t kRows = 7;
    check::Context() = std::string(Format<T>::kName) + " rows of " + std::to_string(size);
    const int64_t all = kRows * size;
    Input<T> x(all), dy(all);
    Input<U> parameter(size);
    random.Fill(&x, 3, 1);
    random.Fill(&dy, 0, 1);
    random.Fill(&parameter, 0, 1);
    const U* p = parameter.data();
    for (Activation activation : {Activation::kNone, Activation::kGelu}) {
      ExpectSameBits<T>("row_affine", size, [&](bool stream, T* y) {
        kernels.row_affine(x.data(), size, U(3), U(0.1), U(2), p, p, {activation, nullptr, stream},
                           y);
      });
      ExpectSameBits<T>("segment_affine", all, [&](bool stream, T* y) {
        kernels.segment_affine(x.data(), all, U(3), U(2), U(1), {activation, nullptr, stream}, y);
      });
      ExpectSameBits<T>("lanes_affine", all, [&](bool stream, T* y) {
        kernels.lanes_affine(x.data(), kRows, size, p, p, p, {activation, nullptr, stream}, y);
      });
    }
    const Gradient<U> k[kRows] = {{U(3), U(0.1), U(2), U(0.3), U(0.2)}, {}, {U(2)}, {}, {}, {}, {}};
    ExpectSameBits<T>("segment_gradient", all, [&](bool stream, T* dx) {
      kernels.segment_gradient(dy.data(), x.data(), all, k[0], U(2), stream, dx);
    });
    ExpectSameBits<T>("rows_gradient", all, [&](bool stream, T* dx) {
      std::vector<U> dgamma(size), dbeta(size);
      kernels.rows_gradient(dy.data(), x.data(), kRows, size, size, k, p, stream, dx, dgamma.data(),
                            dbeta.data());
    });
    ExpectSameBits<T>("lanes_gradient", all, [&](bool stream, T* dx) {
      kernels.lanes_gradient(dy.data(), x.data(), kRows, size, {p, p, p, p, p, p}, stream, dx);
    });
  }
}

TEST(Float32) { RunAll<float>(); }
TEST(Float64) { RunAll<double>(); }
TEST(Bfloat16) { RunAll<bfloat16>(); }
TEST(Float16) { RunAll<float16>(); }

TEST(WhatStreams) {
  const int64_t half = LastCacheBytes() / static_cast<int64_t>(2 * sizeof(float));
  check::Expect(half > 0, "a cache");
  const float* x = nullptr;
  const float* y = x + 1;
  check::Expect(!Streams({1, half, 1, 1, 1}, 2, x, y), "what fits stays");
  check::Expect(Streams({1, half + 1, 1, 1, 1}, 2, x, y), "what does not is streamed");
  check::Expect(Streams({1, half, 1, 1, 1}, 3, x, y), "nor does a third array");
  check::Expect(!Streams({1, half + 1, 1, 1, 1}, 2, x, x), "unless it is there already");
}

}  // namespace
}  // namespace keras_norms

int main(int argc, char** argv) { return check::Main(argc, argv); }
