#include "custom_ops/tflite/kernel.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "custom_ops/core/normalize.h"

namespace keras_norms {
namespace tflite {
namespace {

constexpr const char* kNames[] = {"x", "gamma", "beta"};

// Null for an index that names no tensor, such as the -1 of an optional one.
TfLiteTensor* TensorAt(const TfLiteContext& context, int index) {
  if (index < 0 || static_cast<size_t>(index) >= context.tensors_size) return nullptr;
  return context.tensors + index;
}

std::string CheckType(const std::string& name, const TfLiteTensor* tensor) {
  if (tensor == nullptr || tensor->dims == nullptr) return "there is no `" + name + "`.";
  if (tensor->type == kTfLiteFloat32) return "";
  return "`" + name + "` must be float32 (type 1). Received: type " +
         std::to_string(static_cast<int>(tensor->type)) + ".";
}

float* Data(const TfLiteContext& context, int index) {
  return static_cast<float*>(context.tensors[index].data);
}

}  // namespace

TfLiteStatus Fail(TfLiteContext* context, const std::string& problem) {
  context->ReportError(context, "%s: %s", kNormalize, problem.c_str());
  return kTfLiteError;
}

Kernel::Kernel(const void* options, size_t size)
    : problem_(options_.Read(options, size)), resources_(Resources::Shared()) {}

std::string Kernel::Check(const TfLiteContext& context, const TfLiteIntArray& inputs,
                          const TfLiteIntArray& outputs) {
  if (!problem_.empty()) return problem_;
  if (inputs.size != options_.inputs() || outputs.size != 1) {
    return "a node of these options must have " + std::to_string(options_.inputs()) +
           " inputs and 1 output. Received: " + std::to_string(inputs.size) + " and " +
           std::to_string(outputs.size) + ".";
  }
  const TfLiteTensor* const x = TensorAt(context, inputs.data[0]);
  std::string problem = CheckType("x", x);
  if (problem.empty()) problem = CheckType("y", TensorAt(context, outputs.data[0]));
  if (problem.empty()) problem = options_.View(*x->dims, &k_);
  if (!problem.empty()) return problem;
  const int* const want = x->dims->data + options_.samples + options_.before;
  for (int i = 1; i < inputs.size; ++i) {
    const std::string name = kNames[i == 1 && !options_.has_gamma ? 2 : i];
    const TfLiteTensor* const parameter = TensorAt(context, inputs.data[i]);
    problem = CheckType(name, parameter);
    if (!problem.empty()) return problem;
    const TfLiteIntArray& dims = *parameter->dims;
    if (dims.size != options_.channels ||
        std::memcmp(dims.data, want, dims.size * sizeof(int)) != 0) {
      return "`" + name + "` must have shape " + Shape(want, options_.channels) +
             " for this `x` and these options. Received: " + name +
             ".shape=" + Shape(dims.data, dims.size) + ".";
    }
  }
  return "";
}

TfLiteStatus Kernel::Prepare(TfLiteContext* context, const TfLiteIntArray& inputs,
                             const TfLiteIntArray& outputs) {
  ready_ = false;
  const std::string problem = Check(*context, inputs, outputs);
  if (!problem.empty()) return Fail(context, problem);
  const int64_t scratch = ScratchBytes(k_);
  scratch_ = static_cast<size_t>(scratch);
  if (scratch < 0 || scratch > PTRDIFF_MAX / 2) {  // in 32 bits
    return Fail(context, "there is no memory for " + std::to_string(scratch) + " bytes.");
  }
  if (!Resources::Workspace(resources_.get(), scratch_).ok()) {
    return Fail(context, "there is no memory for " + std::to_string(scratch_) + " bytes.");
  }
  // ResizeTensor takes the array and frees it as C does.
  const TfLiteIntArray& dims = *context->tensors[inputs.data[0]].dims;
  const size_t bytes = (1 + static_cast<size_t>(dims.size)) * sizeof(int);
  void* const size = std::malloc(bytes);
  if (size == nullptr) return Fail(context, "there is no memory.");
  std::memcpy(size, &dims, bytes);
  ready_ = context->ResizeTensor(context, context->tensors + outputs.data[0],
                                 static_cast<TfLiteIntArray*>(size)) == kTfLiteOk;
  return ready_ ? kTfLiteOk : kTfLiteError;
}

TfLiteStatus Kernel::Invoke(TfLiteContext* context, const TfLiteIntArray& inputs,
                            const TfLiteIntArray& outputs) {
  if (!ready_) return Fail(context, "it runs before it was prepared.");
  if (k_.size() == 0) return kTfLiteOk;
  const Resources::Workspace scratch(resources_.get(), scratch_);
  if (!scratch.ok()) {
    return Fail(context, "there is no memory for " + std::to_string(scratch_) + " bytes.");
  }
  const float* data[3] = {};
  for (int i = 0; i < inputs.size; ++i) {
    data[i] = Data(*context, inputs.data[i]);
    if (data[i] == nullptr) return Fail(context, "an input has no data.");
  }
  float* const y = Data(*context, outputs.data[0]);
  if (y == nullptr) return Fail(context, "the output has no data.");
  const float* const gamma = options_.has_gamma ? data[1] : nullptr;
  const float* const beta = options_.has_beta ? data[1 + options_.has_gamma] : nullptr;
  Normalize<float>(resources_->Threads(context->recommended_num_threads), k_, data[0], gamma, beta,
                   options_.epsilon, options_.subtract_mean, options_.activation, y, nullptr,
                   nullptr, scratch.data());
  return kTfLiteOk;
}

}  // namespace tflite
}  // namespace keras_norms
