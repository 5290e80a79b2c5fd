// The ops inside XLA: each lowers to one custom call, whose handlers are in xla_cpu.cc and, for
// CUDA devices, xla_gpu.cc.
#ifndef KERAS_NORMS_TF_XLA_LOWERING_H_
#define KERAS_NORMS_TF_XLA_LOWERING_H_

namespace keras_norms {

// Tells TensorFlow of the lowering for one of its devices that compile, "XLA_CPU_JIT" or
// "XLA_GPU_JIT", for float32, float16, bfloat16 and, if that has handlers, float64. True.
bool RegisterLowering(const char* device, bool float64);

}  // namespace keras_norms

#endif  // KERAS_NORMS_TF_XLA_LOWERING_H_
