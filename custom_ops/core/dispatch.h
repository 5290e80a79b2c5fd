// The kernels for this processor, chosen once.
#ifndef KERAS_NORMS_CORE_DISPATCH_H_
#define KERAS_NORMS_CORE_DISPATCH_H_

#include "custom_ops/core/kernels.h"

namespace keras_norms {

// The table of the best instruction set that the processor has and KERAS_NORMS_SIMD allows.
template <class T>
const Kernels<T>& KernelsOf();
template <>
const Kernels<float>& KernelsOf<float>();
template <>
const Kernels<double>& KernelsOf<double>();
template <>
const Kernels<bfloat16>& KernelsOf<bfloat16>();
template <>
const Kernels<float16>& KernelsOf<float16>();

}  // namespace keras_norms

#endif  // KERAS_NORMS_CORE_DISPATCH_H_
