// What of an interpreter the custom op sees: tensors, one or more nodes, and the calls between
// them.
#ifndef KERAS_NORMS_TESTS_TFLITE_HOST_H_
#define KERAS_NORMS_TESTS_TFLITE_HOST_H_

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "custom_ops/tflite/c_api.h"

extern "C" {
keras_norms::tflite::TfLiteRegistration* KerasNormsRegisterNormalize();
keras_norms::tflite::TfLiteDelegate* tflite_plugin_create_delegate(char**, char**, size_t,
                                                                   void (*)(const char*));
void tflite_plugin_destroy_delegate(keras_norms::tflite::TfLiteDelegate*);
}

namespace keras_norms {
namespace tflite {

// A TfLiteIntArray.
class Ints {
 public:
  Ints() : Ints(std::vector<int>{}) {}
  Ints(const std::vector<int>& values) : data_(values) {  // NOLINT: as a list of numbers
    data_.insert(data_.begin(), static_cast<int>(values.size()));
  }
  TfLiteIntArray* get() { return reinterpret_cast<TfLiteIntArray*>(data_.data()); }

 private:
  std::vector<int> data_;
};

class Host {
 public:
  struct Node {
    Ints inputs, outputs;
    std::vector<uint8_t> options;
    TfLiteRegistration registration;
    TfLiteNode node = {};
    bool ready = false;
    Ints claimed;
    TfLiteDelegateParams params = {};
  };

  Host() {
    context_.impl = this;
    context_.recommended_num_threads = 1;
    context_.ResizeTensor = [](TfLiteContext* c, TfLiteTensor* tensor, TfLiteIntArray* size) {
      Of(c)->resized_ = std::vector<int>(&size->size + 1, &size->size + 1 + size->size);
      tensor->dims = Of(c)->dims_[tensor - c->tensors].get();
      const bool ok = tensor->dims->size == size->size &&
                      std::memcmp(tensor->dims->data, size->data, size->size * sizeof(int)) == 0;
      std::free(size);  // as TensorFlow Lite does
      return ok ? kTfLiteOk : kTfLiteError;
    };
    context_.ReportError = Report;
    context_.GetExecutionPlan = [](TfLiteContext* c, TfLiteIntArray** plan) {
      Of(c)->plan_ints_ = Ints(Of(c)->plan_);
      *plan = Of(c)->plan_ints_.get();
      return kTfLiteOk;
    };
    context_.GetNodeAndRegistration = [](TfLiteContext* c, int index, TfLiteNode** node,
                                         TfLiteRegistration** registration) {
      *node = &Of(c)->nodes_[index]->node;
      *registration = &Of(c)->nodes_[index]->registration;
      return kTfLiteOk;
    };
    context_.ReplaceNodeSubsetsWithDelegateKernels =
        [](TfLiteContext* c, TfLiteRegistration registration, const TfLiteIntArray* nodes,
           TfLiteDelegate* delegate) {
          for (int i = 0; i < nodes->size; ++i)
            Of(c)->Replace(nodes->data[i], registration, delegate);
          return kTfLiteOk;
        };
  }
  ~Host() {
    for (auto& node : nodes_) Free(node.get());
  }

  // Returns the tensor's index. Its memory is exactly as large as its size says.
  int Tensor(const std::vector<int>& dims, int type = kTfLiteFloat32) {
    size_t count = 1;
    for (int size : dims) count *= size;
    memory_.emplace_back(std::make_unique<float[]>(count));
    dims_.emplace_back(dims);
    tensors_.push_back({});
    tensors_.back().type = static_cast<TfLiteType>(type);
    tensors_.back().data = memory_.back().get();
    tensors_.back().bytes = count * sizeof(float);
    for (size_t i = 0; i < tensors_.size(); ++i) tensors_[i].dims = dims_[i].get();
    context_.tensors = tensors_.data();
    context_.tensors_size = tensors_.size();
    return static_cast<int>(tensors_.size()) - 1;
  }
  float* data(int tensor) { return memory_[tensor].get(); }

  int Add(const std::vector<int>& inputs, const std::vector<int>& outputs,
          const std::vector<uint8_t>& options, TfLiteRegistration registration) {
    nodes_.push_back(std::make_unique<Node>());
    Node& node = *nodes_.back();
    node.inputs = inputs;
    node.outputs = outputs;
    node.options = options;
    node.registration = registration;
    node.node.inputs = node.inputs.get();
    node.node.outputs = node.outputs.get();
    node.node.custom_initial_data = node.options.data();
    node.node.custom_initial_data_size = static_cast<int>(node.options.size());
    plan_.push_back(static_cast<int>(nodes_.size()) - 1);
    return plan_.back();
  }

  TfLiteStatus Apply(TfLiteDelegate* delegate) { return delegate->Prepare(&context_, delegate); }

  TfLiteStatus Prepare() {
    for (int index : plan_) {
      Node& node = *nodes_[index];
      Init(&node, reinterpret_cast<const char*>(node.options.data()), node.options.size());
      if (node.registration.prepare(&context_, &node.node) != kTfLiteOk) return kTfLiteError;
    }
    return kTfLiteOk;
  }
  TfLiteStatus Invoke() {
    for (int index : plan_) {
      Node& node = *nodes_[index];
      if (node.registration.invoke(&context_, &node.node) != kTfLiteOk) return kTfLiteError;
    }
    return kTfLiteOk;
  }

  void RunOnly(const std::vector<int>& nodes) { plan_ = nodes; }

  TfLiteContext& context() { return context_; }
  const std::string& error() const { return error_; }
  const std::vector<int>& plan() const { return plan_; }
  const std::vector<int>& resized() const { return resized_; }

 private:
  static Host* Of(TfLiteContext* c) { return static_cast<Host*>(c->impl); }

  static void Report(TfLiteContext* c, const char* format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    Of(c)->error_ = text;
  }

  void Init(Node* node, const char* buffer, size_t size) {
    if (node->ready || node->registration.init == nullptr) return;
    node->node.user_data = node->registration.init(&context_, buffer, size);
    node->ready = true;
  }
  void Free(Node* node) {
    if (node->ready) node->registration.free(&context_, node->node.user_data);
  }

  // A new node in place of one, its inputs sorted as an interpreter sorts them.
  void Replace(int index, const TfLiteRegistration& registration, TfLiteDelegate* delegate) {
    const TfLiteIntArray* inputs = nodes_[index]->inputs.get();
    std::vector<int> reversed(inputs->data, inputs->data + inputs->size);
    for (size_t i = 0; i < reversed.size() / 2; ++i) {
      std::swap(reversed[i], reversed[reversed.size() - 1 - i]);
    }
    const int made = Add(reversed, {nodes_[index]->outputs.get()->data[0]}, {}, registration);
    plan_.pop_back();
    for (int& planned : plan_) planned = planned == index ? made : planned;
    Node& node = *nodes_[made];
    node.claimed = Ints({index});
    node.params = {delegate, node.claimed.get(), node.inputs.get(), node.outputs.get()};
    Init(&node, reinterpret_cast<const char*>(&node.params), 0);
  }

  TfLiteContext context_ = {};
  std::vector<TfLiteTensor> tensors_;
  std::vector<std::unique_ptr<float[]>> memory_;
  std::vector<Ints> dims_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::vector<int> plan_;
  Ints plan_ints_;
  std::vector<int> resized_;
  std::string error_;
};

}  // namespace tflite
}  // namespace keras_norms

#endif  // KERAS_NORMS_TESTS_TFLITE_HOST_H_
