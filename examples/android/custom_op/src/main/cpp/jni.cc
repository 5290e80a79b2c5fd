// NormsDelegate's native half: the delegate of custom_ops/tflite, made and destroyed for Java.
//
// LiteRT's Interpreter takes a delegate as a number, the address of a TfLiteDelegate. So this needs
// none of LiteRT's headers and links to none of its libraries, whatever their version: the address
// comes from our own library, by the two functions that TensorFlow Lite prescribes for delegates in
// libraries of their own (tflite/delegates/external).
#include <jni.h>

#include <cstdint>
#include <cstdio>

#include "custom_ops/tflite/keras_norms_tflite.h"

namespace {

// What the library reports, which it can tell a plain function only.
thread_local char error[512];

void Report(const char* message) { std::snprintf(error, sizeof(error), "%s", message); }

}  // namespace

extern "C" JNIEXPORT jlong JNICALL Java_kerasnorms_customop_NormsDelegate_create(JNIEnv* env,
                                                                                 jobject) {
  Report("The delegate of keras_norms_tflite could not be created.");
  TfLiteDelegate* delegate = tflite_plugin_create_delegate(nullptr, nullptr, 0, Report);
  if (delegate == nullptr) {
    jclass exception = env->FindClass("java/lang/IllegalStateException");
    if (exception != nullptr) env->ThrowNew(exception, error);
  }
  return static_cast<jlong>(reinterpret_cast<intptr_t>(delegate));
}

extern "C" JNIEXPORT void JNICALL Java_kerasnorms_customop_NormsDelegate_destroy(JNIEnv*, jobject,
                                                                                 jlong handle) {
  tflite_plugin_destroy_delegate(reinterpret_cast<TfLiteDelegate*>(static_cast<intptr_t>(handle)));
}
