// The kernels of custom_ops/cuda/kernels.cu as functions of the CPU.
#ifndef KERAS_NORMS_TESTS_CUDA_KERNELS_H_
#define KERAS_NORMS_TESTS_CUDA_KERNELS_H_

#include <map>
#include <string>

namespace keras_norms {
namespace gpu {

// By name: what one thread does, given the arguments of a launch, and how many threads it allows.
struct Kernel {
  void (*run)(void** arguments);
  unsigned most_threads;
};
const std::map<std::string, Kernel>& Kernels();

}  // namespace gpu
}  // namespace keras_norms

#endif  // KERAS_NORMS_TESTS_CUDA_KERNELS_H_
