#include "custom_ops/core/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "custom_ops/core/normalize.h"

namespace keras_norms {
namespace {

enum class Target { kBaseline, kAvx2, kAvx512 };

Target ChooseTarget() {
#if defined(__x86_64__)
  Target best = Target::kBaseline;
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c")) {
    best = Target::kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      best = Target::kAvx512;
    }
  }
  const char* wish = std::getenv("KERAS_NORMS_SIMD");
  if (wish != nullptr && std::strcmp(wish, "baseline") == 0) return Target::kBaseline;
  if (wish != nullptr && std::strcmp(wish, "avx2") == 0) return std::min(best, Target::kAvx2);
  return best;
#else
  return Target::kBaseline;
#endif
}

Target ChosenTarget() {
  static const Target target = ChooseTarget();
  return target;
}

}  // namespace

#if defined(__x86_64__)
#define KERAS_NORMS_KERNELS(T, name)                                                      \
  template <>                                                                             \
  const Kernels<T>& KernelsOf<T>() {                                                      \
    static const Kernels<T>& chosen = ChosenTarget() == Target::kAvx512 ? avx512::name    \
                                      : ChosenTarget() == Target::kAvx2 ? avx2::name      \
                                                                        : baseline::name; \
    return chosen;                                                                        \
  }
#else
#define KERAS_NORMS_KERNELS(T, name) \
  template <>                        \
  const Kernels<T>& KernelsOf<T>() { \
    return baseline::name;           \
  }
#endif
KERAS_NORMS_KERNELS(float, kFloat)
KERAS_NORMS_KERNELS(double, kDouble)
KERAS_NORMS_KERNELS(bfloat16, kBfloat16)
KERAS_NORMS_KERNELS(float16, kFloat16)
#undef KERAS_NORMS_KERNELS

const char* SimdTarget() {
  switch (ChosenTarget()) {
    case Target::kAvx512:
      return "avx512";
    case Target::kAvx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace keras_norms
