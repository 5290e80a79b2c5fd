// One node: read its options, check its tensors, call the core. Used as a registered op and inside
// of a delegate.
#ifndef KERAS_NORMS_TFLITE_KERNEL_H_
#define KERAS_NORMS_TFLITE_KERNEL_H_

#include <cstddef>
#include <memory>
#include <string>

#include "custom_ops/core/geometry.h"
#include "custom_ops/tflite/c_api.h"
#include "custom_ops/tflite/options.h"
#include "custom_ops/tflite/resources.h"

namespace keras_norms {
namespace tflite {

constexpr char kNormalize[] = "KerasNorms>Normalize";

class Kernel {
 public:
  // Never fails: what is wrong with the options, Prepare says, since init has no way to.
  Kernel(const void* options, size_t size);

  // Checks the tensors, sets y's shape and reserves memory.
  TfLiteStatus Prepare(TfLiteContext* context, const TfLiteIntArray& inputs,
                       const TfLiteIntArray& outputs);
  TfLiteStatus Invoke(TfLiteContext* context, const TfLiteIntArray& inputs,
                      const TfLiteIntArray& outputs);

 private:
  // What is wrong, else "". Sets the geometry.
  std::string Check(const TfLiteContext& context, const TfLiteIntArray& inputs,
                    const TfLiteIntArray& outputs);

  Options options_;
  std::string problem_;  // with the options
  Geometry k_ = {};
  size_t scratch_ = 0;
  bool ready_ = false;  // the tensors are as the last Prepare saw them
  const std::shared_ptr<Resources> resources_;
};

// Reports "KerasNorms>Normalize: " and what is wrong.
TfLiteStatus Fail(TfLiteContext* context, const std::string& problem);

}  // namespace tflite
}  // namespace keras_norms

#endif  // KERAS_NORMS_TFLITE_KERNEL_H_
