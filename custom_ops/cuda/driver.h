// Launches the embedded kernels by the CUDA driver, which is opened at run time (libcuda.so.1): a
// program that links this starts on machines without it, and knows no CUDA header.
#ifndef KERAS_NORMS_CUDA_DRIVER_H_
#define KERAS_NORMS_CUDA_DRIVER_H_

#include <string>

#include "custom_ops/cuda/plan.h"

namespace keras_norms {
namespace gpu {

// For the launches of one call. The stream's context is current from construction to destruction.
class DriverLauncher : public Launcher {
 public:
  // `stream` is a CUstream or cudaStream_t. A default stream, as null is, is that of the context
  // that is current.
  explicit DriverLauncher(void* stream);
  ~DriverLauncher() override;
  DriverLauncher(const DriverLauncher&) = delete;
  DriverLauncher& operator=(const DriverLauncher&) = delete;

  Capability capability() override;
  bool Launch(const char* kernel, const Shape& shape, void** arguments) override;

  // Why a function of plan.h that was given this returned false.
  std::string error() const {
    return error_.empty() ? "The tensor is too large for a grid of a CUDA device." : error_;
  }

 private:
  struct Module;
  static Module* ModuleOf(void* context, std::string* error);

  void* const stream_;
  bool pushed_ = false;
  Module* module_ = nullptr;
  std::string error_;
};

}  // namespace gpu
}  // namespace keras_norms

#endif  // KERAS_NORMS_CUDA_DRIVER_H_
