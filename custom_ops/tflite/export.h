// All else is hidden.
#ifndef KERAS_NORMS_TFLITE_EXPORT_H_
#define KERAS_NORMS_TFLITE_EXPORT_H_

#define KERAS_NORMS_EXPORT extern "C" __attribute__((visibility("default"), used))

#endif  // KERAS_NORMS_TFLITE_EXPORT_H_
