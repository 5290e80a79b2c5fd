#include "tests/cuda/kernels.h"

// The shim comes first: it makes C++ of what follows.
// clang-format off
#include "tests/cuda/shim.h"
#include "custom_ops/cuda/kernels.cu"
// clang-format on

namespace keras_norms {
namespace gpu {

const std::map<std::string, Kernel>& Kernels() {
#define KERAS_NORMS_ENTRY(name, threads, Arguments, function) \
  {#name, {[](void** arguments) { name(*static_cast<const Arguments*>(arguments[0])); }, threads}},
  static const std::map<std::string, Kernel> kernels = {
      KERAS_NORMS_KERNELS(KERAS_NORMS_ENTRY) KERAS_NORMS_SLICE_KERNELS(KERAS_NORMS_ENTRY)};
#undef KERAS_NORMS_ENTRY
  return kernels;
}

}  // namespace gpu
}  // namespace keras_norms
