// The kernels for any processor of the architecture: SSE2 on x86-64, NEON on aarch64.
#define KERAS_NORMS_TARGET baseline
#define KERAS_NORMS_VECTOR_BYTES 16
#include "custom_ops/core/kernels-inl.h"
