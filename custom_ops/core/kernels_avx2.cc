// The kernels for x86-64 with AVX2, FMA and F16C. Compiled with -march=x86-64-v3.
#if defined(__x86_64__)
#define KERAS_NORMS_TARGET avx2
#define KERAS_NORMS_VECTOR_BYTES 32
#include "custom_ops/core/kernels-inl.h"
#endif
