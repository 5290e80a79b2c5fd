// The part of LiteRT's C interface that this example calls; LiteRT's own litert/c/*.h declare the
// same, and a project that has them includes those. The wheel ai-edge-litert 2.3.0 ships the
// library, libLiteRt.so, and no headers.
#ifndef KERAS_NORMS_EXAMPLES_LITERT_C_H_
#define KERAS_NORMS_EXAMPLES_LITERT_C_H_

#include <cstddef>
#include <cstdint>

extern "C" {

typedef int LiteRtStatus;  // 0: all is well
typedef struct LiteRtAcceleratorT* LiteRtAccelerator;
typedef struct LiteRtCompiledModelT* LiteRtCompiledModel;
typedef struct LiteRtDelegateWrapperT* LiteRtDelegateWrapper;
typedef struct LiteRtEnvironmentT* LiteRtEnvironment;
typedef struct LiteRtModelT* LiteRtModel;
typedef struct LiteRtOptionsT* LiteRtOptions;
typedef struct LiteRtSignatureT* LiteRtSignature;
typedef struct LiteRtTensorBufferT* LiteRtTensorBuffer;
typedef struct LiteRtTensorT* LiteRtTensor;
typedef struct TfLiteDelegate TfLiteDelegate;

enum { kLiteRtHwAcceleratorCpu = 1, kLiteRtElementTypeFloat32 = 1 };

typedef struct {
  int major, minor, patch;
} LiteRtApiVersion;

typedef struct {
  int element_type;
  unsigned int rank : 7;
  bool has_strides : 1;
  int32_t dimensions[8];
  uint32_t strides[8];
} LiteRtRankedTensorType;
static_assert(sizeof(LiteRtRankedTensorType) == 72, "as LiteRT's litert_model_types.h has it");

LiteRtStatus LiteRtCreateEnvironment(int number, const void* options, LiteRtEnvironment*);
void LiteRtDestroyEnvironment(LiteRtEnvironment);

// A delegate becomes part of every model that is compiled in an environment as an accelerator.
LiteRtStatus LiteRtCreateAccelerator(LiteRtAccelerator*);
LiteRtStatus LiteRtSetAcceleratorGetName(LiteRtAccelerator,
                                         LiteRtStatus (*)(LiteRtAccelerator, const char** name));
LiteRtStatus LiteRtSetAcceleratorGetVersion(LiteRtAccelerator,
                                            LiteRtStatus (*)(LiteRtAccelerator, LiteRtApiVersion*));
LiteRtStatus LiteRtSetAcceleratorGetHardwareSupport(LiteRtAccelerator,
                                                    LiteRtStatus (*)(LiteRtAccelerator,
                                                                     int* hardware));
LiteRtStatus LiteRtSetIsAcceleratorDelegateResponsibleForJitCompilation(
    LiteRtAccelerator, LiteRtStatus (*)(LiteRtAccelerator, bool* responsible));
LiteRtStatus LiteRtSetDelegateFunction(LiteRtAccelerator,
                                       LiteRtStatus (*)(void* runtime, LiteRtEnvironment,
                                                        LiteRtAccelerator, LiteRtOptions,
                                                        LiteRtDelegateWrapper*));
LiteRtStatus LiteRtRegisterAccelerator(LiteRtEnvironment, LiteRtAccelerator, void* data,
                                       void (*release)(void*));
LiteRtStatus LiteRtWrapDelegate(TfLiteDelegate*, void (*destroy)(TfLiteDelegate*),
                                LiteRtDelegateWrapper*);

LiteRtStatus LiteRtCreateModelFromFile(LiteRtEnvironment, const char* path, LiteRtModel*);
void LiteRtDestroyModel(LiteRtModel);
LiteRtStatus LiteRtGetModelSignature(LiteRtModel, size_t index, LiteRtSignature*);
LiteRtStatus LiteRtGetNumSignatureInputs(LiteRtSignature, size_t*);
LiteRtStatus LiteRtGetNumSignatureOutputs(LiteRtSignature, size_t*);
LiteRtStatus LiteRtGetSignatureInputTensorByIndex(LiteRtSignature, size_t, LiteRtTensor*);
LiteRtStatus LiteRtGetSignatureOutputTensorByIndex(LiteRtSignature, size_t, LiteRtTensor*);
LiteRtStatus LiteRtGetRankedTensorType(LiteRtTensor, LiteRtRankedTensorType*);

LiteRtStatus LiteRtCreateOptions(LiteRtOptions*);
LiteRtStatus LiteRtSetOptionsHardwareAccelerators(LiteRtOptions, int hardware);
void LiteRtDestroyOptions(LiteRtOptions);
LiteRtStatus LiteRtCreateCompiledModel(LiteRtEnvironment, LiteRtModel, LiteRtOptions,
                                       LiteRtCompiledModel*);
void LiteRtDestroyCompiledModel(LiteRtCompiledModel);
LiteRtStatus LiteRtRunCompiledModel(LiteRtCompiledModel, size_t signature, size_t inputs,
                                    LiteRtTensorBuffer*, size_t outputs, LiteRtTensorBuffer*);

// The memory is aligned to 64 bytes and stays the caller's.
LiteRtStatus LiteRtCreateTensorBufferFromHostMemory(const LiteRtRankedTensorType*, void*,
                                                    size_t bytes, void (*release)(void*),
                                                    LiteRtTensorBuffer*);
void LiteRtDestroyTensorBuffer(LiteRtTensorBuffer);
}

#endif  // KERAS_NORMS_EXAMPLES_LITERT_C_H_
