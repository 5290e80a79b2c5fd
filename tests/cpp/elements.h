// The element types as numbers, written from their formats: sign, exponent, mantissa. Shares
// nothing with the conversions it is there to test.
#ifndef KERAS_NORMS_TESTS_CPP_ELEMENTS_H_
#define KERAS_NORMS_TESTS_CPP_ELEMENTS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "custom_ops/core/geometry.h"

namespace keras_norms {

// 16-bit formats, with the parameters of IEEE 754.
template <class T>
struct Format {
  static constexpr const char* kName = sizeof(T) == 4 ? "float32" : "float64";
  static constexpr int kMantissa = sizeof(T) == 4 ? 23 : 52;
  static constexpr int kBias = sizeof(T) == 4 ? 127 : 1023;
};
template <>
struct Format<bfloat16> {
  static constexpr const char* kName = "bfloat16";
  static constexpr int kMantissa = 7, kBias = 127;
};
template <>
struct Format<float16> {
  static constexpr const char* kName = "float16";
  static constexpr int kMantissa = 10, kBias = 15;
};

template <class T>
double Value(T v) {
  if constexpr (sizeof(T) == 2) {
    using F = Format<T>;
    const int mantissa = v.bits & ((1 << F::kMantissa) - 1);
    const int exponent = (v.bits & 0x7fff) >> F::kMantissa;
    double magnitude = std::ldexp(mantissa + (exponent ? 1 << F::kMantissa : 0),
                                  (exponent ? exponent : 1) - F::kBias - F::kMantissa);
    if (exponent == 2 * F::kBias + 1) {
      magnitude = mantissa ? std::numeric_limits<double>::quiet_NaN()
                           : std::numeric_limits<double>::infinity();
    }
    return v.bits & 0x8000 ? -magnitude : magnitude;
  } else {
    return v;
  }
}

// The distance from v's magnitude to the next larger one.
template <class T>
double Ulp(double v) {
  using F = Format<T>;
  const int smallest = 1 - F::kBias;
  return std::ldexp(1, (v == 0 ? smallest : std::max(smallest, std::ilogb(v))) - F::kMantissa);
}

// The nearest T, of two the even one.
template <class T>
T Nearest(double v) {
  if constexpr (sizeof(T) == 2) {
    using F = Format<T>;
    const int infinity = (2 * F::kBias + 1) << F::kMantissa;
    const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
    if (std::isnan(v)) return {static_cast<uint16_t>(sign | (infinity + 1))};
    const double ulp = Ulp<T>(v);
    if (std::isinf(v) || std::ilogb(v) > F::kBias) {
      return {static_cast<uint16_t>(sign | infinity)};
    }
    // Counting in ulps, a mantissa that rounds up to the next power of two carries into the
    // exponent, and from the largest finite number to infinity.
    const int steps = static_cast<int>(std::nearbyint(std::fabs(v) / ulp));
    const int exponent = std::ilogb(ulp) + F::kMantissa + F::kBias;
    return {static_cast<uint16_t>(sign | (((exponent - 1) << F::kMantissa) + steps))};
  } else {
    return static_cast<T>(v);
  }
}

}  // namespace keras_norms

#endif  // KERAS_NORMS_TESTS_CPP_ELEMENTS_H_
