// What a file says of one node, and what it makes of a shape.
#ifndef KERAS_NORMS_TFLITE_OPTIONS_H_
#define KERAS_NORMS_TFLITE_OPTIONS_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "custom_ops/core/activation.h"
#include "custom_ops/core/geometry.h"
#include "custom_ops/tflite/c_api.h"

namespace keras_norms {
namespace tflite {

// The numbers of x's axes, in the order samples, space, channels, space; the rest is of the norm.
struct Options {
  int64_t samples = 0, before = 0, channels = 0, after = 0, groups = 0;
  double epsilon = 0;
  bool subtract_mean = true, has_gamma = true, has_beta = true;
  Activation activation = Activation::kNone;

  // Reads the node's flexbuffer. Every option must be there. Returns what is wrong, else "".
  std::string Read(const void* bytes, size_t size);

  int inputs() const { return 1 + has_gamma + has_beta; }

  // The view of an x of these sizes. Returns what is wrong, else "".
  std::string View(const TfLiteIntArray& dims, Geometry* k) const;
};

// As "(2, 3)".
std::string Shape(const int* dims, int64_t rank);

}  // namespace tflite
}  // namespace keras_norms

#endif  // KERAS_NORMS_TFLITE_OPTIONS_H_
