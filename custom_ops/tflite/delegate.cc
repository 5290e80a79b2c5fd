// The kernel as a delegate, for interpreters whose resolver cannot be reached, as those of Python.
//
// Each node is claimed by itself. Claimed together, nodes that follow each other would become one,
// and the tensors between them this library's to allocate.
#include <cstring>
#include <new>
#include <vector>

#include "custom_ops/tflite/c_api.h"
#include "custom_ops/tflite/export.h"
#include "custom_ops/tflite/kernel.h"

namespace keras_norms {
namespace tflite {
namespace {

// The interpreter sorts the inputs of the node it makes: the tensors are those of the node that was
// claimed, in its order.
struct Claimed {
  Kernel kernel;
  std::vector<int> inputs, outputs;  // as TfLiteIntArray: their number, then they

  explicit Claimed(const TfLiteNode& node)
      : kernel(node.custom_initial_data,
               node.custom_initial_data_size < 0 ? 0 : node.custom_initial_data_size),
        inputs(Copy(*node.inputs)),
        outputs(Copy(*node.outputs)) {}

  static std::vector<int> Copy(const TfLiteIntArray& from) {
    return std::vector<int>(&from.size, &from.size + 1 + from.size);
  }
  static const TfLiteIntArray& Array(const std::vector<int>& from) {
    return *reinterpret_cast<const TfLiteIntArray*>(from.data());
  }
};

void* Init(TfLiteContext* context, const char* buffer, size_t) {
  const auto* params = reinterpret_cast<const TfLiteDelegateParams*>(buffer);
  TfLiteNode* node;
  TfLiteRegistration* registration;
  if (params->nodes_to_replace->size != 1 ||
      context->GetNodeAndRegistration(context, params->nodes_to_replace->data[0], &node,
                                      &registration) != kTfLiteOk) {
    return nullptr;
  }
  return new (std::nothrow) Claimed(*node);
}

void Free(TfLiteContext*, void* claimed) { delete static_cast<Claimed*>(claimed); }

TfLiteStatus PrepareNode(TfLiteContext* context, TfLiteNode* node) {
  auto* const claimed = static_cast<Claimed*>(node->user_data);
  if (claimed == nullptr) return Fail(context, "the delegate has no node.");
  return claimed->kernel.Prepare(context, Claimed::Array(claimed->inputs),
                                 Claimed::Array(claimed->outputs));
}

TfLiteStatus InvokeNode(TfLiteContext* context, TfLiteNode* node) {
  auto* const claimed = static_cast<Claimed*>(node->user_data);
  return claimed->kernel.Invoke(context, Claimed::Array(claimed->inputs),
                                Claimed::Array(claimed->outputs));
}

TfLiteStatus Claim(TfLiteContext* context, TfLiteDelegate* delegate) {
  TfLiteIntArray* plan;
  if (context->GetExecutionPlan(context, &plan) != kTfLiteOk) return kTfLiteError;
  std::vector<int> ours;
  for (int i = 0; i < plan->size; ++i) {
    TfLiteNode* node;
    TfLiteRegistration* registration;
    if (context->GetNodeAndRegistration(context, plan->data[i], &node, &registration) !=
        kTfLiteOk) {
      return kTfLiteError;
    }
    if (registration->builtin_code == kTfLiteBuiltinCustom &&
        registration->custom_name != nullptr &&
        std::strcmp(registration->custom_name, kNormalize) == 0) {
      ours.push_back(plan->data[i]);
    }
  }
  TfLiteRegistration kernel = {};
  kernel.init = Init;
  kernel.free = Free;
  kernel.prepare = PrepareNode;
  kernel.invoke = InvokeNode;
  kernel.custom_name = kNormalize;
  kernel.version = 1;
  for (int index : ours) {
    const TfLiteIntArray one = {1, {index}};
    const TfLiteStatus status =
        context->ReplaceNodeSubsetsWithDelegateKernels(context, kernel, &one, delegate);
    if (status != kTfLiteOk) return status;
  }
  return kTfLiteOk;
}

}  // namespace

KERAS_NORMS_EXPORT TfLiteDelegate* tflite_plugin_create_delegate(
    char**, char**, size_t number, void (*report_error)(const char*)) {
  if (number != 0) {
    if (report_error != nullptr) {
      report_error("keras-norms: the delegate has no options.");
    }
    return nullptr;
  }
  auto* const delegate = new (std::nothrow) TfLiteDelegate();
  if (delegate == nullptr) return nullptr;
  delegate->Prepare = Claim;
  // Shapes are looked at in Prepare, which an interpreter calls once it knows them.
  delegate->flags = kTfLiteDelegateFlagsAllowDynamicTensors;
  return delegate;
}

KERAS_NORMS_EXPORT void tflite_plugin_destroy_delegate(TfLiteDelegate* delegate) {
  delete delegate;
}

}  // namespace tflite
}  // namespace keras_norms
