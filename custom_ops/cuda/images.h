// The compiled kernels, several images in one block of bytes, as keras_norms/cuda.py packs them:
//
//   8 bytes      "KNIMAGES"
//   uint32       version of the format, 1
//   uint32       number of images
//   of each:     uint32 architecture (10 * major + minor), uint32 1 if PTX and 0 if a cubin,
//                uint64 offset from the first byte of all, uint64 bytes
//   the images   each at a multiple of 16; PTX ends with a 0
//
// Numbers have the byte order of the machine.
#ifndef KERAS_NORMS_CUDA_IMAGES_H_
#define KERAS_NORMS_CUDA_IMAGES_H_

#include <cstddef>
#include <string>

namespace keras_norms {
namespace gpu {

// A device of compute capability major.minor runs the cubins of the same major and at most the same
// minor, best the highest, and compiles PTX of at most its own capability. Null if there is
// neither, or if the bytes are no images; `why_not` is then set to a sentence.
const void* ChooseImage(const void* images, size_t bytes, int major, int minor,
                        std::string* why_not);

// Those inside this program: embedded.cc.
struct Images {
  const void* data;
  size_t bytes;
};
Images EmbeddedImages();

}  // namespace gpu
}  // namespace keras_norms

#endif  // KERAS_NORMS_CUDA_IMAGES_H_
