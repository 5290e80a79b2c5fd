// For kernel_info(): the instructions that this library chose.
#include "custom_ops/core/normalize.h"

extern "C" __attribute__((visibility("default"))) const char* keras_norms_simd_target() {
  return keras_norms::SimdTarget();
}
