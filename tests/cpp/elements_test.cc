// The 16-bit types in and out of float32: every value, every tie, every special case. ScaleShift
// with scale 1 shows both: of x it gives back x, of x = 0 its shift, rounded.
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <limits>

#include "tests/cpp/arrays.h"

namespace keras_norms {
namespace {

// ScaleShift of every walk: x[i] + shift[i] for each i, as [n = size] of one channel each, as lanes
// side by side, or as runs of t equal shifts.
template <class T>
void Add(const Geometry& k, const Input<T>& x, const Input<float>& shift, Output<T>* y) {
  Input<float> scale(shift.size());
  for (int64_t i = 0; i < scale.size(); ++i) scale[i] = 1;
  ScaleShift<T>(Pool(), k, x.data(), nullptr, scale.data(), shift.data(), Activation::kNone,
                y->data());
}

// Bits as they are, NaN as any NaN of the same sign.
template <class T>
uint16_t Canonical(T v) {
  return std::isnan(Value(v)) ? (v.bits & 0x8000) | 0x7fff : v.bits;
}

template <class T>
void ExpectSame(const std::string& what, const Output<T>& got, const std::vector<T>& want) {
  check::ExpectEach(
      what, got.size(), [&](int64_t i) { return Canonical(got[i]) == Canonical(want[i]); },
      [&](int64_t i) { return Value(want[i]); }, [&](int64_t i) { return Value(got[i]); });
}

template <class T>
void RunRoundTrip() {
  check::Context() = std::string(Format<T>::kName) + " round trip";
  Input<T> x(65536);
  std::vector<T> want(65536), without_sign_of_zero(65536);
  for (int i = 0; i < 65536; ++i) {
    x[i] = want[i] = without_sign_of_zero[i] = {static_cast<uint16_t>(i)};
    if (i == 0x8000) without_sign_of_zero[i] = {0};  // -0 + 0
    if (!std::isnan(Value(x[i]))) {
      check::Expect(Nearest<T>(Value(x[i])).bits == i, "the test's own conversions agree");
    }
  }
  Input<float> one(65536);
  for (int i = 0; i < 65536; ++i) one[i] = 1;
  // Sizes that are no multiple of a vector: the last elements go another way.
  for (const Geometry& k : {Geometry{1, 65536, 1, 1, 1},
                            {1, 1, 65536, 1, 1},
                            {65536, 1, 1, 1, 1},
                            {1, 4096, 16, 1, 1},
                            {13107, 1, 5, 1, 1},
                            {1, 13107, 5, 1, 1}}) {
    Output<T> y(k.size());
    ScaleShift<T>(Pool(), k, x.data(), nullptr, one.data(), nullptr, Activation::kNone, y.data());
    ExpectSame("x", y, {want.begin(), want.begin() + k.size()});
  }
  for (const Geometry& k : {Geometry{1, 1, 1, 1, 65536}, {1, 1, 5, 1, 13107}}) {
    Output<T> y(k.size());
    ScaleShift<T>(Pool(), k, x.data(), nullptr, one.data(), nullptr, Activation::kNone, y.data());
    ExpectSame("x of runs", y,
               {without_sign_of_zero.begin(), without_sign_of_zero.begin() + k.size()});
  }
}

// Floats around every value and every tie of T, and other awkward ones.
template <class T>
std::vector<float> AwkwardFloats() {
  std::vector<float> floats;
  const auto around = [&floats](double middle) {
    const float f = static_cast<float>(middle);
    for (float v : {std::nextafterf(f, -INFINITY), f, std::nextafterf(f, INFINITY)}) {
      if (std::isfinite(v)) floats.push_back(v);
    }
  };
  for (int i = 0; i < 65536; ++i) {
    const double value = Value(T{static_cast<uint16_t>(i)});
    if (!std::isfinite(value)) continue;
    around(value);
    // The last of these lies between the largest finite number and what would follow it.
    around(value + (i < 0x8000 ? 1 : -1) * Ulp<T>(value) / 2);
  }
  using Limits = std::numeric_limits<float>;
  for (float f : {Limits::max(), Limits::min(), Limits::denorm_min(), Limits::infinity(),
                  Limits::quiet_NaN(), 65536.f, 1e5f, 1e30f, 0x1p-25f, 0x1p-26f, 0x1p-134f}) {
    floats.push_back(f);
    floats.push_back(-f);
  }
  Random random(3);
  for (int i = 0; i < 500000; ++i) {
    const uint32_t bits = static_cast<uint32_t>(random.Bits());
    float f;
    std::memcpy(&f, &bits, sizeof(f));
    floats.push_back(f);
  }
  return floats;
}

template <class T>
void RunRounding() {
  check::Context() = std::string(Format<T>::kName) + " rounding";
  const std::vector<float> floats = AwkwardFloats<T>();
  const int64_t size = static_cast<int64_t>(floats.size());
  Input<T> x(size);
  Input<float> shift(size);
  std::vector<T> want(size);
  for (int64_t i = 0; i < size; ++i) {
    x[i] = Nearest<T>(std::signbit(floats[i]) ? -0.0 : 0.0);  // keeps the sign of -0
    shift[i] = floats[i];
    want[i] = Nearest<T>(floats[i]);
  }
  for (const Geometry& k : {Geometry{1, 1, size, 1, 1}, {size, 1, 1, 1, 1}}) {
    Output<T> y(size);
    Add<T>(k, x, shift, &y);
    ExpectSame("rounded float", y, want);
  }
  // As runs: seven elements of each.
  const Geometry runs = {1, 1, size, 1, 7};
  Input<T> zeros(runs.size());
  std::vector<T> repeated(runs.size());
  for (int64_t i = 0; i < runs.size(); ++i) {
    zeros[i] = x[i / 7];
    repeated[i] = want[i / 7];
  }
  Output<T> y(runs.size());
  Add<T>(runs, zeros, shift, &y);
  for (int64_t i = 0; i < runs.size(); ++i) {  // without the sign of 0
    if (Value(y[i]) == 0) y[i] = {0};
    if (Value(repeated[i]) == 0) repeated[i] = {0};
  }
  ExpectSame("rounded float of runs", y, repeated);
}

TEST(Bfloat16RoundTrip) { RunRoundTrip<bfloat16>(); }
TEST(Float16RoundTrip) { RunRoundTrip<float16>(); }
TEST(Bfloat16Rounding) { RunRounding<bfloat16>(); }
TEST(Float16Rounding) { RunRounding<float16>(); }

#if defined(__SSE2__)
// Runtimes let their threads flush float32 subnormals to 0; float16 has normal numbers enough.
TEST(Float16WhileSubnormalsAreFlushed) {
  const unsigned mode = _mm_getcsr();
  Input<float16> x(65536);
  Input<float> one(65536);
  std::vector<float16> want(65536);
  for (int i = 0; i < 65536; ++i) {
    x[i] = want[i] = {static_cast<uint16_t>(i)};
    one[i] = 1;
  }
  Output<float16> y(65536), y_part(65535);
  _mm_setcsr(mode | 0x8040);
  ScaleShift<float16>(Pool(), {1, 65536, 1, 1, 1}, x.data(), nullptr, one.data(), nullptr,
                      Activation::kNone, y.data());
  ScaleShift<float16>(Pool(), {13107, 1, 5, 1, 1}, x.data(), nullptr, one.data(), nullptr,
                      Activation::kNone, y_part.data());
  _mm_setcsr(mode);
  ExpectSame("x", y, want);
  want.pop_back();
  ExpectSame("x in parts", y_part, want);
}
#endif

}  // namespace
}  // namespace keras_norms

int main(int argc, char** argv) { return check::Main(argc, argv); }
