// What this library was built from, for keras_norms/library.py, which reads it from the file's
// bytes before anything opens the file.
#ifndef KERAS_NORMS_RECORD       // a string: a JSON object. keras_norms/build.py defines it,
#include "keras_norms_record.h"  // Bazel writes it there
#endif

extern "C" __attribute__((visibility("default"), used)) const char keras_norms_record[];
const char keras_norms_record[] = "KERAS_NORMS_RECORD" KERAS_NORMS_RECORD;
