/* For programs in C, C++ or behind JNI that run .tflite files with fused norms, nodes of the custom
   op "KerasNorms>Normalize". A C++ program gives the op to its resolver:

     tflite::ops::builtin::BuiltinOpResolver resolver;
     resolver.AddCustom("KerasNorms>Normalize", KerasNormsRegisterNormalize());

   Where there is no resolver to be had, the delegate does the same for one interpreter. */
#ifndef KERAS_NORMS_TFLITE_H_
#define KERAS_NORMS_TFLITE_H_

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of TensorFlow Lite's c/common.h. */
typedef struct TfLiteRegistration TfLiteRegistration;
typedef struct TfLiteDelegate TfLiteDelegate;

/* The kernel; lives as long as the library. */
TfLiteRegistration* KerasNormsRegisterNormalize(void);

/* A delegate that takes the nodes of the op, one by one, and no others. There are no options:
   `keys` and `values` are of none. Null, with a word to `report_error` where that is not null, if
   there are some. It must outlive the interpreters that use it. */
TfLiteDelegate* tflite_plugin_create_delegate(char** keys, char** values, size_t number,
                                              void (*report_error)(const char*));
void tflite_plugin_destroy_delegate(TfLiteDelegate* delegate);

/* Registers the kernel with a tflite::MutableOpResolver, as tf.lite.InterpreterWithCustomOps and
   int8 calibration ask for it by name. It calls the resolver of the TensorFlow that is loaded, and
   says so on the standard error stream where none is. */
void kn_register(void* resolver);

#ifdef __cplusplus
}
#endif

#endif /* KERAS_NORMS_TFLITE_H_ */
