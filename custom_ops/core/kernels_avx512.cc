// The kernels for x86-64 with AVX-512. Compiled with -march=x86-64-v4.
#if defined(__x86_64__)
#define KERAS_NORMS_TARGET avx512
#define KERAS_NORMS_VECTOR_BYTES 64
#include "custom_ops/core/kernels-inl.h"
#endif
