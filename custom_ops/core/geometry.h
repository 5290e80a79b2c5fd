// The one view behind every norm, and the element types the kernels know.
#ifndef KERAS_NORMS_CORE_GEOMETRY_H_
#define KERAS_NORMS_CORE_GEOMETRY_H_

#include <cstdint>

namespace keras_norms {

// x[n, s, g, d, t], row-major; one mean and variance per (n, g), taken over (s, d, t);
// gamma and beta per channel (g, d).
struct Geometry {
  int64_t n;  // samples kept apart
  int64_t s;  // space before the channels
  int64_t g;  // groups
  int64_t d;  // channels per group
  int64_t t;  // space after the channels

  int64_t channels() const { return g * d; }
  int64_t units() const { return n * g; }      // how many means there are
  int64_t count() const { return s * d * t; }  // elements behind each mean
  int64_t size() const { return n * s * g * d * t; }
};

// Storage formats; arithmetic is in float. Bit-compatible with Eigen's and CUDA's types.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The type of parameters, statistics and arithmetic for data of type T.
template <class T>
struct ParameterOf {
  using type = float;
};
template <>
struct ParameterOf<double> {
  using type = double;
};
template <class T>
using Parameter = typename ParameterOf<T>::type;

}  // namespace keras_norms

#endif  // KERAS_NORMS_CORE_GEOMETRY_H_
