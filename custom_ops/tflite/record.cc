// What this library was built from, for keras_norms/library.py, which reads it from the file's
// bytes. keras_norms/build_tflite.py gives the text; other builds have no record.
#ifdef KERAS_NORMS_RECORD  // a string: a JSON object
#include "custom_ops/tflite/export.h"

KERAS_NORMS_EXPORT const char keras_norms_tflite_record[];
const char keras_norms_tflite_record[] = "KERAS_NORMS_RECORD" KERAS_NORMS_RECORD;
#endif
