// The part of TensorFlow Lite's C interface that a kernel and a delegate touch. Neither wheel ships
// its headers, and LiteRT and TensorFlow Lite keep them in different folders; so the few structs
// stand here, as the interface of tflite/c/common.h fixes them ("new values should be added only to
// the end of structs and never reordered"). What is behind the last field that is used is not
// declared, except where the size of the whole counts: TfLiteTensor stands in arrays, and
// TfLiteRegistration is passed by value.
//
// The offsets below were compared with LiteRT's header of 2026 and with the machine code of both
// wheels, tensorflow 2.21.0 and ai-edge-litert 2.3.0: TfLiteTensorFree reads at 8, 16, 32, 80, 88
// and 104, TfLiteDelegateCreate writes 56 bytes. Tests run the library in both.
#ifndef KERAS_NORMS_TFLITE_C_API_H_
#define KERAS_NORMS_TFLITE_C_API_H_

#include <cstddef>
#include <cstdint>

// Inside the namespace, so that no program sees two definitions of one type.
namespace keras_norms {
namespace tflite {

constexpr int kTfLiteBuiltinCustom = 32;  // the builtin code of custom ops

enum TfLiteStatus : int { kTfLiteOk = 0, kTfLiteError = 1 };
enum TfLiteType : int { kTfLiteFloat32 = 1 };
enum TfLiteAllocationType : int { kTfLiteDynamic = 4 };
enum TfLiteDelegateFlags : int64_t { kTfLiteDelegateFlagsAllowDynamicTensors = 1 };
enum TfLiteInPlaceOp : uint64_t { kTfLiteInplaceOpInput0Shared = 4 };

struct TfLiteContext;
struct TfLiteDelegate;
struct TfLiteNode;

struct TfLiteIntArray {
  int size;
  int data[1];  // `size` of them
};

struct TfLiteTensor {
  TfLiteType type;
  void* data;
  TfLiteIntArray* dims;
  struct {
    float scale;
    int32_t zero_point;
  } params;
  TfLiteAllocationType allocation_type;
  size_t bytes;
  const void* allocation;
  const char* name;
  TfLiteDelegate* delegate;
  int buffer_handle;
  bool data_is_stale;
  bool is_variable;
  struct {
    int type;
    void* params;
  } quantization;
  void* sparsity;
  const TfLiteIntArray* dims_signature;
};

struct TfLiteNode {
  TfLiteIntArray* inputs;
  TfLiteIntArray* outputs;
  TfLiteIntArray* intermediates;
  TfLiteIntArray* temporaries;
  void* user_data;     // what init returned
  void* builtin_data;  // of a delegate's node: TfLiteDelegateParams
  const void* custom_initial_data;
  int custom_initial_data_size;
};

struct TfLiteRegistration {
  void* (*init)(TfLiteContext* context, const char* buffer, size_t length);
  void (*free)(TfLiteContext* context, void* buffer);
  TfLiteStatus (*prepare)(TfLiteContext* context, TfLiteNode* node);
  TfLiteStatus (*invoke)(TfLiteContext* context, TfLiteNode* node);
  const char* (*profiling_string)(const TfLiteContext* context, const TfLiteNode* node);
  int32_t builtin_code;
  const char* custom_name;
  int version;
  void* registration_external;
  void* (*async_kernel)(TfLiteContext* context, TfLiteNode* node);
  uint64_t inplace_operator;
};

struct TfLiteDelegateParams {
  TfLiteDelegate* delegate;
  TfLiteIntArray* nodes_to_replace;
  TfLiteIntArray* input_tensors;
  TfLiteIntArray* output_tensors;
};

struct TfLiteContext {
  size_t tensors_size;
  TfLiteStatus (*GetExecutionPlan)(TfLiteContext* context, TfLiteIntArray** execution_plan);
  TfLiteTensor* tensors;
  void* impl;
  TfLiteStatus (*ResizeTensor)(TfLiteContext* context, TfLiteTensor* tensor, TfLiteIntArray* size);
  void (*ReportError)(TfLiteContext* context, const char* format, ...);
  TfLiteStatus (*AddTensors)(TfLiteContext* context, int tensors_to_add, int* first_new_tensor);
  TfLiteStatus (*GetNodeAndRegistration)(TfLiteContext* context, int node_index, TfLiteNode** node,
                                         TfLiteRegistration** registration);
  TfLiteStatus (*ReplaceNodeSubsetsWithDelegateKernels)(TfLiteContext* context,
                                                        TfLiteRegistration registration,
                                                        const TfLiteIntArray* nodes_to_replace,
                                                        TfLiteDelegate* delegate);
  int recommended_num_threads;  // below 1: whatever the kernel thinks
};

struct TfLiteDelegate {
  void* data;
  TfLiteStatus (*Prepare)(TfLiteContext* context, TfLiteDelegate* delegate);
  void* CopyFromBufferHandle;
  void* CopyToBufferHandle;
  void* FreeBufferHandle;
  int64_t flags;
  void* opaque_delegate_builder;
};

// In 32 bits the rules of the platform's C make the same structs of the same fields.
#if INTPTR_MAX == INT64_MAX
static_assert(offsetof(TfLiteTensor, data) == 8, "");
static_assert(offsetof(TfLiteTensor, dims) == 16, "");
static_assert(offsetof(TfLiteTensor, allocation_type) == 32, "");
static_assert(offsetof(TfLiteTensor, bytes) == 40, "");
static_assert(offsetof(TfLiteTensor, quantization) == 80, "");
static_assert(offsetof(TfLiteTensor, dims_signature) == 104, "");
static_assert(sizeof(TfLiteTensor) == 112, "");
static_assert(offsetof(TfLiteNode, user_data) == 32, "");
static_assert(offsetof(TfLiteNode, custom_initial_data_size) == 56, "");
static_assert(offsetof(TfLiteRegistration, builtin_code) == 40, "");
static_assert(offsetof(TfLiteRegistration, custom_name) == 48, "");
static_assert(offsetof(TfLiteRegistration, inplace_operator) == 80, "");
static_assert(sizeof(TfLiteRegistration) == 88, "");
static_assert(offsetof(TfLiteContext, tensors) == 16, "");
static_assert(offsetof(TfLiteContext, ResizeTensor) == 32, "");
static_assert(offsetof(TfLiteContext, GetNodeAndRegistration) == 56, "");
static_assert(offsetof(TfLiteContext, recommended_num_threads) == 72, "");
static_assert(offsetof(TfLiteDelegate, flags) == 40, "");
static_assert(sizeof(TfLiteDelegate) == 56, "");
#endif

}  // namespace tflite
}  // namespace keras_norms

#endif  // KERAS_NORMS_TFLITE_C_API_H_
