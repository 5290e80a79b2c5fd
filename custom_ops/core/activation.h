// What may follow scale and shift, in the same pass.
#ifndef KERAS_NORMS_CORE_ACTIVATION_H_
#define KERAS_NORMS_CORE_ACTIVATION_H_

#include <cstdint>

namespace keras_norms {

// relu(z) = max(z, 0)   silu(z) = z / (1 + exp(-z))   gelu(z) = z * (1 + erf(z / sqrt(2))) / 2
//
// Where silu and gelu have a limit they take it: -0 at -inf, inf at inf. NaN stays NaN. relu'(0) is
// 0.
enum class Activation : int { kNone, kRelu, kSilu, kGelu };

// What becomes of z = (x - mean) / sqrt(variance + epsilon) * gamma + beta: y = activation(z); or,
// with dy, the gradient by z, dy * activation'(z). The latter is for an activation only. `stream`
// asks for stores past the caches.
template <class T>
struct Finish {
  Activation activation = Activation::kNone;
  const T* dy = nullptr;
  bool stream = false;
};

}  // namespace keras_norms

#endif  // KERAS_NORMS_CORE_ACTIVATION_H_
