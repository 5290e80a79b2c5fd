// The file KERAS_NORMS_CUDA_IMAGES, named by a string when this is compiled, as it is.
#include "custom_ops/cuda/images.h"

extern "C" {
extern const char keras_norms_cuda_images[], keras_norms_cuda_images_end[];
}
asm(".pushsection .rodata\n"
    ".balign 16\n"
    ".hidden keras_norms_cuda_images\n"
    ".hidden keras_norms_cuda_images_end\n"
    ".globl keras_norms_cuda_images, keras_norms_cuda_images_end\n"
    "keras_norms_cuda_images:\n"
    ".incbin \"" KERAS_NORMS_CUDA_IMAGES
    "\"\n"
    "keras_norms_cuda_images_end:\n"
    ".byte 0\n"
    ".popsection\n");

namespace keras_norms {
namespace gpu {

Images EmbeddedImages() {
  return {keras_norms_cuda_images,
          static_cast<size_t>(keras_norms_cuda_images_end - keras_norms_cuda_images)};
}

}  // namespace gpu
}  // namespace keras_norms
