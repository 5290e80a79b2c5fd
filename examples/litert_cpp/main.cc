// Runs a .tflite file that holds fused norms, "KerasNorms>Normalize", in LiteRT from C++:
//
//   litert_norms MODEL [RUNS] [INPUT OUTPUT]
//
// INPUT and OUTPUT are files of raw float32, all inputs and all outputs one after the other;
// without them the inputs are a sine. Prints the outputs' first values and the latency.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "custom_ops/tflite/keras_norms_tflite.h"
#include "litert_c.h"

namespace {

void Check(LiteRtStatus status, const char* what) {
  if (status == 0) return;
  std::fprintf(stderr, "%s failed: status %d.\n", what, status);
  std::exit(1);
}
#define CHECK(call) Check(call, #call)

// Our delegate as an accelerator of the processor: every model compiled in `environment` gets it.
// XNNPACK, which is there already, leaves the custom ops to it.
void AddNorms(LiteRtEnvironment environment) {
  LiteRtAccelerator accelerator;
  CHECK(LiteRtCreateAccelerator(&accelerator));
  CHECK(LiteRtSetAcceleratorGetName(accelerator, [](LiteRtAccelerator, const char** name) {
    *name = "KerasNorms";
    return 0;
  }));
  CHECK(
      LiteRtSetAcceleratorGetVersion(accelerator, [](LiteRtAccelerator, LiteRtApiVersion* version) {
        *version = {0, 1, 0};
        return 0;
      }));
  CHECK(LiteRtSetAcceleratorGetHardwareSupport(accelerator, [](LiteRtAccelerator, int* hardware) {
    *hardware = kLiteRtHwAcceleratorCpu;
    return 0;
  }));
  CHECK(LiteRtSetIsAcceleratorDelegateResponsibleForJitCompilation(
      accelerator, [](LiteRtAccelerator, bool* responsible) {
        *responsible = true;
        return 0;
      }));
  CHECK(LiteRtSetDelegateFunction(accelerator, [](void*, LiteRtEnvironment, LiteRtAccelerator,
                                                  LiteRtOptions, LiteRtDelegateWrapper* wrapper) {
    return LiteRtWrapDelegate(tflite_plugin_create_delegate(nullptr, nullptr, 0, nullptr),
                              tflite_plugin_destroy_delegate, wrapper);
  }));
  CHECK(LiteRtRegisterAccelerator(environment, accelerator, nullptr, nullptr));
}

// A tensor in memory of this program.
struct Buffer {
  LiteRtTensorBuffer handle;
  float* data;
  size_t count;
};

Buffer BufferFor(LiteRtTensor tensor) {
  LiteRtRankedTensorType type;
  CHECK(LiteRtGetRankedTensorType(tensor, &type));
  if (type.element_type != kLiteRtElementTypeFloat32) {
    std::fprintf(stderr, "This example is for float32. Received: type %d.\n", type.element_type);
    std::exit(1);
  }
  Buffer buffer = {nullptr, nullptr, 1};
  for (unsigned i = 0; i < type.rank; ++i) {
    buffer.count *= std::max(type.dimensions[i], 1);  // -1: a free size, here of 1
    type.dimensions[i] = std::max(type.dimensions[i], 1);
  }
  const size_t bytes = (buffer.count * sizeof(float) + 63) / 64 * 64;
  buffer.data = static_cast<float*>(std::aligned_alloc(64, bytes));
  CHECK(LiteRtCreateTensorBufferFromHostMemory(&type, buffer.data, buffer.count * sizeof(float),
                                               nullptr, &buffer.handle));
  return buffer;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 && argc != 3 && argc != 5) {
    std::fprintf(stderr, "usage: %s MODEL [RUNS] [INPUT OUTPUT]\n", argv[0]);
    return 2;
  }
  const int runs = argc > 2 ? std::max(std::atoi(argv[2]), 1) : 100;

  LiteRtEnvironment environment;
  CHECK(LiteRtCreateEnvironment(0, nullptr, &environment));
  AddNorms(environment);

  LiteRtModel model;
  CHECK(LiteRtCreateModelFromFile(environment, argv[1], &model));
  LiteRtOptions options;
  CHECK(LiteRtCreateOptions(&options));
  CHECK(LiteRtSetOptionsHardwareAccelerators(options, kLiteRtHwAcceleratorCpu));
  LiteRtCompiledModel compiled;
  CHECK(LiteRtCreateCompiledModel(environment, model, options, &compiled));

  LiteRtSignature signature;
  CHECK(LiteRtGetModelSignature(model, 0, &signature));
  size_t number;
  LiteRtTensor tensor;
  std::vector<Buffer> inputs, outputs;
  CHECK(LiteRtGetNumSignatureInputs(signature, &number));
  for (size_t i = 0; i < number; ++i) {
    CHECK(LiteRtGetSignatureInputTensorByIndex(signature, i, &tensor));
    inputs.push_back(BufferFor(tensor));
  }
  CHECK(LiteRtGetNumSignatureOutputs(signature, &number));
  for (size_t i = 0; i < number; ++i) {
    CHECK(LiteRtGetSignatureOutputTensorByIndex(signature, i, &tensor));
    outputs.push_back(BufferFor(tensor));
  }
  std::ifstream file;
  if (argc == 5) file.open(argv[3], std::ios::binary);
  std::vector<LiteRtTensorBuffer> in, out;
  for (const Buffer& input : inputs) {
    for (size_t i = 0; i < input.count; ++i) input.data[i] = std::sin(0.1f * i);
    if (argc == 5 && !file.read(reinterpret_cast<char*>(input.data), input.count * sizeof(float))) {
      std::fprintf(stderr, "%s is shorter than the inputs.\n", argv[3]);
      return 1;
    }
    in.push_back(input.handle);
  }
  for (const Buffer& output : outputs) out.push_back(output.handle);

  std::vector<double> microseconds;
  for (int i = 0; i < runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    CHECK(LiteRtRunCompiledModel(compiled, 0, in.size(), in.data(), out.size(), out.data()));
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
    microseconds.push_back(took.count());
  }
  std::sort(microseconds.begin(), microseconds.end());

  std::ofstream written;
  if (argc == 5) written.open(argv[4], std::ios::binary);
  for (const Buffer& output : outputs) {
    std::printf("output of %zu:", output.count);
    for (size_t i = 0; i < std::min<size_t>(output.count, 8); ++i) {
      std::printf(" %.4f", output.data[i]);
    }
    std::printf("\n");
    if (argc == 5) {
      written.write(reinterpret_cast<const char*>(output.data), output.count * sizeof(float));
    }
  }
  std::printf("%d runs: median %.1f us, best %.1f us\n", runs, microseconds[runs / 2],
              microseconds[0]);

  for (const auto* buffers : {&inputs, &outputs}) {
    for (const Buffer& buffer : *buffers) {
      LiteRtDestroyTensorBuffer(buffer.handle);
      std::free(buffer.data);
    }
  }
  LiteRtDestroyCompiledModel(compiled);
  LiteRtDestroyOptions(options);
  LiteRtDestroyModel(model);
  LiteRtDestroyEnvironment(environment);
  return 0;
}
