// The kernel as an op for a resolver.
#include <dlfcn.h>

#include <cstdio>
#include <new>

#include "custom_ops/tflite/c_api.h"
#include "custom_ops/tflite/export.h"
#include "custom_ops/tflite/kernel.h"

namespace keras_norms {
namespace tflite {
namespace {

void* Init(TfLiteContext*, const char* buffer, size_t length) {
  return new (std::nothrow) Kernel(buffer, length);
}

void Free(TfLiteContext*, void* kernel) { delete static_cast<Kernel*>(kernel); }

TfLiteStatus Prepare(TfLiteContext* context, TfLiteNode* node) {
  if (node->user_data == nullptr) return Fail(context, "there is no memory.");
  return static_cast<Kernel*>(node->user_data)->Prepare(context, *node->inputs, *node->outputs);
}

TfLiteStatus Invoke(TfLiteContext* context, TfLiteNode* node) {
  return static_cast<Kernel*>(node->user_data)->Invoke(context, *node->inputs, *node->outputs);
}

}  // namespace

KERAS_NORMS_EXPORT TfLiteRegistration* KerasNormsRegisterNormalize() {
  static TfLiteRegistration registration = {Init,
                                            Free,
                                            Prepare,
                                            Invoke,
                                            nullptr,
                                            kTfLiteBuiltinCustom,
                                            kNormalize,
                                            1,
                                            nullptr,
                                            nullptr,
                                            kTfLiteInplaceOpInput0Shared};
  return &registration;
}

// The resolver is a C++ class of a library that this one is not linked with.
KERAS_NORMS_EXPORT void kn_register(void* resolver) {
  constexpr char kAddCustom[] =
      "_ZN6tflite17MutableOpResolver9AddCustomEPKcPK18TfLiteRegistrationi";
  void* symbol = dlsym(RTLD_DEFAULT, kAddCustom);
  if (symbol == nullptr) {  // Python loads TensorFlow without giving its symbols to others
    if (void* library = dlopen("libtensorflow_cc.so.2", RTLD_LAZY | RTLD_NOLOAD)) {
      symbol = dlsym(library, kAddCustom);
      dlclose(library);
    }
  }
  if (symbol == nullptr) {
    std::fprintf(stderr, "%s: kn_register found no tflite::MutableOpResolver::AddCustom.\n",
                 kNormalize);
    return;
  }
  reinterpret_cast<void (*)(void*, const char*, const TfLiteRegistration*, int)>(symbol)(
      resolver, kNormalize, KerasNormsRegisterNormalize(), 1);
}

}  // namespace tflite
}  // namespace keras_norms
